//! One message to one carrier: sends it, says in one JSON object what happened. The only way out of the system.

use chrono::{DateTime, TimeDelta, Utc};
use ihuza_core::{
    channel::{Channel, Provider},
    error_class::{ErrorClass, Evidence},
    json::{obj, str_at},
    log::{Event, Level},
    phone, quiet_hours, retry,
    send::{Accepted, Refused},
    timestamp,
};
use serde_json::Value;

use crate::{at_once, claim::Gates, context::Cx, database, host, mtn, queue, whatsapp};

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
    /// What the carrier is given: `{text, service_code}` for SMS; `{kind: "text", text}` or `{kind: "template", ...}` for WhatsApp.
    pub payload: Value,
    pub deadline_at: DateTime<Utc>,
    /// The first is 1.
    pub attempt: u32,
    /// Of the work that the message belongs to; what happens to it is told under this id, whoever sends it.
    pub correlation_id: String,
}

impl Message {
    pub fn provider(&self) -> Provider {
        match self.channel {
            Channel::Whatsapp => Provider::Whatsapp,
            // Voice is never sent; a row that says so is sent as text.
            Channel::Sms | Channel::Voice => Provider::Mtn,
        }
    }

    /// The row that `finish_*` inserts, with what became of its attempt.
    pub fn row(&self, content: &str, encoding: Option<&str>, segments: Option<usize>, attempt: Value) -> Value {
        obj(&mut [
            ("id", (&self.id).into()),
            ("channel", self.channel.into()),
            ("provider", self.provider().into()),
            ("recipient", (&self.recipient).into()),
            ("sender", (&self.sender).into()),
            ("purpose", (&self.purpose).into()),
            ("content", content.into()),
            ("payload", (&self.payload).into()),
            ("encoding", encoding.into()),
            ("segments", segments.into()),
            ("deadline_at", timestamp::to_rfc3339(self.deadline_at).into()),
            ("attempt", attempt.into()),
        ])
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
        Refusal { refused, retry_after: None }
    }
}

/// What came of handing a message to a carrier.
pub type Handed = Result<Accepted, Refusal>;

/// Sends `message` unless the breaker of its provider is open; the answer is an `attempt` object of the RPCs.
pub async fn attempt(cx: &Cx, gates: &Gates, message: &Message) -> Value {
    let cx = &cx.for_work(&message.correlation_id);
    let started = host::now();
    if let Some(open_until) = gates.open_until(message.provider().as_str()) {
        return deferred(cx, message, open_until, started);
    }
    let handed = match message.channel {
        Channel::Whatsapp => whatsapp::send(cx, message).await,
        Channel::Sms | Channel::Voice => mtn::send(cx, message).await,
    };
    let finished = host::now();
    let mut report = match handed {
        Ok(accepted) => accepted_report(cx, message, &accepted, finished - started),
        Err(refusal) => refused_report(cx, message, &refusal, started, finished),
    };
    if let Some(fields) = report.as_object_mut() {
        fields.insert("attempt".to_owned(), message.attempt.into());
        fields.insert("started_at".to_owned(), timestamp::to_rfc3339(started).into());
        fields.insert("finished_at".to_owned(), timestamp::to_rfc3339(finished).into());
        fields.insert("duration_ms".to_owned(), (finished - started).num_milliseconds().into());
    }
    report
}

/// The message waits until its provider may be tried again, and a little longer, so that not all come at once.
fn deferred(cx: &Cx, message: &Message, open_until: &str, now: DateTime<Utc>) -> Value {
    let spread = TimeDelta::milliseconds((host::dice() * 10_000.0) as i64);
    let next = timestamp::parse_rfc3339(open_until).unwrap_or(now + TimeDelta::seconds(30)) + spread;
    log(cx, message, Level::Warn, Event::MessageDeferred, "the provider's breaker is open; the message waits", None);
    wait(message, "breaker_open", next, now)
}

/// The message waits for the end of its recipient's quiet hours, and up to two minutes longer: many nights end at the same time.
pub fn hold_back(cx: &Cx, message: &Message, until: DateTime<Utc>, now: DateTime<Utc>) -> Value {
    let cx = &cx.for_work(&message.correlation_id);
    let spread = TimeDelta::milliseconds((host::dice() * 120_000.0) as i64);
    log(cx, message, Level::Info, Event::MessageDeferred, "it is night where the person is; the message waits", None);
    wait(message, quiet_hours::REASON, until + spread, now)
}

fn wait(message: &Message, reason: &str, next: DateTime<Utc>, now: DateTime<Utc>) -> Value {
    let at = timestamp::to_rfc3339(now);
    obj(&mut [
        ("attempt", message.attempt.into()),
        ("outcome", "deferred".into()),
        ("error_reason", reason.into()),
        ("started_at", (&at).into()),
        ("finished_at", (&at).into()),
        ("next_attempt_at", timestamp::to_rfc3339(next.min(message.deadline_at)).into()),
    ])
}

fn accepted_report(cx: &Cx, message: &Message, accepted: &Accepted, took: TimeDelta) -> Value {
    let event = match message.channel {
        Channel::Whatsapp => Event::WhatsappSendSuccess,
        Channel::Sms | Channel::Voice => Event::SmsSendSuccess,
    };
    log(cx, message, Level::Info, event, "the provider accepted the message", Some(took));
    obj(&mut [
        ("outcome", "accepted".into()),
        ("provider_message_id", (&accepted.provider_message_id).into()),
        ("provider_request_id", (&accepted.provider_request_id).into()),
    ])
}

fn refused_report(cx: &Cx, message: &Message, refusal: &Refusal, started: DateTime<Utc>, now: DateTime<Utc>) -> Value {
    let Refused { http_status, error_code, provider_request_id, classified } = &refusal.refused;
    let next = next_attempt(cx, message, refusal, now).map(timestamp::to_rfc3339);
    let event = match message.channel {
        Channel::Whatsapp => Event::WhatsappSendFailed,
        Channel::Sms | Channel::Voice => Event::SmsSendFailed,
    };
    let level = match classified.class {
        ErrorClass::Config | ErrorClass::Bug => Level::Error,
        ErrorClass::Retryable | ErrorClass::Permanent | ErrorClass::Unknown => Level::Warn,
    };
    let mut said = [classified.class.as_str(), ": ", classified.reason].concat();
    if let Some(code) = error_code {
        said.extend([", code ", code]);
    }
    if let Some(next) = &next {
        said.extend([", next at ", next]);
    }
    log(cx, message, level, event, &said, Some(now - started));
    obj(&mut [
        ("outcome", classified.class.as_str().into()),
        ("provider_request_id", provider_request_id.into()),
        ("http_status", (*http_status).into()),
        ("error_code", error_code.into()),
        ("error_reason", classified.reason.into()),
        ("retry_after_s", refusal.retry_after.map(|wait| wait.num_seconds()).into()),
        ("next_attempt_at", (&next).into()),
        ("breaker", classified.breaker.into()),
        ("evidence", classified.evidence.map(Evidence::as_str).into()),
    ])
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
    // Too many messages to one person: only that person's messages wait, and for as long as Meta says (4^n s).
    if refusal.refused.error_code.as_deref() == Some("131056") {
        return policy.not_before(retry::pair_rate_wait(message.attempt), now).at();
    }
    policy.next(message.attempt, refusal.retry_after, now, host::dice()).at()
}

fn log(cx: &Cx, message: &Message, level: Level, event: Event, said: &str, took: Option<TimeDelta>) {
    cx.log(
        level,
        event,
        said,
        &[
            ("provider", message.provider().into()),
            ("channel", message.channel.into()),
            ("delivery_id", (&message.id).into()),
            ("attempt", message.attempt.into()),
            ("recipient", phone::mask(&message.recipient).into()),
            ("duration_ms", took.map(|took| took.num_milliseconds()).into()),
        ],
    );
}

/// Records what has been done with an RPC that must not be lost: where the database does not answer, the queue
/// `delivery-retry` keeps the call and makes it later.
pub async fn record(cx: &Cx, rpc: &'static str, p: &Value) -> Option<Value> {
    let error = match database::rpc(cx, rpc, p).await {
        Ok(answer) => return Some(answer),
        Err(error) => error,
    };
    let envelope = queue::Envelope::new(
        &cx.correlation_id,
        obj(&mut [("kind", "record".into()), ("rpc", rpc.into()), ("p", p.into())]),
    );
    let kept = queue::place(cx, "delivery-retry", &envelope, 5).await.is_ok();
    let outcome = if kept {
        "the queue will record it later"
    } else {
        "the lease will run out and its outcome counts as unknown"
    };
    cx.log(Level::Error, Event::DatabaseFailed, &format!("{rpc}: {error}; {outcome}"), &[("rpc", rpc.into())]);
    None
}

/// Sends off the deliveries that the database made on another channel, at once rather than at the next sweep.
pub async fn dispatch_fallbacks(cx: &Cx, answer: &Value) {
    let Some(fallbacks) = answer.get("fallbacks").and_then(Value::as_array) else {
        return;
    };
    at_once::all(fallbacks.iter().filter_map(|fallback| Some((fallback, fallback.get("id")?))).map(
        |(fallback, id)| async move {
            // Under the id of the work, whoever found out that the other channel must carry it.
            let cx = &str_at(fallback, "correlation_id").map_or_else(|| cx.clone(), |work| cx.for_work(work));
            let envelope = queue::Envelope::new(
                &cx.correlation_id,
                obj(&mut [("kind", "send".into()), ("delivery_id", id.into())]),
            );
            // Not placed is not lost: the delivery is due in the database, and the next sweep finds it.
            if queue::place(cx, "delivery-retry", &envelope, 0).await.is_ok() {
                cx.log(
                    Level::Info,
                    Event::FallbackQueued,
                    "the other channel carries the message",
                    &[("delivery_id", id.into())],
                );
            }
        },
    ))
    .await;
}
