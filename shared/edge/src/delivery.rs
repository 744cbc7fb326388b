//! One message to one carrier: sends it, says in one JSON object what happened. The only way out of the system.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use ihuza_core::{
    channel::{Channel, Provider},
    error_class::{ErrorClass, Evidence},
    log::{Event, Level},
    phone, retry,
    send::{Accepted, Refused},
    timestamp,
};
use serde_json::{Value, json};

use crate::{claim::Gates, context::Cx, database, host, mtn, queue, whatsapp};

/// A message that is to go out on one channel, as it stands in `message_delivery_log`.
#[derive(Debug, Clone)]
pub struct Message {
    /// Also the correlator that the carrier gets (`clientCorrelatorId`, `biz_opaque_callback_data`).
    pub id: String,
    pub channel: Channel,
    /// E.164, whole.
    pub recipient: String,
    pub sender: String,
    /// `call_summary`, `reply` or `keyword`.
    pub purpose: String,
    /// What the carrier is given: `{text}` for SMS; `{kind: "text", text}` or `{kind: "template", ...}` for WhatsApp.
    pub payload: Value,
    pub deadline_at: DateTime<Utc>,
    /// The first is 1.
    pub attempt: u32,
}

impl Message {
    pub fn provider(&self) -> Provider {
        match self.channel {
            Channel::Whatsapp => Provider::Whatsapp,
            // Voice is never sent; a row that says so is sent as text.
            Channel::Sms | Channel::Voice => Provider::Mtn,
        }
    }

    /// The row that `finish_*` inserts, without its attempt.
    pub fn row(&self, content: &str, encoding: Option<&str>, segments: Option<usize>) -> Value {
        json!({
            "id": self.id,
            "channel": self.channel.as_str(),
            "provider": self.provider().as_str(),
            "recipient": self.recipient,
            "sender": self.sender,
            "purpose": self.purpose,
            "content": content,
            "payload": self.payload,
            "encoding": encoding,
            "segments": segments,
            "deadline_at": timestamp::to_rfc3339(self.deadline_at),
        })
    }
}

/// Why a carrier did not take a request, or why nobody knows; and how long it wants us to wait.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub refused: Refused,
    pub retry_after: Option<TimeDelta>,
}

impl Refusal {
    pub fn of(refused: Refused) -> Refusal {
        Refusal {
            refused,
            retry_after: None,
        }
    }
}

/// What came of handing a message to a carrier.
pub type Handed = Result<Accepted, Refusal>;

/// Sends `message` unless the breaker of its provider is open; the answer is an `attempt` object of the RPCs.
pub async fn attempt(cx: &Cx, gates: &Gates, message: &Message) -> Value {
    let provider = message.provider();
    let started = host::now();
    if let Some(open_until) = gates.open_until(provider.as_str()) {
        let spread = TimeDelta::milliseconds((host::dice() * 10_000.0) as i64);
        let next = timestamp::parse_rfc3339(open_until).unwrap_or(started + TimeDelta::seconds(30)) + spread;
        cx.log(
            Level::Warn,
            Event::MessageDeferred,
            &format!("the breaker of {} is open; the message waits", provider.as_str()),
            &about(message),
        );
        return json!({
            "attempt": message.attempt, "outcome": "deferred", "error_reason": "breaker_open",
            "started_at": timestamp::to_rfc3339(started), "finished_at": timestamp::to_rfc3339(started),
            "next_attempt_at": timestamp::to_rfc3339(next.min(message.deadline_at)),
        });
    }
    let outcome = match message.channel {
        Channel::Whatsapp => whatsapp::send(cx, message).await,
        Channel::Sms | Channel::Voice => mtn::send(cx, message).await,
    };
    let finished = host::now();
    let duration_ms = (finished - started).num_milliseconds();
    let mut report = json!({
        "attempt": message.attempt,
        "started_at": timestamp::to_rfc3339(started),
        "finished_at": timestamp::to_rfc3339(finished),
        "duration_ms": duration_ms,
    });
    let mut add = |name: &str, value: Value| {
        if let Some(object) = report.as_object_mut() {
            object.insert(name.to_owned(), value);
        }
    };
    let mut fields = about(message);
    fields.push(("duration_ms", json!(duration_ms)));
    let event = |success| match (message.channel, success) {
        (Channel::Whatsapp, true) => Event::WhatsappSendSuccess,
        (Channel::Whatsapp, false) => Event::WhatsappSendFailed,
        (_, true) => Event::SmsSendSuccess,
        (_, false) => Event::SmsSendFailed,
    };
    match outcome {
        Ok(accepted) => {
            cx.log(
                Level::Info,
                event(true),
                &format!("{} accepted the message in {duration_ms} ms", provider.as_str()),
                &fields,
            );
            add("outcome", json!("accepted"));
            add("provider_message_id", json!(accepted.provider_message_id));
            add("provider_request_id", json!(accepted.provider_request_id));
        }
        Err(refusal) => {
            let Refused {
                http_status,
                error_code,
                provider_request_id,
                classified,
            } = &refusal.refused;
            let class = classified.class;
            let next = next_attempt(cx, message, &refusal, finished);
            let when = next.map_or_else(
                || "not again".to_owned(),
                |at| format!("next at {}", timestamp::to_rfc3339(at)),
            );
            fields.push(("class", json!(class.as_str())));
            fields.push(("code", json!(error_code)));
            let level = if matches!(class, ErrorClass::Config | ErrorClass::Bug) {
                Level::Error
            } else {
                Level::Warn
            };
            let reason = classified.reason;
            cx.log(
                level,
                event(false),
                &format!("{}: {reason}, attempt {}, {when}", provider.as_str(), message.attempt),
                &fields,
            );
            add("outcome", json!(class.as_str()));
            add("provider_request_id", json!(provider_request_id));
            add("http_status", json!(http_status));
            add("error_code", json!(error_code));
            add("error_reason", json!(reason));
            add(
                "retry_after_s",
                json!(refusal.retry_after.map(|wait| wait.num_seconds())),
            );
            add("next_attempt_at", json!(next.map(timestamp::to_rfc3339)));
            add("evidence", json!(classified.evidence.map(Evidence::as_str)));
        }
    }
    report
}

/// When a refused message is tried again; only `retryable` is decided here, the other classes by the database.
fn next_attempt(cx: &Cx, message: &Message, refusal: &Refusal, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if refusal.refused.classified.class != ErrorClass::Retryable {
        return None;
    }
    let policy = retry::Policy {
        base: TimeDelta::seconds(i64::from(cx.config.number("RETRY_BASE_SECONDS"))),
        cap: TimeDelta::hours(1),
        deadline: message.deadline_at,
    };
    match policy.next(message.attempt, refusal.retry_after, now, host::dice()) {
        retry::Next::RetryAt(at) => Some(at),
        retry::Next::GiveUp => None,
    }
}

fn about(message: &Message) -> Vec<(&'static str, Value)> {
    vec![
        ("provider", json!(message.provider().as_str())),
        ("channel", json!(message.channel.as_str())),
        ("delivery_id", json!(message.id)),
        ("attempt", json!(message.attempt)),
        ("recipient", json!(phone::mask(&message.recipient))),
    ]
}

/// Records what has been done with an RPC that must not be lost: where the database does not answer, the queue
/// `delivery-retry` keeps the call and makes it later.
pub async fn record(cx: &Cx, rpc: &'static str, p: &Value) -> Option<Value> {
    let error = match database::rpc(cx, rpc, p).await {
        Ok(answer) => return Some(answer),
        Err(error) => error,
    };
    let envelope = queue::Envelope::new(&cx.correlation_id, json!({ "kind": "record", "rpc": rpc, "p": p }));
    let kept = queue::place(cx, "delivery-retry", &envelope, 5).await.is_ok();
    let outcome = if kept {
        "the queue will record it later"
    } else {
        "the lease will run out and its outcome counts as unknown"
    };
    cx.log(
        Level::Error,
        Event::DatabaseFailed,
        &format!("{rpc}: {error}; {outcome}"),
        &[("rpc", json!(rpc))],
    );
    None
}

/// Sends off the deliveries that the database made on another channel, at once rather than at the next sweep.
pub async fn dispatch_fallbacks(cx: &Cx, answer: &Value) {
    let Some(fallbacks) = answer.get("fallbacks").and_then(Value::as_array) else {
        return;
    };
    join_all(
        fallbacks
            .iter()
            .filter_map(|fallback| fallback.get("id"))
            .map(|id| async move {
                let envelope = queue::Envelope::new(&cx.correlation_id, json!({ "kind": "send", "delivery_id": id }));
                // Not placed is not lost: the delivery is due in the database, and the next sweep finds it.
                if queue::place(cx, "delivery-retry", &envelope, 0).await.is_ok() {
                    cx.log(
                        Level::Info,
                        Event::FallbackQueued,
                        "the other channel carries the message",
                        &[("delivery_id", id.clone())],
                    );
                }
            }),
    )
    .await;
}
