//! The sweep: whatever a crash, a lost queue message or an outage left behind is found in the database and put back to work.

use ihuza_core::log::{Event, Level};
use ihuza_edge::{
    context::Cx,
    database::{self, DatabaseError},
    host,
    queue::{self, Envelope},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::due;

/// Rows of each kind that one sweep takes up; the next one, a minute later, goes on.
const LIMIT: u32 = 200;
/// Deliveries sent at the same time; a Worker has six connections, the others wait their turn.
const ROUND: u32 = 20;
/// Rounds a sweep makes at most, well within a cron's 15 minutes.
const ROUNDS: u32 = 10;
/// How long after its end a call may still be without a notification: its handler may yet ask for one.
const CALL_GRACE_SECONDS: u32 = 120;

#[derive(Debug, Deserialize)]
struct Found {
    #[serde(default)]
    jobs: Vec<Job>,
    #[serde(default)]
    notify: Vec<Notify>,
    #[serde(default)]
    turns: Vec<Turn>,
    #[serde(default)]
    expired_deliveries: u64,
    #[serde(default)]
    closed_sessions: u64,
}

#[derive(Debug, Deserialize)]
struct Job {
    id: Value,
    queue: String,
    payload: Envelope,
}

#[derive(Debug, Deserialize)]
struct Notify {
    correlation_id: Option<String>,
    call_id: String,
    phone_number: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    session_id: String,
    correlation_id: Option<String>,
}

/// One sweep; its counts.
pub async fn sweep(cx: &Cx) -> Result<Value, DatabaseError> {
    let config = &cx.config;
    let p = json!({
        "limit": LIMIT,
        "lease_seconds": config.number("LEASE_SECONDS"),
        "unknown_wait_seconds": config.number("UNKNOWN_WAIT_SECONDS"),
        "session_idle_hours": config.number("SESSION_IDLE_HOURS"),
        "call_grace_seconds": CALL_GRACE_SECONDS,
    });
    let found = database::rpc(cx, "sweep", &p)
        .await
        .and_then(|answer| serde_json::from_value::<Found>(answer).map_err(|_| DatabaseError::Garbled));
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            cx.log(
                Level::Error,
                Event::DatabaseFailed,
                &format!("the sweep found nothing out: {error}"),
                &[],
            );
            return Err(error);
        }
    };
    let jobs = requeue_jobs(cx, &found.jobs).await;
    for notify in &found.notify {
        let id = notify.correlation_id.clone().unwrap_or_else(host::new_uuid);
        let body = json!({ "call_ref": notify.call_id, "profile_ref": null, "phone_number": notify.phone_number });
        requeue(cx, "post-call-notify", &Envelope::new(&id, body)).await;
    }
    for turn in &found.turns {
        let id = turn.correlation_id.clone().unwrap_or_else(host::new_uuid);
        requeue(
            cx,
            "sms-inbound",
            &Envelope::new(&id, json!({ "session_id": turn.session_id })),
        )
        .await;
    }
    let mut sent = 0;
    for _ in 0..ROUNDS {
        let round = due::send_due(cx, None, ROUND).await?;
        sent += round;
        if round < ROUND as usize {
            break;
        }
    }
    let counts = json!({
        "jobs": jobs, "notifications": found.notify.len(), "turns": found.turns.len(), "deliveries": sent,
        "expired_deliveries": found.expired_deliveries, "closed_sessions": found.closed_sessions,
    });
    cx.log(
        Level::Info,
        Event::SweepDone,
        "the sweep is done",
        &[("counts", counts.clone())],
    );
    Ok(counts)
}

/// Puts job rows onto their queues; those that the queue takes are completed, the others stay for the next sweep.
async fn requeue_jobs(cx: &Cx, jobs: &[Job]) -> usize {
    let mut done = Vec::new();
    for job in jobs {
        let Ok(text) = serde_json::to_string(&job.payload) else {
            continue;
        };
        if text.len() > queue::MESSAGE_LIMIT_BYTES {
            // Only statuses of one huge webhook come near this, and they are sliced; an operator must look.
            cx.log(
                Level::Error,
                Event::JobStored,
                "a job row is too large for its queue",
                &[("job_id", job.id.clone())],
            );
            continue;
        }
        match queue::send(cx, &job.queue, &text, 0).await {
            Ok(()) => done.push(job.id.clone()),
            Err(error) => cx.log(
                Level::Warn,
                Event::JobStored,
                &format!("{} still refuses: {error}", job.queue),
                &[("job_id", job.id.clone())],
            ),
        }
    }
    if !done.is_empty()
        && let Err(error) = database::rpc(cx, "complete_jobs", &json!({ "ids": done })).await
    {
        // They will be queued again; every consumer takes a repeat.
        cx.log(
            Level::Warn,
            Event::DatabaseFailed,
            &format!("requeued job rows stay open: {error}"),
            &[],
        );
    }
    done.len()
}

async fn requeue(cx: &Cx, queue: &'static str, envelope: &Envelope) {
    match serde_json::to_string(envelope) {
        Ok(text) => {
            if let Err(error) = queue::send(cx, queue, &text, 0).await {
                cx.log(
                    Level::Warn,
                    Event::WorkRetried,
                    &format!("{queue} refuses: {error}; the next sweep tries again"),
                    &[],
                );
            }
        }
        Err(_) => cx.log(
            Level::Error,
            Event::InternalError,
            "work that cannot be written as JSON",
            &[],
        ),
    }
}
