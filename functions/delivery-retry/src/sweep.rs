//! The sweep: whatever a crash, a lost queue message or an outage left behind is found in the database and put back to work.

use chrono::TimeDelta;
use ihuza_core::{
    json::{Part, flag_at, items_at, obj, str_at, string_at},
    json_text::to_text,
    log::{Event, Level},
};
use ihuza_edge::{
    context::Cx,
    database::{self, DatabaseError},
    host,
    queue::{self, Envelope},
};
use serde_json::Value;

use crate::{due, reconcile};

/// Rows of each kind that one sweep takes up; the next one, a minute later, goes on.
const LIMIT: u32 = 200;
/// Deliveries claimed at a time: the invocation lets six requests out at once, and the last of these must leave well
/// before its lease ends, though every one before it uses up its time limit.
const ROUND: u32 = 20;
/// Rounds a sweep makes at most, and for how long it begins new ones: a cron has 15 minutes.
const ROUNDS: u32 = 100;
const ROUNDS_FOR: TimeDelta = TimeDelta::minutes(10);
/// The one call that looks at every table may take longer than others.
const SWEEP_TIMEOUT_FACTOR: u32 = 3;
/// How long after its end a call may still be without a notification: its handler may yet ask for one.
const CALL_GRACE_SECONDS: u32 = 120;

/// One sweep; its counts.
pub async fn sweep(cx: &Cx) -> Result<Value, DatabaseError> {
    let config = &cx.config;
    let p = obj(&mut [
        ("limit", LIMIT.into()),
        ("lease_seconds", config.number("LEASE_SECONDS").into()),
        ("unknown_wait_seconds", config.number("UNKNOWN_WAIT_SECONDS").into()),
        ("session_idle_hours", config.number("SESSION_IDLE_HOURS").into()),
        ("call_grace_seconds", CALL_GRACE_SECONDS.into()),
    ]);
    let timeout_ms = config.number("DATABASE_TIMEOUT_MS").saturating_mul(SWEEP_TIMEOUT_FACTOR);
    let found = match database::rpc_within(cx, "sweep", &p, timeout_ms).await {
        Ok(found) => found,
        Err(error) => {
            cx.log(
                Level::Error,
                Event::DatabaseFailed,
                &["the sweep found nothing out: ", &error.to_string()].concat(),
                &[],
            );
            return Err(error);
        }
    };
    // Perhaps by our own first try, of which no answer came: what that found is asked for again by a later sweep.
    let busy = flag_at(&found, "busy");
    let (notify, turns) = (items_at(&found, "notify"), items_at(&found, "turns"));
    let jobs = requeue_jobs(cx, items_at(&found, "jobs")).await;
    for row in notify {
        let body = obj(&mut [
            ("call_ref", row.get("call_id").into()),
            ("profile_ref", Part::Null),
            ("phone_number", row.get("phone_number").into()),
        ]);
        requeue(cx, "post-call-notify", row, body).await;
    }
    for row in turns {
        requeue(cx, "sms-inbound", row, obj(&mut [("session_id", row.get("session_id").into())])).await;
    }
    let memories = items_at(&found, "memories");
    for row in memories {
        requeue(cx, "post-call-notify", row, obj(&mut [("memories_of", row.get("session_id").into())])).await;
    }
    let erased = erase(cx, items_at(&found, "erasures")).await;
    let mut sent = 0;
    let last_begins = host::now() + ROUNDS_FOR;
    for _ in 0..ROUNDS {
        let round = due::send_due(cx, None, ROUND).await?;
        sent += round.sent;
        if round.looked_at == 0 || host::now() > last_begins {
            break;
        }
    }
    // Last, and on its own: whatever comes of it, the sweep is done.
    let untold = reconcile::reconcile(cx).await.unwrap_or_else(|error| {
        cx.log(
            Level::Warn,
            Event::ReconciliationFailed,
            &["nobody knows whether there is a day to compare: ", &error.to_string()].concat(),
            &[],
        );
        0
    });
    let counts = obj(&mut [
        ("busy", busy.into()),
        ("jobs", jobs.into()),
        ("notifications", notify.len().into()),
        ("turns", turns.len().into()),
        ("memories", memories.len().into()),
        ("erased", erased.into()),
        ("deliveries", sent.into()),
        ("expired_deliveries", found.get("expired_deliveries").into()),
        ("closed_sessions", found.get("closed_sessions").into()),
        ("untold_deliveries", untold.into()),
    ]);
    let said = if busy { "somebody else is at the sweep; due deliveries were sent" } else { "the sweep is done" };
    cx.log(Level::Info, Event::SweepDone, said, &[("counts", (&counts).into())]);
    Ok(counts)
}

/// Erases those who asked for it and confirmed it, each in a transaction of its own; how many are gone. Whoever cannot be erased now, a
/// later sweep tries again.
async fn erase(cx: &Cx, requests: &[Value]) -> usize {
    let mut erased = 0;
    for id in requests {
        match database::rpc(cx, "erase_asked", &obj(&mut [("id", id.into())])).await {
            Ok(answer) if str_at(&answer, "decision") == Some("erased") => {
                erased += 1;
                cx.log(Level::Info, Event::PersonErased, "somebody asked to be forgotten, and is", &[]);
            }
            Ok(_) => {}
            Err(error) => {
                let said = ["somebody who asked to be forgotten is not yet: ", &error.to_string()].concat();
                cx.log(Level::Error, Event::DatabaseFailed, &said, &[]);
            }
        }
    }
    erased
}

/// Puts job rows onto their queues; those that the queue takes are completed, the others stay for the next sweep.
async fn requeue_jobs(cx: &Cx, jobs: &[Value]) -> usize {
    let mut done: Vec<&Value> = Vec::new();
    for job in jobs {
        let (Some(id), Some(name), Some(payload)) = (job.get("id"), str_at(job, "queue"), job.get("payload")) else {
            continue;
        };
        let text = to_text(payload);
        if text.len() > queue::MESSAGE_LIMIT_BYTES {
            // No sweep will ever place it: an operator must look. Statuses, which alone come near this, are sliced.
            if bury_job(cx, id, name, payload).await {
                done.push(id);
            }
            continue;
        }
        match queue::send(cx, name, &text, 0).await {
            Ok(()) => done.push(id),
            Err(error) => {
                cx.log(
                    Level::Warn,
                    Event::JobStored,
                    &[name, " still refuses a job row: ", &error].concat(),
                    &[("job_id", id.into())],
                );
            }
        }
    }
    let count = done.len();
    if count > 0
        && let Err(error) = database::rpc(cx, "complete_jobs", &obj(&mut [("ids", done.into())])).await
    {
        // They will be queued again; every consumer takes a repeat.
        cx.log(
            Level::Warn,
            Event::DatabaseFailed,
            &["requeued job rows stay open: ", &error.to_string()].concat(),
            &[],
        );
    }
    count
}

/// Keeps a job row that is too large for its queue as a dead letter with an alert; whether that is done.
async fn bury_job(cx: &Cx, id: &Value, queue: &str, payload: &Value) -> bool {
    let id = id.as_str().unwrap_or_default();
    let letter = obj(&mut [
        ("queue", queue.into()),
        ("message_id", ["job:", id].concat().into()),
        ("payload", payload.into()),
        ("attempts", 0.into()),
        ("reason", "too_large_for_its_queue".into()),
        ("correlation_id", str_at(payload, "correlation_id").into()),
    ]);
    let kept = database::rpc(cx, "record_dead_letter", &letter).await.is_ok();
    cx.log(
        Level::Error,
        Event::DeadLetter,
        &["a job row of ", queue, if kept { " is too large for it and was given up" } else { " is too large for it" }]
            .concat(),
        &[("queue", queue.into()), ("job_id", id.into())],
    );
    kept
}

/// Puts found work back onto its queue, under its own correlation id.
async fn requeue(cx: &Cx, queue: &'static str, row: &Value, body: Value) {
    let correlation_id = string_at(row, "correlation_id").unwrap_or_else(host::new_uuid);
    let text = to_text(&Envelope::new(&correlation_id, body).to_value());
    if let Err(error) = queue::send(cx, queue, &text, 0).await {
        cx.log(
            Level::Warn,
            Event::WorkRetried,
            &[queue, " refuses: ", &error, "; the next sweep tries again"].concat(),
            &[],
        );
    }
}
