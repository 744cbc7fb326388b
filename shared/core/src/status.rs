//! The fate of an outbound message: ranks, the order-free fold, and the words of the providers.
//!
//! The same fold exists in SQL, where it needs the row's lock; the two are tested against each other.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::channel::Provider;
use crate::error_class::{Classified, ErrorClass, Evidence, classify};
use crate::json::obj;
use crate::timestamp;

/// Where an outbound message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// Waiting for its turn.
    Queued,
    /// Claimed; an attempt may be under way.
    Sending,
    /// The provider may have accepted it: the answer was lost.
    Unknown,
    /// Accepted by the provider.
    Sent,
    /// Refused or lost for a reason that is not the recipient's.
    Failed,
    /// The recipient cannot be reached.
    Undeliverable,
    /// Given up after its deadline, by us or by the network.
    Expired,
    /// Not sent on purpose.
    Suppressed,
    /// On the handset.
    Delivered,
    /// Seen (a voice note: played).
    Read,
}

/// Every status, in the order of the enum.
pub const ALL: [DeliveryStatus; 10] = [
    DeliveryStatus::Queued,
    DeliveryStatus::Sending,
    DeliveryStatus::Unknown,
    DeliveryStatus::Sent,
    DeliveryStatus::Failed,
    DeliveryStatus::Undeliverable,
    DeliveryStatus::Expired,
    DeliveryStatus::Suppressed,
    DeliveryStatus::Delivered,
    DeliveryStatus::Read,
];

impl DeliveryStatus {
    /// The higher rank wins: an end beats a beginning, and proof of arrival beats every report of failure.
    pub fn rank(self) -> u8 {
        match self {
            DeliveryStatus::Queued => 0,
            DeliveryStatus::Sending => 1,
            DeliveryStatus::Unknown => 2,
            DeliveryStatus::Sent => 3,
            DeliveryStatus::Failed
            | DeliveryStatus::Undeliverable
            | DeliveryStatus::Expired
            | DeliveryStatus::Suppressed => 4,
            DeliveryStatus::Delivered => 5,
            DeliveryStatus::Read => 6,
        }
    }

    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryStatus::Queued => "queued",
            DeliveryStatus::Sending => "sending",
            DeliveryStatus::Unknown => "unknown",
            DeliveryStatus::Sent => "sent",
            DeliveryStatus::Failed => "failed",
            DeliveryStatus::Undeliverable => "undeliverable",
            DeliveryStatus::Expired => "expired",
            DeliveryStatus::Suppressed => "suppressed",
            DeliveryStatus::Delivered => "delivered",
            DeliveryStatus::Read => "read",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<DeliveryStatus> {
        ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// One thing that is known to have happened to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusEvent {
    /// What happened.
    pub status: DeliveryStatus,
    /// When, by the clock of whoever reports it.
    pub occurred_at: DateTime<Utc>,
}

/// Folds events into where the message stands: the same for any order and any repetition; nothing for no events.
///
/// The highest rank wins; among equals the earliest `occurred_at`, then the name.
pub fn fold(events: impl IntoIterator<Item = StatusEvent>) -> Option<StatusEvent> {
    events.into_iter().min_by_key(|event| (Reverse(event.status.rank()), event.occurred_at, event.status.as_str()))
}

/// MTN's words: SMS V3 and its SMPP spellings, V2 (OneAPI) and V1.
pub fn from_mtn(word: &str) -> Option<DeliveryStatus> {
    let word = word.trim();
    if let Some(status) = from_oneapi(word) {
        return Some(status);
    }
    let status = match word.to_ascii_uppercase().as_str() {
        // `UNKNOWN` says that the network has lost track, not that the message failed.
        "ACCEPTD" | "ACCEPTED" | "ENROUTE" | "PENDING" | "SENT" | "SUBMITTED" | "UNKNOWN" => DeliveryStatus::Sent,
        "DELIVERED" | "DELIVRD" => DeliveryStatus::Delivered,
        "READ" => DeliveryStatus::Read,
        "EXPIRED" => DeliveryStatus::Expired,
        "UNDELIVERED" | "UNDELIV" | "UNDELIVERABLE" => DeliveryStatus::Undeliverable,
        "REJECTED" | "REJECTD" | "DELETED" | "FAILED" => DeliveryStatus::Failed,
        _ => return None,
    };
    Some(status)
}

/// The words of GSMA OneAPI, which MTN's V2 and other carriers use.
pub fn from_oneapi(word: &str) -> Option<DeliveryStatus> {
    let status = match word.trim() {
        "DeliveredToTerminal" => DeliveryStatus::Delivered,
        "DeliveredToNetwork" | "MessageWaiting" | "DeliveryUncertain" | "DeliveryNotificationNotSupported" => {
            DeliveryStatus::Sent
        }
        "DeliveryImpossible" => DeliveryStatus::Undeliverable,
        _ => return None,
    };
    Some(status)
}

/// WhatsApp's words; a voice note's `played` is `read`.
pub fn from_whatsapp(word: &str) -> Option<DeliveryStatus> {
    let status = match word.trim() {
        "sent" => DeliveryStatus::Sent,
        "delivered" => DeliveryStatus::Delivered,
        "read" | "played" => DeliveryStatus::Read,
        "failed" => DeliveryStatus::Failed,
        _ => return None,
    };
    Some(status)
}

/// Twilio's words (Twilio docs, messaging/api/message-resource, "Message Status Values"). Those of inbound messages and of
/// group messages that arrived in part are none of ours.
pub fn from_twilio(word: &str) -> Option<DeliveryStatus> {
    let status = match word.trim().to_ascii_lowercase().as_str() {
        "accepted" | "scheduled" | "queued" => DeliveryStatus::Queued,
        "sending" => DeliveryStatus::Sending,
        "sent" => DeliveryStatus::Sent,
        "delivered" => DeliveryStatus::Delivered,
        "read" => DeliveryStatus::Read,
        "undelivered" | "failed" | "canceled" => DeliveryStatus::Failed,
        _ => return None,
    };
    Some(status)
}

/// Africa's Talking's words (docs.africastalking.com, sms/deliveryreports).
pub fn from_africas_talking(word: &str) -> Option<DeliveryStatus> {
    let status = match word.trim().to_ascii_lowercase().as_str() {
        "sent" | "submitted" | "buffered" => DeliveryStatus::Sent,
        "success" => DeliveryStatus::Delivered,
        "rejected" | "failed" => DeliveryStatus::Failed,
        "absentsubscriber" => DeliveryStatus::Undeliverable,
        "expired" => DeliveryStatus::Expired,
        _ => return None,
    };
    Some(status)
}

/// What the code of a message that failed means; nothing for one that did not. A code that no table has is `unknown`.
pub fn failure(provider: Provider, status: DeliveryStatus, code: Option<&str>) -> Option<Classified> {
    match status {
        DeliveryStatus::Failed | DeliveryStatus::Undeliverable | DeliveryStatus::Expired => {
            Some(classify(provider, Some(200), code))
        }
        DeliveryStatus::Queued
        | DeliveryStatus::Sending
        | DeliveryStatus::Unknown
        | DeliveryStatus::Sent
        | DeliveryStatus::Suppressed
        | DeliveryStatus::Delivered
        | DeliveryStatus::Read => None,
    }
}

/// A report of a carrier that reports on one message at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What it says.
    pub event: DeliveryEvent,
    /// Whether its word is in our table. One that is not is kept as `unknown`, which changes nothing of a message that
    /// was sent, with the word beside it.
    pub known: bool,
}

/// One provider report, normalised: an item of `events` in the RPC `record_delivery_events`, and a queue message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeliveryEvent {
    /// Who reports.
    pub provider: Provider,
    /// The provider's id of the message, if the report has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_message_id: Option<String>,
    /// Our delivery id, echoed by the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_ref: Option<String>,
    /// What happened.
    pub status: DeliveryStatus,
    /// When, by the provider's clock; the time of arrival where it gives none.
    #[serde(with = "crate::timestamp::rfc3339")]
    pub occurred_at: DateTime<Utc>,
    /// The provider's own time, where that lies in our future and is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::timestamp::rfc3339_or_none")]
    pub reported_at: Option<DateTime<Utc>>,
    /// The provider gave no time: the same report again is the same event, however much later it comes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_arrival: bool,
    /// The provider's error code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// What the code means to us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_class: Option<ErrorClass>,
    /// What the code says about the recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// The provider's own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_status: Option<String>,
    /// What the provider says about the price: the fields that we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pricing: Option<Value>,
}

impl DeliveryEvent {
    /// As `record_delivery_events` takes it; what is absent is left out.
    pub fn to_value(&self) -> Value {
        let mut event = obj(&mut [
            ("provider", self.provider.into()),
            ("provider_message_id", (&self.provider_message_id).into()),
            ("delivery_ref", (&self.delivery_ref).into()),
            ("status", self.status.as_str().into()),
            ("occurred_at", timestamp::to_rfc3339(self.occurred_at).into()),
            ("reported_at", self.reported_at.map(timestamp::to_rfc3339).into()),
            ("by_arrival", self.by_arrival.then_some(true).into()),
            ("error_code", (&self.error_code).into()),
            ("error_class", self.error_class.map(ErrorClass::as_str).into()),
            ("evidence", self.evidence.map(Evidence::as_str).into()),
            ("raw_status", (&self.raw_status).into()),
            ("pricing", self.pricing.as_ref().into()),
        ]);
        if let Some(fields) = event.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400 + seconds, 0).unwrap()
    }

    fn event(word: &str, seconds: i64) -> StatusEvent {
        StatusEvent { status: DeliveryStatus::parse(word).unwrap(), occurred_at: at(seconds) }
    }

    #[track_caller]
    fn check(events: &[(&str, i64)], expected: &str) {
        let folded = fold(events.iter().map(|(word, seconds)| event(word, *seconds)));
        assert_eq!(folded.map_or("nothing", |event| event.status.as_str()), expected);
    }

    #[test]
    fn a_late_sent_does_not_undo_delivered() {
        check(&[("queued", 0), ("delivered", 5), ("sent", 9)], "delivered");
        check(&[("sent", 9), ("read", 7), ("delivered", 8)], "read");
    }

    #[test]
    fn arrival_beats_every_report_of_failure() {
        check(&[("failed", 1), ("delivered", 2)], "delivered");
        check(&[("delivered", 1), ("undeliverable", 2)], "delivered");
    }

    #[test]
    fn among_failures_the_earliest_counts_then_the_name() {
        check(&[("undeliverable", 2), ("failed", 1)], "failed");
        check(&[("undeliverable", 1), ("failed", 1), ("expired", 1)], "expired");
    }

    #[test]
    fn a_failure_beats_sent_and_unknown_is_below_sent() {
        check(&[("sent", 1), ("failed", 2)], "failed");
        check(&[("unknown", 3), ("sent", 1)], "sent");
        check(&[], "nothing");
    }

    #[test]
    fn every_word_of_the_sheets_is_known() {
        for (read, words) in [
            (
                from_mtn as fn(&str) -> Option<DeliveryStatus>,
                &[
                    "ACCEPTD",
                    "ENROUTE",
                    "DELIVERED",
                    "DELIVRD",
                    "EXPIRED",
                    "UNDELIVERED",
                    "UNDELIV",
                    "REJECTED",
                    "REJECTD",
                    "DELETED",
                    "UNKNOWN",
                    "DeliveredToTerminal",
                    "DeliveredToNetwork",
                    "MessageWaiting",
                    "DeliveryUncertain",
                    "DeliveryImpossible",
                    "DeliveryNotificationNotSupported",
                    "PENDING",
                    "SENT",
                    "UNDELIVERABLE",
                    "READ",
                ] as &[&str],
            ),
            (from_whatsapp, &["sent", "delivered", "read", "played", "failed"]),
            (
                from_twilio,
                &[
                    "accepted",
                    "scheduled",
                    "queued",
                    "sending",
                    "sent",
                    "delivered",
                    "read",
                    "undelivered",
                    "failed",
                    "canceled",
                ],
            ),
            (
                from_africas_talking,
                &["Sent", "Submitted", "Buffered", "Success", "Rejected", "Failed", "AbsentSubscriber", "Expired"],
            ),
        ] {
            for word in words {
                assert!(read(word).is_some(), "{word}");
            }
            assert_eq!(read("nonsense"), None);
        }
        assert_eq!(from_mtn("DELIVRD"), Some(DeliveryStatus::Delivered));
        assert_eq!(from_mtn("UNKNOWN"), Some(DeliveryStatus::Sent));
        assert_eq!(from_whatsapp("played"), Some(DeliveryStatus::Read));
        assert_eq!(from_twilio("undelivered"), Some(DeliveryStatus::Failed));
        assert_eq!(from_twilio("receiving"), None, "a word of inbound messages");
        assert_eq!(from_africas_talking("AbsentSubscriber"), Some(DeliveryStatus::Undeliverable));
        assert_eq!(from_africas_talking("Success"), Some(DeliveryStatus::Delivered));
    }

    #[test]
    fn an_event_keeps_its_shape_in_json() {
        let event = DeliveryEvent {
            provider: Provider::Mtn,
            provider_message_id: None,
            delivery_ref: Some("7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11".into()),
            status: DeliveryStatus::Delivered,
            occurred_at: at(0),
            error_code: None,
            error_class: None,
            evidence: None,
            raw_status: Some("DELIVRD".into()),
            pricing: None,
            reported_at: None,
            by_arrival: false,
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            "{\"provider\":\"mtn\",\"delivery_ref\":\"7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11\",\"status\":\"delivered\",\
             \"occurred_at\":\"2026-11-21T02:00:00.000Z\",\"raw_status\":\"DELIVRD\"}"
        );
        assert_eq!(serde_json::from_str::<DeliveryEvent>(&text).unwrap(), event);
    }

    fn any_event() -> impl Strategy<Value = StatusEvent> {
        (0_usize..ALL.len(), 0_i64..5)
            .prop_map(|(index, seconds)| StatusEvent { status: ALL[index], occurred_at: at(seconds) })
    }

    proptest! {
        #[test]
        fn the_fold_is_the_same_for_any_order_and_any_repetition(
            events in prop::collection::vec(any_event(), 0..8),
            order in prop::collection::vec(0_usize..8, 0..40),
        ) {
            let once = fold(events.iter().copied());
            let mut shuffled: Vec<StatusEvent> =
                order.iter().filter_map(|index| events.get(*index).copied()).collect();
            shuffled.extend(events.iter().rev());
            prop_assert_eq!(fold(shuffled), once);
        }

        #[test]
        fn one_more_event_never_lowers_the_rank(events in prop::collection::vec(any_event(), 1..8), more in any_event()) {
            let before = fold(events.iter().copied()).unwrap().status.rank();
            let after = fold(events.into_iter().chain([more])).unwrap().status.rank();
            prop_assert!(after >= before);
        }

        #[test]
        fn folding_in_parts_is_folding_at_once(a in prop::collection::vec(any_event(), 0..6), b in prop::collection::vec(any_event(), 0..6)) {
            let parts = fold(fold(a.iter().copied()).into_iter().chain(fold(b.iter().copied())));
            prop_assert_eq!(parts, fold(a.into_iter().chain(b)));
        }
    }
}
