//! The isolate dies between any two steps, and the queue brings things twice: nothing is lost, and what may arrive twice is
//! marked and at most one.
//!
//! A step is caught by letting the call after it hang; then the runtime is killed. What was in its queues is gone, which is
//! worse than on the real edge: there the queue brings the message again. Half of the people get that, the other half has
//! only the sweep.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use ihuza_sim::control::{Control, Fault};
use ihuza_sim::mtn::Reports;
use ihuza_sim::openai::Script;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stage::{SOON, Stage};

fn quick() -> WorldConfig {
    WorldConfig::default().var("LEASE_SECONDS", 4).var("UNKNOWN_WAIT_SECONDS", 2).var("RETRY_BASE_SECONDS", 1)
}

/// Where the isolate dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The claim was asked for and not made.
    Claim,
    /// The claim was made; the answer did not come.
    Claimed,
    /// The model was asked.
    Model,
    /// A tool was run; its answer did not come.
    Tool,
    /// The carrier was given the message and did not take it.
    Send,
    /// The carrier took it.
    Sent,
    /// The results were to be recorded, and were not.
    Record,
    /// They were recorded; the answer did not come.
    Recorded,
}

/// What the person is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Notification,
    Turn,
    /// The second attempt of a message that was refused.
    Retry,
}

use Work::{Notification, Retry, Turn};

struct Crash {
    work: Work,
    at: At,
    /// The carrier reports on what it took before the crash.
    reported: bool,
    /// The queue brings the message again.
    redelivered: bool,
    phone: String,
    envelope: String,
}

impl Crash {
    /// Messages that the carrier took, and what became of ours.
    fn expected(&self) -> (usize, String) {
        let taken_before = matches!(self.at, At::Sent | At::Record | At::Recorded);
        let first = if self.work == Retry { 2 } else { 1 };
        let (taken, attempts, marked) = match self.at {
            At::Claim => (1, first, false),
            At::Recorded => (1, first, false),
            _ if taken_before && self.reported => (1, first, false),
            _ if taken_before => (2, first + 1, true),
            _ => (1, first + 1, true),
        };
        (taken, format!("sms delivered {attempts}{}", if marked { " possible-duplicate" } else { "" }))
    }

    /// The call that hangs, and the simulator in which it does.
    fn trap<'a>(&self, stage: &'a Stage) -> (&'a Control, Fault, String) {
        let gateway = stage.gateway();
        let (begin, finish) = match self.work {
            Notification => ("begin_call_notification", "finish_call_notification"),
            Turn => ("begin_sms_turn", "finish_sms_turn"),
            Retry => ("claim_due_deliveries", "record_delivery_results"),
        };
        let model = if self.work == Turn { "text" } else { "call_summary" };
        match self.at {
            At::Claim => (gateway, Fault::TimeoutBefore, begin.to_owned()),
            At::Claimed => (gateway, Fault::TimeoutAfter, begin.to_owned()),
            At::Model => (stage.openai().control(), Fault::TimeoutBefore, model.to_owned()),
            At::Tool => (gateway, Fault::TimeoutAfter, "run_agent_tool".to_owned()),
            At::Send => (stage.mtn().control(), Fault::TimeoutBefore, self.phone.clone()),
            At::Sent => (stage.mtn().control(), Fault::TimeoutAfter, self.phone.clone()),
            At::Record => (gateway, Fault::TimeoutBefore, finish.to_owned()),
            At::Recorded => (gateway, Fault::TimeoutAfter, finish.to_owned()),
        }
    }

    /// The queue brings the message.
    async fn enqueue(&self, stage: &Stage) {
        let (function, binding) = match self.work {
            Notification => ("post-call-notify", "POST_CALL_NOTIFY"),
            Turn => ("conversation", "SMS_INBOUND"),
            Retry => ("delivery-retry", "DELIVERY_RETRY"),
        };
        stage.edge().unwrap().enqueue(function, binding, &self.envelope).await.unwrap();
    }

    /// Goes up to the step, and dies there.
    async fn play(&self, stage: &Stage) {
        let phone = &self.phone;
        let tool = || {
            let arguments = json!({"status": "follow_up", "intent": "housing", "note": null});
            Script::Tools(vec![("session_update_status".to_owned(), arguments)])
        };
        if self.at == At::Tool {
            stage.openai().next_for("text", tool());
        }
        let (control, fault, subject) = self.trap(stage);
        let met = || {
            let requests = control.requests();
            requests
                .iter()
                .filter(|r| r.status.is_none() && r.fault.as_deref() == Some(fault.to_string().as_str()))
                .count()
        };
        let before = met();
        if !self.reported {
            stage.mtn().set_reports(Reports::never());
        }
        drop(control.fail_with(fault).on(&subject));
        self.enqueue(stage).await;
        let hangs = async || Ok((met() > before).then_some(()));
        let what = format!("{:?} to hang at {:?}", self.work, self.at);
        stage.wait_for(what, SOON, hangs).await.unwrap();
        let taken_before = matches!(self.at, At::Sent | At::Record | At::Recorded);
        if taken_before && self.reported {
            // Both reports are in the database; the queue that brought them dies with the runtime.
            let id = stage.mtn().messages_to(phone).last().map(|sms| sms.client_correlator_id.clone()).unwrap();
            stage
                .until(&format!(
                    "select count(*) = 2 from message_status_events where delivery_ref = '{id}' and source = 'provider'"
                ))
                .await;
        }
        stage.edge().unwrap().kill().await.unwrap();
        control.clear_faults();
        stage.mtn().set_reports(Reports::default());
        if self.at == At::Tool {
            // Asked again, the model wants the same.
            stage.openai().next_for("text", tool());
        }
    }
}

async fn crash(stage: &Stage, work: Work, at: At, reported: bool, redelivered: bool) -> Crash {
    let phone = stage.stranger();
    let correlation_id = Uuid::new_v4().to_string();
    let body = if work == Turn {
        json!({"provider": "mtn", "provider_message_id": format!("in-{phone}"), "from": phone, "to": "8080",
               "text": "I look for a house in Remera", "received_at": Utc::now().to_rfc3339(), "keyword": null,
               "language_hint": null})
    } else {
        let mut seed = CallSeed::new(&phone);
        // Long enough ago for the sweep to miss its notification.
        seed.started_at = Utc::now() - TimeDelta::minutes(9);
        seed.ended_at = Some(Utc::now() - TimeDelta::minutes(5));
        let call = stage.seed_call(&seed).await.unwrap();
        json!({"call_ref": call.id, "profile_ref": null, "phone_number": phone})
    };
    let envelope = |body: &Value| {
        json!({"v": 1, "correlation_id": correlation_id, "first_seen_at": Utc::now().to_rfc3339(), "body": body})
            .to_string()
    };
    let mut crash = Crash { work, at, reported, redelivered, envelope: envelope(&body), phone };
    if work == Retry {
        // The first attempt is refused, and the second is due.
        stage.mtn().fail_with(Fault::Status503).on(&crash.phone);
        Crash { work: Notification, envelope: crash.envelope.clone(), phone: crash.phone.clone(), ..crash }
            .enqueue(stage)
            .await;
        let ours = format!("message_delivery_log where recipient = '{}'", crash.phone);
        stage.until(&format!("select last_outcome = 'retryable' and attempts = 1 from {ours}")).await;
        stage
            .execute("update message_delivery_log set next_attempt_at = now() where recipient = $1", &[&crash.phone])
            .await
            .unwrap();
        let id = stage.value(&format!("select id from {ours}")).await;
        crash.envelope = envelope(&json!({"kind": "send", "delivery_id": id}));
    }
    crash
}

/// Sweeps until nothing is left to be done.
async fn swept(stage: &Stage) {
    let rest = "select not exists (select from message_delivery_log where next_attempt_at is not null)
                   and not exists (select from call_notifications where status in ('open', 'released'))
                   and not exists (select from voice_calls where notified_at is null)
                   and not exists (select from conversation_turns where status in ('open', 'released'))
                   and not exists (select from conversation_messages where handled_at is null)
                   and not exists (select from message_delivery_log where direction = 'outbound' and status = 'sent')";
    let look = async || {
        stage.cron().await?;
        Ok((stage.value(rest).await == true).then_some(()))
    };
    let waited = stage.wait_for("rest", 2 * SOON, look).await;
    if waited.is_err() {
        let open = stage.rows("select channel, status, attempts, next_attempt_at, lease_until from message_delivery_log where direction = 'outbound' and (status <> 'delivered' or next_attempt_at is not null)").await;
        let turns = stage
            .rows("select status, lease_until, claims, swept_at from conversation_turns where status <> 'answered'")
            .await;
        let notes = stage
            .rows("select status, lease_until, claims, swept_at from call_notifications where status <> 'done'")
            .await;
        panic!("no rest: {open:?}\n{turns:?}\n{notes:?}");
    }
}

async fn all_die(stage: &Stage, deaths: &[(Work, At, bool)]) {
    stage.without_breakers().await;
    let mut crashes = Vec::new();
    for (work, at, reported) in deaths {
        for redelivered in [true, false] {
            // Before anything is in the database, only the queue knows of an SMS.
            if (*work, *at, redelivered) == (Turn, At::Claim, false) {
                continue;
            }
            let crash = crash(stage, *work, *at, *reported, redelivered).await;
            crash.play(stage).await;
            crashes.push(crash);
        }
    }
    for crash in crashes.iter().filter(|crash| crash.redelivered) {
        crash.enqueue(stage).await;
    }
    swept(stage).await;
    let mut wrong = Vec::new();
    for crash in &crashes {
        let found = (stage.mtn().messages_to(&crash.phone).len(), stage.deliveries(&crash.phone).await);
        if found != crash.expected() {
            let Crash { work, at, reported, redelivered, .. } = crash;
            wrong.push(format!(
                "{work:?} {at:?} reported: {reported} redelivered: {redelivered}: {found:?} instead of {:?}",
                crash.expected()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} crashes:\n{}", wrong.len(), crashes.len(), wrong.join("\n"));
    assert_eq!(stage.count("dead_letters").await, 0);
}

#[tokio::test]
async fn a_notification_survives_the_death_of_its_isolate_at_every_step() {
    let stage = Stage::alone("crashes", quick).await;
    let deaths = [
        (Notification, At::Claim, true),
        (Notification, At::Claimed, true),
        (Notification, At::Model, true),
        (Notification, At::Send, true),
        (Notification, At::Sent, true),
        (Notification, At::Sent, false),
        (Notification, At::Record, true),
        (Notification, At::Record, false),
        (Notification, At::Recorded, true),
    ];
    all_die(&stage, &deaths).await;
}

#[tokio::test]
async fn a_turn_survives_the_death_of_its_isolate_at_every_step() {
    let stage = Stage::alone("crashes-2", quick).await;
    let deaths = [
        (Turn, At::Claim, true),
        (Turn, At::Claimed, true),
        (Turn, At::Model, true),
        (Turn, At::Tool, true),
        (Turn, At::Send, true),
        (Turn, At::Sent, true),
        (Turn, At::Sent, false),
        (Turn, At::Record, true),
        (Turn, At::Record, false),
        (Turn, At::Recorded, true),
    ];
    all_die(&stage, &deaths).await;
    let tools = stage.rows("select count(*) as n, session_id from mcp_tool_calls group by session_id").await.unwrap();
    assert!(!tools.is_empty() && tools.iter().all(|row| row["n"] == 1), "a tool acts once: {tools:?}");
}

#[tokio::test]
async fn a_retry_survives_the_death_of_its_isolate_at_every_step() {
    let stage = Stage::alone("crashes", quick).await;
    let deaths = [
        (Retry, At::Claim, true),
        (Retry, At::Claimed, true),
        (Retry, At::Send, true),
        (Retry, At::Sent, true),
        (Retry, At::Sent, false),
        (Retry, At::Record, true),
        (Retry, At::Record, false),
        (Retry, At::Recorded, true),
    ];
    all_die(&stage, &deaths).await;
}

#[tokio::test]
async fn what_the_queue_brings_several_times_at_once_is_done_once() {
    let stage = Stage::alone("crashes", quick).await;
    stage.without_breakers().await;
    for work in [Notification, Turn] {
        let crash = crash(&stage, work, At::Claim, true, true).await;
        stage.mtn().fail_with(Fault::Slow).on(&crash.phone).delay(Duration::from_millis(700));
        for _ in 0..6 {
            crash.enqueue(&stage).await;
        }
        stage.delivered(&crash.phone, "sms delivered 1").await;
        // And once more when all is done.
        crash.enqueue(&stage).await;
        let id = serde_json::from_str::<Value>(&crash.envelope).unwrap()["correlation_id"].as_str().unwrap().to_owned();
        let looked_at = async || {
            let skipped = stage.story(&id).iter().filter(|line| line["decision"] == "duplicate").count();
            Ok((skipped >= 6).then_some(()))
        };
        let waited = stage.wait_for("each copy to be found a duplicate", SOON, looked_at).await;
        assert!(waited.is_ok(), "{work:?}: {:#?}", stage.story(&id));
        assert_eq!(stage.mtn().messages_to(&crash.phone).len(), 1, "{work:?}");
    }
}
