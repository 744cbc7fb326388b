//! The queue consumer: each message is worked alone and acked or retried alone, whatever became of its neighbours.

use std::future::Future;

use ihuza_core::json::{self, obj};
use ihuza_core::json_text::parse;
use ihuza_core::{
    ids::CorrelationId,
    log::{Event, Level},
    timestamp,
};
use js_sys::{Array, Object, Reflect};
use serde_json::Value;
use wasm_bindgen::{JsCast, JsValue};
use worker::{
    Env,
    worker_sys::{Message, MessageBatch},
};

use crate::{
    at_once,
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

/// The messages of a batch, through the bindings themselves: `worker::MessageBatch` sends options through another
/// serializer, 10 KB of wasm for one number.
fn messages(batch: &MessageBatch) -> Vec<Message> {
    batch.messages().unwrap_or_else(|_| Array::new()).iter().map(JsCast::unchecked_into).collect()
}

/// Name of the queue that a batch comes from.
pub fn queue_of(batch: &MessageBatch) -> String {
    batch.queue().map(String::from).unwrap_or_default()
}

/// The body as text. Ours are texts; of anything else the JSON.
fn text_of(message: &Message) -> String {
    let body = message.body().unwrap_or(JsValue::NULL);
    body.as_string().or_else(|| js_sys::JSON::stringify(&body).ok().map(String::from)).unwrap_or_default()
}

/// How often the queue has brought this message; the first time is 1.
fn attempts_of(message: &Message) -> u32 {
    let attempts = Reflect::get(message, &JsValue::from_str("attempts")).ok().and_then(|attempts| attempts.as_f64());
    attempts.map_or(1, |attempts| attempts as u32)
}

fn ack(message: &Message) {
    // Fails on no message that came in a batch; unacked, the queue would bring it again.
    let _ = message.ack();
}

fn retry(message: &Message, in_s: u32) {
    let options = Object::new();
    let _ = Reflect::set(&options, &JsValue::from_str("delaySeconds"), &JsValue::from(in_s));
    let _ = message.retry(options.into());
}

/// Works a batch: all its messages at the same time, since the last person must not wait for everybody else's model calls.
pub async fn consume<F>(batch: MessageBatch, env: Env, function: &'static str, work: impl Fn(Cx, Envelope) -> F)
where
    F: Future<Output = Verdict>,
{
    let invocation = Cx::new(env, function, "none".to_owned());
    let messages = messages(&batch);
    at_once::all(messages.iter().map(|message| one(message, &invocation, &work))).await;
}

async fn one<F>(message: &Message, invocation: &Cx, work: &impl Fn(Cx, Envelope) -> F)
where
    F: Future<Output = Verdict>,
{
    let Some(envelope) = parse(&text_of(message)).ok().and_then(Envelope::from_value) else {
        // Only our own accept path writes to the queue: this is a deployment that went wrong. The dead-letter queue keeps it.
        invocation.log(Level::Error, Event::InternalError, "a queue message is no envelope of ours", &[]);
        retry(message, 60);
        return;
    };
    let cx = invocation.for_work(&envelope.correlation_id);
    match work(cx.clone(), envelope).await {
        Verdict::Done => ack(message),
        Verdict::Again { in_s, why } => {
            cx.log(
                Level::Warn,
                Event::WorkRetried,
                &format!("{why}; again in {in_s} s"),
                &[("retry_in_s", in_s.into())],
            );
            retry(message, in_s);
        }
    }
}

/// How often a queue brings a message before it gives it up: the first time and `max_retries` of wrangler.toml.
const ORIGIN_ATTEMPTS: u32 = 101;

/// How long a dead letter waits for the database: twice as long each time, at most an hour. A hundred such retries are
/// longer than a queue keeps anything (4 days, 14 where it is told to).
fn burial_patience_s(attempts: u32) -> u32 {
    60_u32.saturating_mul(1 << attempts.saturating_sub(1).min(6)).min(3600)
}

/// Keeps messages that the queue `origin` gave up as rows of `dead_letters`, each with an alert.
pub async fn bury(batch: MessageBatch, env: Env, function: &'static str, origin: &str) {
    let invocation = Cx::new(env, function, "none".to_owned());
    let messages = messages(&batch);
    let one = async |message: &Message| {
        let text = text_of(message);
        let (payload, correlation_id) = letter(&text);
        let cx = invocation.for_work(&correlation_id);
        let message_id = message.id().map(String::from).unwrap_or_default();
        let row = |payload: Value| {
            obj(&mut [
                ("queue", origin.into()),
                ("message_id", (&message_id).into()),
                ("payload", payload.into()),
                ("attempts", ORIGIN_ATTEMPTS.into()),
                ("reason", "retries_exhausted".into()),
                ("correlation_id", (&cx.correlation_id).into()),
            ])
        };
        let mut kept = database::rpc(&cx, "record_dead_letter", &row(payload)).await;
        if matches!(kept, Err(DatabaseError::Refused { .. })) {
            // What may have killed the work kills its row as well: a number that Postgres cannot hold. A string always can be.
            kept = database::rpc(&cx, "record_dead_letter", &row(as_string(&text))).await;
        }
        match kept {
            Ok(_) => {
                cx.log(
                    Level::Error,
                    Event::DeadLetter,
                    &format!("a message of {origin} was given up; it is in dead_letters"),
                    &[("queue", origin.into())],
                );
                ack(message);
            }
            Err(error) => {
                cx.log(
                    Level::Error,
                    Event::DatabaseFailed,
                    &format!("a dead letter of {origin} waits in its queue: {error}"),
                    &[("queue", origin.into())],
                );
                retry(message, burial_patience_s(attempts_of(message)));
            }
        }
    };
    at_once::all(messages.iter().map(one)).await;
}

/// A dead message as it is kept: its JSON, else its text; and under which correlation id.
fn letter(text: &str) -> (Value, String) {
    let payload = parse(text).unwrap_or_else(|_| as_string(text));
    let id = payload.get("correlation_id").and_then(Value::as_str).and_then(CorrelationId::parse);
    let id = id.map_or_else(|| "none".to_owned(), |id| id.as_str().to_owned());
    (payload, id)
}

/// Postgres takes any string but one with NUL in it.
fn as_string(text: &str) -> Value {
    Value::String(json::without_nul(text))
}

#[cfg(test)]
mod tests {
    use super::{as_string, letter, patience_s};

    #[test]
    fn any_message_can_be_kept() {
        assert_eq!(letter(r#"{"correlation_id": "c-1", "x": 1}"#).1, "c-1");
        assert_eq!(letter(r#"{"correlation_id": "a\u0000b"}"#).1, "none", "an id that Postgres would refuse");
        assert_eq!(letter("no\0 json"), (serde_json::Value::from("no json"), "none".to_owned()));
        assert_eq!(as_string("{\"n\":1e999999}").to_string(), r#""{\"n\":1e999999}""#);
    }

    #[test]
    fn a_dead_letter_outlasts_the_keeping_of_its_queue() {
        let waits = [1, 2, 3, 7, 8, 100].map(super::burial_patience_s);
        assert_eq!(waits, [60, 120, 240, 3600, 3600, 3600]);
        let all: u32 = (1..=100).map(super::burial_patience_s).sum();
        assert!(all > 4 * 86_400 - 3 * 3600, "{all} s");
    }

    #[test]
    fn young_work_is_tried_sooner_than_old() {
        assert_eq!(patience_s(0, 0.0), 2);
        assert_eq!(patience_s(400, 0.0), 100);
        assert_eq!(patience_s(400, 0.99), 149);
        assert_eq!(patience_s(i64::MAX, 0.0), 600);
    }
}
