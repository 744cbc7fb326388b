//! Putting work where it is safe: the queue, or, only when the queue refuses, a job row in Postgres.

use ihuza_core::{
    json::{obj, string_at, u32_at},
    log::{Event, Level},
    problem::Problem,
    timestamp,
};
use js_sys::futures::JsFuture;
use serde_json::Value;
use wasm_bindgen::{JsCast, JsValue};
use worker::worker_sys;

use crate::{context::Cx, database, host};

/// Cloudflare takes 128 KB a message, metadata included; what is larger goes to Postgres.
pub const MESSAGE_LIMIT_BYTES: usize = 100 * 1024;

/// The form of every queue message and of a job row's payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    pub correlation_id: String,
    /// When the work was first accepted, RFC 3339. Survives every re-queueing.
    pub first_seen_at: String,
    pub body: Value,
}

/// Raised when the form changes, so that an old message is recognised.
const ENVELOPE_VERSION: u32 = 1;

impl Envelope {
    pub fn new(correlation_id: &str, body: Value) -> Envelope {
        Envelope { correlation_id: correlation_id.to_owned(), first_seen_at: timestamp::to_rfc3339(host::now()), body }
    }

    pub fn to_value(&self) -> Value {
        obj(&mut [
            ("v", ENVELOPE_VERSION.into()),
            ("correlation_id", (&self.correlation_id).into()),
            ("first_seen_at", (&self.first_seen_at).into()),
            ("body", (&self.body).into()),
        ])
    }

    /// Reads an envelope of this version.
    pub fn from_value(mut value: Value) -> Option<Envelope> {
        if u32_at(&value, "v") != Some(ENVELOPE_VERSION) {
            return None;
        }
        Some(Envelope {
            correlation_id: string_at(&value, "correlation_id")?,
            first_seen_at: string_at(&value, "first_seen_at")?,
            body: value.get_mut("body")?.take(),
        })
    }
}

/// Where a piece of work was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    Queue,
    JobRow,
}

/// Puts `envelope` on `queue`, else into Postgres, else answers 503 with `Retry-After` so that the sender keeps it.
pub async fn place(cx: &Cx, queue: &'static str, envelope: &Envelope, delay_s: u32) -> Result<Placed, Problem> {
    let payload = envelope.to_value();
    let text = payload.to_string();
    let refused = if text.len() > MESSAGE_LIMIT_BYTES {
        "too large for the queue".to_owned()
    } else {
        match send(cx, queue, &text, delay_s).await {
            Ok(()) => return Ok(Placed::Queue),
            Err(error) => error,
        }
    };
    let row = obj(&mut [
        ("queue", queue.into()),
        ("payload", payload.into()),
        ("reason", "queue_refused".into()),
        ("correlation_id", (&envelope.correlation_id).into()),
    ]);
    match database::rpc(cx, "enqueue_job", &row).await {
        Ok(_) => {
            cx.log(
                Level::Warn,
                Event::JobStored,
                &format!("{queue}: {refused}; the work is a job row"),
                &[("queue", queue.into())],
            );
            Ok(Placed::JobRow)
        }
        Err(error) => {
            cx.log(
                Level::Error,
                Event::AcceptFailed,
                &format!("{queue} refused and {error}; the sender must keep it"),
                &[("queue", queue.into())],
            );
            Err(Problem::unavailable(30))
        }
    }
}

/// Name of the binding of a queue: `sms-inbound` is `SMS_INBOUND`.
pub fn binding(queue: &str) -> String {
    queue.replace('-', "_").to_uppercase()
}

/// Sends `text` to `queue`; the error is a text that is safe to log.
///
/// Goes past `worker::Queue`, whose options travel through serde-wasm-bindgen: this way a send is four crossings.
pub async fn send(cx: &Cx, queue: &str, text: &str, delay_s: u32) -> Result<(), String> {
    let producer = producer(cx, queue)?;
    let options = js_sys::Object::new();
    let set = |name: &str, value: JsValue| js_sys::Reflect::set(&options, &JsValue::from_str(name), &value);
    let _ = set("contentType", JsValue::from_str("text"));
    if delay_s > 0 {
        let _ = set("delaySeconds", JsValue::from_f64(f64::from(delay_s)));
    }
    let sent = match producer.send(JsValue::from_str(text), options.into()) {
        Ok(promise) => JsFuture::from(promise).await,
        Err(error) => Err(error),
    };
    sent.map(drop).map_err(|error| {
        let message = js_sys::Reflect::get(&error, &JsValue::from_str("message")).ok().and_then(|m| m.as_string());
        ihuza_core::redact::scrub(&message.unwrap_or_else(|| "the queue refused".to_owned()))
    })
}

fn producer(cx: &Cx, queue: &str) -> Result<worker_sys::Queue, String> {
    let name = binding(queue);
    match js_sys::Reflect::get(&cx.env, &JsValue::from_str(&name)) {
        Ok(value) if value.is_object() => Ok(value.unchecked_into()),
        _ => Err(format!("no binding {name}")),
    }
}

/// Whether the producer binding of `queue` is there.
pub fn is_bound(cx: &Cx, queue: &str) -> bool {
    producer(cx, queue).is_ok()
}
