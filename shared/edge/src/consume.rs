//! The queue consumer: each message is worked alone and acked or retried alone, whatever became of its neighbours.

use std::future::Future;

use futures_util::future::join_all;
use ihuza_core::json::obj;
use ihuza_core::{
    log::{Event, Level},
    timestamp,
};
use serde_json::Value;
use wasm_bindgen::JsValue;
use worker::{Env, MessageBatch, MessageExt, QueueRetryOptionsBuilder, RawMessage};

use crate::{
    context::Cx,
    database::{self, DatabaseError},
    host,
    queue::Envelope,
};

/// What is to become of a queue message.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The work is done, or safe elsewhere.
    Done,
    /// Not now; the queue brings it again after so many seconds.
    Again { in_s: u32, why: String },
}

impl Verdict {
    /// After a database error: again, sooner for young work than for old.
    ///
    /// A refusal is retried as well: it is a bug or a missing migration, which an operator mends while the queue holds the work;
    /// at the end of its retries the message becomes a dead letter with an alert.
    pub fn after(error: &DatabaseError, envelope: &Envelope) -> Verdict {
        Verdict::Again { in_s: patience_s(age_s(envelope), host::dice()), why: error.to_string() }
    }
}

/// The database and this function are of different versions: the work waits for the deployment to be finished.
pub fn unreadable_claim(cx: &Cx) -> Verdict {
    cx.log(Level::Error, Event::InternalError, "the claim is not of the shape this version knows", &[]);
    Verdict::Again { in_s: 60, why: "the claim cannot be read".to_owned() }
}

/// Seconds since the work was first accepted; 0 when the envelope's time cannot be read.
pub fn age_s(envelope: &Envelope) -> i64 {
    timestamp::parse_rfc3339(&envelope.first_seen_at).map_or(0, |seen| (host::now() - seen).num_seconds().max(0))
}

/// How long to leave work alone that is `age_s` old: about a quarter of its age, between 2 s and 10 min, with jitter.
fn patience_s(age_s: i64, dice: f64) -> u32 {
    let base = u32::try_from(age_s / 4).unwrap_or(u32::MAX).clamp(2, 600);
    base + (f64::from(base) * dice / 2.0) as u32
}

/// Works a batch: all its messages at the same time, since the tenth person must not wait for nine model calls.
pub async fn consume<F>(
    batch: MessageBatch<JsValue>,
    env: Env,
    function: &'static str,
    work: impl Fn(Cx, Envelope) -> F,
) where
    F: Future<Output = Verdict>,
{
    join_all(batch.raw_iter().map(|message| one(message, &env, function, &work))).await;
}

async fn one<F>(message: RawMessage, env: &Env, function: &'static str, work: &impl Fn(Cx, Envelope) -> F)
where
    F: Future<Output = Verdict>,
{
    let parsed =
        message.body().as_string().and_then(|text| serde_json::from_str(&text).ok()).and_then(Envelope::from_value);
    let Some(envelope) = parsed else {
        // Only our own accept path writes to the queue: this is a deployment that went wrong. The dead-letter queue keeps it.
        Cx::new(env.clone(), function, "none".to_owned()).log(
            Level::Error,
            Event::InternalError,
            "a queue message is no envelope of ours",
            &[],
        );
        message.retry_with_options(&QueueRetryOptionsBuilder::new().with_delay_seconds(60).build());
        return;
    };
    let cx = Cx::new(env.clone(), function, envelope.correlation_id.clone());
    match work(cx.clone(), envelope).await {
        Verdict::Done => message.ack(),
        Verdict::Again { in_s, why } => {
            cx.log(
                Level::Warn,
                Event::WorkRetried,
                &format!("{why}; again in {in_s} s"),
                &[("retry_in_s", in_s.into())],
            );
            message.retry_with_options(&QueueRetryOptionsBuilder::new().with_delay_seconds(in_s).build());
        }
    }
}

/// Keeps messages that the queue `origin` gave up as rows of `dead_letters`, each with an alert.
pub async fn bury(batch: MessageBatch<JsValue>, env: Env, function: &'static str, origin: &str) {
    join_all(batch.raw_iter().map(async |message| {
        let text = message.body().as_string().unwrap_or_default();
        let payload = serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text));
        let correlation_id = payload.get("correlation_id").and_then(Value::as_str).unwrap_or("none").to_owned();
        let cx = Cx::new(env.clone(), function, correlation_id);
        let row = obj(&mut [
            ("queue", origin.into()),
            ("message_id", message.id().into()),
            ("payload", payload.into()),
            ("attempts", 0.into()),
            ("reason", "retries_exhausted".into()),
            ("correlation_id", (&cx.correlation_id).into()),
        ]);
        match database::rpc(&cx, "record_dead_letter", &row).await {
            Ok(_) => {
                cx.log(
                    Level::Error,
                    Event::DeadLetter,
                    &format!("a message of {origin} was given up; it is in dead_letters"),
                    &[("queue", origin.into())],
                );
                message.ack();
            }
            Err(error) => {
                cx.log(
                    Level::Error,
                    Event::DatabaseFailed,
                    &format!("a dead letter of {origin} waits in its queue: {error}"),
                    &[("queue", origin.into())],
                );
                message.retry_with_options(&QueueRetryOptionsBuilder::new().with_delay_seconds(300).build());
            }
        }
    }))
    .await;
}

#[cfg(test)]
mod tests {
    use super::patience_s;

    #[test]
    fn young_work_is_tried_sooner_than_old() {
        assert_eq!(patience_s(0, 0.0), 2);
        assert_eq!(patience_s(400, 0.0), 100);
        assert_eq!(patience_s(400, 0.99), 149);
        assert_eq!(patience_s(i64::MAX, 0.0), 600);
    }
}
