//! Putting work where it is safe: the queue, or, only when the queue refuses, a job row in Postgres.

use ihuza_core::{
    log::{Event, Level},
    problem::Problem,
    timestamp,
};
use js_sys::futures::JsFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wasm_bindgen::{JsCast, JsValue};
use worker::worker_sys;

use crate::{context::Cx, database, host};

/// Cloudflare takes 128 KB a message, metadata included; what is larger goes to Postgres.
pub const MESSAGE_LIMIT_BYTES: usize = 100 * 1024;

/// The form of every queue message and of a job row's payload.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Envelope {
    pub v: u8,
    pub correlation_id: String,
    /// When the work was first accepted, RFC 3339. Survives every re-queueing.
    pub first_seen_at: String,
    pub body: Value,
}

impl Envelope {
    pub fn new(correlation_id: &str, body: Value) -> Envelope {
        Envelope {
            v: 1,
            correlation_id: correlation_id.to_owned(),
            first_seen_at: timestamp::to_rfc3339(host::now()),
            body,
        }
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
    let text = serde_json::to_string(envelope).map_err(|_| Problem::unavailable(30))?;
    let refused = if text.len() > MESSAGE_LIMIT_BYTES {
        "too large for the queue".to_owned()
    } else {
        match send(cx, queue, &text, delay_s).await {
            Ok(()) => return Ok(Placed::Queue),
            Err(error) => error,
        }
    };
    let row = json!({
        "queue": queue, "payload": envelope, "reason": "queue_refused", "correlation_id": envelope.correlation_id,
    });
    match database::rpc(cx, "enqueue_job", &row).await {
        Ok(_) => {
            cx.log(
                Level::Warn,
                Event::JobStored,
                &format!("{queue}: {refused}; the work is a job row"),
                &[("queue", json!(queue))],
            );
            Ok(Placed::JobRow)
        }
        Err(error) => {
            cx.log(
                Level::Error,
                Event::AcceptFailed,
                &format!("{queue} refused and {error}; the sender must keep it"),
                &[("queue", json!(queue))],
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
        let message = js_sys::Reflect::get(&error, &JsValue::from_str("message"))
            .ok()
            .and_then(|m| m.as_string());
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
