//! Putting work where it is safe: the queue, or, only when the queue refuses, a job row in Postgres.

use ihuza_core::{
    json::{obj, string_at, u32_at},
    json_text::to_text,
    log::{Event, Level},
    problem::Problem,
    redact, timestamp,
};
use js_sys::futures::JsFuture;
use serde_json::Value;

use crate::{context::Cx, database, host, shell};

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

/// Puts `envelope` on `queue`, else into Postgres, else answers 503 with `Retry-After` so that the sender keeps it.
pub async fn place(cx: &Cx, queue: &'static str, envelope: &Envelope, delay_s: u32) -> Result<(), Problem> {
    let payload = envelope.to_value();
    let text = to_text(&payload);
    if text.len() > MESSAGE_LIMIT_BYTES {
        return store(cx, queue, payload, "too large for the queue").await;
    }
    match send(cx, queue, &text, delay_s).await {
        Ok(()) => Ok(()),
        Err(refused) => store(cx, queue, payload, &refused).await,
    }
}

/// Keeps the payload of a message that `queue` has not taken as a job row; the next sweep brings it.
pub async fn store(cx: &Cx, queue: &str, payload: Value, refused: &str) -> Result<(), Problem> {
    let row = obj(&mut [
        ("queue", queue.into()),
        ("payload", payload.into()),
        ("reason", "queue_refused".into()),
        ("correlation_id", (&cx.correlation_id).into()),
    ]);
    match database::rpc(cx, "enqueue_job", &row).await {
        Ok(_) => {
            cx.log(
                Level::Warn,
                Event::JobStored,
                &format!("{queue}: {refused}; the work is a job row"),
                &[("queue", queue.into())],
            );
            Ok(())
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
    queue.replace('-', "_").to_ascii_uppercase()
}

/// The queue of a binding.
pub fn of_binding(binding: &str) -> String {
    binding.replace('_', "-").to_ascii_lowercase()
}

/// Sends `text` to `queue`; the error is a text that is safe to log.
pub async fn send(cx: &Cx, queue: &str, text: &str, delay_s: u32) -> Result<(), String> {
    let said = JsFuture::from(shell::enqueue(&cx.env, &binding(queue), text, delay_s)).await;
    match said.ok().and_then(|said| said.as_string()).as_deref() {
        Some("") => Ok(()),
        said => Err(redact::scrub(said.unwrap_or("the queue refused"))),
    }
}

/// Whether the producer binding of `queue` is there.
pub fn is_bound(cx: &Cx, queue: &str) -> bool {
    let value = js_sys::Reflect::get(&cx.env, &binding(queue).into());
    value.is_ok_and(|value| value.is_object())
}
