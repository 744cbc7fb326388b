//! One log event: a line of JSON with a name, a message that reads on its own, and the same values as fields.
//!
//! Building it masks phone numbers, so no shell has to remember; message text and tokens must not be handed in at all.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::json_text::to_text;
use crate::phone::{self, E164};
use crate::redact;
use crate::timestamp;

/// How much it matters: `Error` means a person must act, `Warn` that we coped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The ordinary course of things.
    Info,
    /// Something went wrong and was dealt with.
    Warn,
    /// Somebody has to look.
    Error,
}

impl Level {
    /// The word in the line.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The name of an event; contract for dashboards and tests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Event { $($(#[$doc])* $name,)* }

        impl Event {
            /// The name in the line.
            pub fn as_str(self) -> &'static str {
                match self { $(Event::$name => $text,)* }
            }
        }

        /// Every event there is.
        pub const EVENTS: &[Event] = &[$(Event::$name,)*];
    };
}

events! {
    /// A call's summary is about to be sent.
    PostCallNotifyStart = "POST_CALL_NOTIFY_START",
    /// The summary's work is recorded.
    PostCallNotifyDone = "POST_CALL_NOTIFY_DONE",
    /// There was nothing to do: a repeat, or nobody to write to.
    PostCallNotifySkipped = "POST_CALL_NOTIFY_SKIPPED",
    /// The call named is not in the database (yet).
    CallNotFound = "CALL_NOT_FOUND",
    /// Which channels carry a message, and why.
    DualChannelRouting = "DUAL_CHANNEL_ROUTING",
    /// WhatsApp accepted a message.
    WhatsappSendSuccess = "WHATSAPP_SEND_SUCCESS",
    /// WhatsApp refused a message or stayed silent.
    WhatsappSendFailed = "WHATSAPP_SEND_FAILED",
    /// The carrier accepted a message.
    SmsSendSuccess = "SMS_SEND_SUCCESS",
    /// The carrier refused a message or stayed silent.
    SmsSendFailed = "SMS_SEND_FAILED",
    /// A message was not sent on purpose.
    MessageSuppressed = "MESSAGE_SUPPRESSED",
    /// A message waits because its provider is held for down.
    MessageDeferred = "MESSAGE_DEFERRED",
    /// An SMS arrived.
    SmsInboundReceived = "SMS_INBOUND_RECEIVED",
    /// An inbound SMS cannot be answered: bad sender, short code, no text.
    SmsInboundRefused = "SMS_INBOUND_REFUSED",
    /// The edge's counter of who writes does not answer: messages are let in uncounted.
    SenderNotCounted = "SENDER_NOT_COUNTED",
    /// An inbound SMS was seen before, or is only stored.
    SmsInboundSkipped = "SMS_INBOUND_SKIPPED",
    /// A turn was answered and recorded.
    SmsTurnDone = "SMS_TURN_DONE",
    /// Somebody sent STOP, START, HELP or the choice of a channel.
    KeywordReceived = "KEYWORD_RECEIVED",
    /// A voice note was transcribed.
    VoiceNoteHeard = "VOICE_NOTE_HEARD",
    /// Nobody listens to a voice note: nothing is configured for it, or the conversation has it already.
    VoiceNoteSkipped = "VOICE_NOTE_SKIPPED",
    /// A voice note could not be fetched or transcribed.
    VoiceNoteFailed = "VOICE_NOTE_FAILED",
    /// A conversation began.
    SessionCreated = "SESSION_CREATED",
    /// A summary was made by the model.
    SummaryCreated = "SUMMARY_CREATED",
    /// The model could not be used: the plain summary goes out.
    SummaryFallback = "SUMMARY_FALLBACK",
    /// A conversation in writing was read for what is worth remembering.
    MemoriesTaken = "MEMORIES_TAKEN",
    /// Somebody who had asked for it was erased.
    PersonErased = "PERSON_ERASED",
    /// The agent answered.
    AgentReply = "AGENT_REPLY",
    /// The model could not be used: the fixed apology goes out.
    AgentFallback = "AGENT_FALLBACK",
    /// A call was opened, or found open.
    VoiceCallOpened = "VOICE_CALL_OPENED",
    /// Events of a call are in the database.
    VoiceEventsStored = "VOICE_EVENTS_STORED",
    /// A call ended and its summary is asked for where one is owed.
    VoiceCallEnded = "VOICE_CALL_ENDED",
    /// A call was not taken, or could not be.
    VoiceCallRejected = "VOICE_CALL_REJECTED",
    /// The line was asked to hand a call over.
    VoiceCallTransferred = "VOICE_CALL_TRANSFERRED",
    /// A call cannot be observed for now, or could not be ended.
    VoiceLineLost = "VOICE_LINE_LOST",
    /// A key for the model could not be had: the call goes on without.
    VoiceKeyFailed = "VOICE_KEY_FAILED",
    /// A relay told how its trunks are.
    TrunksReported = "TRUNKS_REPORTED",
    /// The agent used a tool.
    ToolCall = "TOOL_CALL",
    /// A model call failed.
    ModelFailed = "MODEL_FAILED",
    /// Delivery reports arrived.
    DeliveryStatusReceived = "DELIVERY_STATUS_RECEIVED",
    /// Delivery reports are in the database.
    DeliveryStatusApplied = "DELIVERY_STATUS_APPLIED",
    /// A report or update could not be read.
    DeliveryStatusUnreadable = "DELIVERY_STATUS_UNREADABLE",
    /// A WhatsApp webhook arrived.
    WhatsappUpdatesReceived = "WHATSAPP_UPDATES_RECEIVED",
    /// A WhatsApp message was accepted.
    WhatsappInboundReceived = "WHATSAPP_INBOUND_RECEIVED",
    /// A WhatsApp call began or ended, and is recorded.
    WhatsappCallRecorded = "WHATSAPP_CALL_RECORDED",
    /// Meta's word about a template is in the database.
    WhatsappTemplateRecorded = "WHATSAPP_TEMPLATE_RECORDED",
    /// A webhook's address was verified.
    WebhookVerified = "WEBHOOK_VERIFIED",
    /// The other channel takes over a message.
    FallbackQueued = "FALLBACK_QUEUED",
    /// Retries are about to be made.
    DeliveryRetryStart = "DELIVERY_RETRY_START",
    /// Retries are recorded.
    DeliveryRetryDone = "DELIVERY_RETRY_DONE",
    /// Whoever keeps watch was told of an alert.
    AlertTold = "ALERT_TOLD",
    /// The alert webhook did not take one; it is tried again.
    AlertNotTold = "ALERT_NOT_TOLD",
    /// The sweeper has been through.
    SweepDone = "SWEEP_DONE",
    /// A day was compared with what a carrier says of it.
    ReconciliationDone = "RECONCILIATION_DONE",
    /// A day could not be compared; it is tried again.
    ReconciliationFailed = "RECONCILIATION_FAILED",
    /// A queue message was given up and stored.
    DeadLetter = "DEAD_LETTER",
    /// The queue refused a message; it went to the database.
    JobStored = "JOB_STORED",
    /// Neither queue nor database took a message; the sender keeps it.
    AcceptFailed = "ACCEPT_FAILED",
    /// A request was refused.
    RequestRefused = "REQUEST_REFUSED",
    /// The database could not be reached or refused.
    DatabaseFailed = "DATABASE_FAILED",
    /// A queue message could not be worked on and is tried again.
    WorkRetried = "WORK_RETRIED",
    /// What should not have happened.
    InternalError = "INTERNAL_ERROR",
}

/// Longest message and longest text field, in characters.
const MAX_TEXT_CHARS: usize = 500;

/// Builds the line, without a line break at its end.
///
/// Values under keys that end in `_id` (but for `correlation_id`) or `_at` stay as they are unless they are phone numbers;
/// every other text is
/// scrubbed. Null fields are left out.
pub fn line(event: Event, level: Level, message: &str, now: DateTime<Utc>, fields: Map<String, Value>) -> String {
    let mut out = Map::new();
    out.insert("event".into(), Value::from(event.as_str()));
    out.insert("level".into(), Value::from(level.as_str()));
    out.insert("message".into(), Value::from(clean(message)));
    out.insert("at".into(), Value::from(timestamp::to_rfc3339(now)));
    for (key, value) in fields {
        let value = masked(&key, value);
        if !value.is_null() {
            out.entry(key).or_insert(value);
        }
    }
    to_text(&Value::Object(out))
}

fn masked(key: &str, value: Value) -> Value {
    match value {
        Value::String(text) => {
            // Ids that callers choose may have a number in them; those of providers are needed whole.
            let is_id = (key.ends_with("_id") && key != "correlation_id") || key.ends_with("_at");
            if !is_id {
                return Value::from(clean(&text));
            }
            match E164::parse(&text) {
                Ok(number) => Value::from(number.masked()),
                Err(_) => Value::from(crate::json::clip(&text, MAX_TEXT_CHARS)),
            }
        }
        // A number as large as a phone number: only counters of time grow that far, and they say so in their name.
        Value::Number(number)
            if number.as_i64().is_none_or(|size| size.unsigned_abs() >= 100_000_000)
                && !key.ends_with("_ms")
                && !key.ends_with("_bytes") =>
        {
            Value::from(phone::mask(&number.to_string()))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| masked(key, item)).collect()),
        Value::Object(map) => {
            let mut clean = Map::new();
            for (key, value) in map {
                clean.insert(redact::scrub(&key), masked(&key, value));
            }
            Value::Object(clean)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

fn clean(text: &str) -> String {
    redact::scrub(crate::json::clip(text, MAX_TEXT_CHARS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400, 0).unwrap()
    }

    #[test]
    fn a_number_inside_an_id_of_the_caller_is_masked_too() {
        let fields = fields(json!({
            "call_ref": "mtn-250788123456-77", "correlation_id": "tel-250788123457-1",
            "delivery_ref": "12345678-1234-4234-8234-123456789012",
        }));
        let line = line(Event::RequestRefused, Level::Info, "x", now(), fields);
        assert!(!line.contains("788123456") && !line.contains("788123457"), "{line}");
        assert!(line.contains("12345678-1234-4234-8234-123456789012"), "{line}");
    }

    #[test]
    fn a_line_reads_on_its_own_and_masks_numbers() {
        let line = line(
            Event::SmsSendFailed,
            Level::Warn,
            "mtn silent for 8 s to +250788123456",
            now(),
            fields(json!({
                "recipient": "+250788123456", "provider": "mtn", "attempt": 2, "duration_ms": 8003, "none": null,
                "correlation_id": "12345678-1234-4234-8234-123456789012", "provider_request_id": "20261121040000123",
                "wa_id": "250788123456", "raw": 250788123456_u64, "event": "FORGED",
            })),
        );
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            json!({
                "event": "SMS_SEND_FAILED", "level": "warn", "message": "mtn silent for 8 s to +25078****456",
                "at": "2026-11-21T02:00:00.000Z", "recipient": "+25078****456", "provider": "mtn", "attempt": 2,
                "duration_ms": 8003, "correlation_id": "12345678-1234-4234-8234-123456789012",
                "provider_request_id": "20261121040000123", "wa_id": "+25078****456", "raw": "25078****456",
            })
        );
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = EVENTS.iter().map(|event| event.as_str()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    proptest! {
        #[test]
        fn it_is_one_line_whatever_goes_in(message: String, key: String, value: String) {
            let mut map = Map::new();
            map.insert(key, Value::from(value));
            let text = line(Event::InternalError, Level::Error, &message, now(), map);
            prop_assert!(!text.contains('\n'));
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok());
        }
    }
}
