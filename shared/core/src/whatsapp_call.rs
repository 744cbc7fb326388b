//! Calls over WhatsApp as Meta's webhooks tell of them: that one began, and how it ended.
//!
//! Meta: whatsapp/calling/user-initiated-calls, /reference. Nobody here answers such a call yet; its record is kept.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::json::{clip, field, obj, text};
use crate::phone::E164;
use crate::timestamp;
use crate::whatsapp_message::{self, Sender};

/// What happened to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// Somebody calls.
    Connect,
    /// It is over, however.
    Terminate,
}

/// One webhook item about a call.
#[derive(Debug, Clone, PartialEq)]
pub struct CallEvent {
    /// Meta's id of the call, `wacid....`.
    pub call_sid: String,
    /// What happened.
    pub happened: Happened,
    /// We called, with the person's permission.
    pub outbound: bool,
    /// The person.
    pub person: Sender,
    /// The id of our number.
    pub to: String,
    /// When it happened, by Meta's clock; else when it arrived.
    pub occurred_at: DateTime<Utc>,
    /// When it was picked up; absent: it never was.
    pub answered_at: Option<DateTime<Utc>>,
    /// Seconds from picking up to the end.
    pub duration_seconds: Option<u32>,
    /// Meta says `FAILED`.
    pub failed: bool,
}

/// Longest call that is believed, in seconds: a day.
const LONGEST_S: u32 = 86_400;

/// Reads one item of `calls`; `None` if it names no call, no person or nothing that is known to happen.
pub fn read(item: &Value, contacts: &[Value], phone_number_id: &str, arrived_at: DateTime<Utc>) -> Option<CallEvent> {
    let call_sid = text(item, "id").filter(|id| !id.is_empty() && id.len() <= 512)?;
    let happened = match text(item, "event")?.to_ascii_lowercase().as_str() {
        "connect" => Happened::Connect,
        "terminate" => Happened::Terminate,
        _ => return None,
    };
    let outbound = text(item, "direction").is_some_and(|word| word.eq_ignore_ascii_case("BUSINESS_INITIATED"));
    let person = match outbound {
        false => whatsapp_message::sender(item, "from", "from_user_id", contacts)?,
        true => whatsapp_message::sender(item, "to", "to_user_id", contacts)?,
    };
    let at = |name: &str| {
        let stamp = text(item, name).and_then(|at| timestamp::parse_unix(&at))?;
        Some(timestamp::believable(stamp, arrived_at).0)
    };
    // A list of one where others have a word.
    let status = match field(item, "status") {
        Some(Value::Array(words)) => words.first().and_then(Value::as_str).map(str::to_owned),
        _ => text(item, "status"),
    };
    let duration = text(item, "duration").and_then(|seconds| seconds.parse::<u32>().ok());
    Some(CallEvent {
        call_sid,
        happened,
        outbound,
        person,
        to: clip(phone_number_id, 64).to_owned(),
        occurred_at: at("timestamp").unwrap_or(arrived_at),
        answered_at: at("start_time").filter(|_| duration.is_some_and(|seconds| seconds > 0)),
        duration_seconds: duration.map(|seconds| seconds.min(LONGEST_S)),
        failed: status.is_some_and(|word| word.eq_ignore_ascii_case("FAILED")),
    })
}

impl CallEvent {
    /// An element of `calls` of `record_whatsapp_calls`.
    pub fn to_value(&self) -> Value {
        let happened = match self.happened {
            Happened::Connect => "connect",
            Happened::Terminate => "terminate",
        };
        obj(&mut [
            ("call_sid", (&self.call_sid).into()),
            ("event", happened.into()),
            ("direction", (if self.outbound { "outbound" } else { "inbound" }).into()),
            ("phone", self.person.number.as_ref().map(E164::as_str).into()),
            ("user_id", (&self.person.user_id).into()),
            ("display_name", (&self.person.display_name).into()),
            ("phone_number_id", (&self.to).into()),
            ("occurred_at", timestamp::to_rfc3339(self.occurred_at).into()),
            ("answered_at", self.answered_at.map(timestamp::to_rfc3339).into()),
            ("duration_seconds", self.duration_seconds.into()),
            ("failed", self.failed.into()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_600, 0).unwrap()
    }

    fn item() -> Value {
        json!({"id": "wacid.HBgM", "from": "250788123456", "to": "250788000000", "event": "terminate", "direction": "USER_INITIATED",
               "timestamp": "1795226592", "status": "COMPLETED", "start_time": "1795226409", "end_time": "1795226592", "duration": 183})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut item = item();
        item[name] = value;
        item
    }

    #[test]
    fn a_call_that_was_picked_up_has_its_times() {
        let call = read(&item(), &[], "118", now()).unwrap();
        assert_eq!((call.happened, call.outbound, call.failed), (Happened::Terminate, false, false));
        assert_eq!((call.duration_seconds, call.occurred_at.timestamp()), (Some(183), 1_795_226_592));
        assert_eq!(call.answered_at.map(|at| at.timestamp()), Some(1_795_226_409));
        assert_eq!(call.to_value()["phone"], "+250788123456");
        assert_eq!(read(&with("duration", json!("183")), &[], "118", now()), Some(call));
    }

    #[test]
    fn a_missed_a_failed_and_an_outbound_call_are_told_apart() {
        let missed = json!({"id": "wacid.1", "from_user_id": "RW.704", "event": "TERMINATE", "direction": "USER_INITIATED", "status": ["Failed"]});
        let missed = read(&missed, &[], "118", now()).unwrap();
        assert_eq!((missed.failed, missed.answered_at, missed.duration_seconds), (true, None, None));
        assert_eq!((missed.person.user_id.as_deref(), missed.occurred_at), (Some("RW.704"), now()));
        let ours = json!({"id": "wacid.2", "from": "250788000000", "to": "250788123456", "event": "connect", "direction": "BUSINESS_INITIATED"});
        let ours = read(&ours, &[], "118", now()).unwrap();
        assert_eq!((ours.outbound, ours.to_value()["phone"].as_str()), (true, Some("+250788123456")));
    }

    #[test]
    fn what_names_no_call_or_nobody_is_none() {
        for broken in
            [with("id", json!(null)), with("event", json!("ring")), with("from", json!("x")), json!(3), json!({})]
        {
            assert_eq!(read(&broken, &[], "118", now()), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn no_item_panics(word: String, n: i64, flag: bool) {
            for value in [json!(word), json!(n), json!(flag), json!([word]), json!({word.as_str(): n})] {
                for name in ["id", "event", "timestamp", "start_time", "duration", "status", "from", "direction"] {
                    if let Some(call) = read(&with(name, value.clone()), std::slice::from_ref(&value), &word, now()) {
                        prop_assert!(call.duration_seconds.is_none_or(|seconds| seconds <= LONGEST_S));
                        let _ = call.to_value();
                    }
                }
            }
        }
    }
}
