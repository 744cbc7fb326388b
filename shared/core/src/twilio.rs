//! Twilio's wire formats: the status callback of a message.
//!
//! Source: Twilio docs, messaging/guides/track-outbound-message-status and messaging/api/message-resource.

use chrono::{DateTime, Utc};

use crate::channel::Provider;
use crate::error_class::{ErrorClass, Evidence};
use crate::ids::is_uuid;
use crate::problem::Problem;
use crate::status::{self, DeliveryEvent, DeliveryStatus, Report};
use crate::{callback, form};

/// Reads the parameters of a status callback. `query` is that of the address it came to, in which `ref` may be our delivery id.
///
/// A callback has no time of its own: `RawDlrDoneDate` is the carrier's, in minutes and in a zone that nobody names. It is told
/// from its repeats by message and status, as Twilio tells them.
pub fn parse_status(
    parameters: &[(String, String)],
    query: &str,
    received_at: DateTime<Utc>,
) -> Result<Report, Problem> {
    let delivery_ref = form::parse(query).into_iter().find(|(name, value)| name == "ref" && is_uuid(value));
    let sid = callback::first(parameters, &["MessageSid", "SmsSid", "SmsMessageSid"], 128);
    let word = callback::first(parameters, &["MessageStatus", "SmsStatus"], 64);
    let (Some(sid), Some(word)) = (sid, word) else {
        return Err(Problem::bad_body("no status callback in this body: it needs MessageSid and MessageStatus"));
    };
    let code = callback::first(parameters, &["ErrorCode"], 64).filter(|code| code.bytes().any(|digit| digit != b'0'));
    let known = status::from_twilio(&word);
    let mut status = known.unwrap_or(DeliveryStatus::Unknown);
    let failure = status::failure(Provider::Twilio, status, code.as_deref());
    let evidence = failure.and_then(|failure| failure.evidence);
    if matches!(evidence, Some(Evidence::OptedOut | Evidence::NotOnWhatsapp)) {
        status = DeliveryStatus::Undeliverable;
    }
    let error_class = match known {
        Some(_) => failure.map(|failure| failure.class),
        None => code.as_ref().map(|_| ErrorClass::Unknown),
    };
    let event = DeliveryEvent {
        provider: Provider::Twilio,
        provider_message_id: Some(sid),
        delivery_ref: delivery_ref.map(|(_, id)| id.to_ascii_lowercase()),
        status,
        occurred_at: received_at,
        reported_at: None,
        by_arrival: true,
        error_code: error_class.and(code),
        error_class,
        evidence,
        raw_status: Some(word),
        // "Callbacks carry no price": it comes with the reconciliation.
        pricing: None,
    };
    Ok(Report { event, known: known.is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REF: &str = "7C1E0B1E-6a0e-4d0b-9a55-1a2f0c9b7d11";

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400, 0).unwrap()
    }

    fn report(body: &str, query: &str) -> Report {
        parse_status(&form::parse(body), query, now()).unwrap()
    }

    #[test]
    fn a_callback_names_message_and_status() {
        let found = report(
            "SmsSid=SM01ab&MessageSid=SM01AB&SmsStatus=sent&MessageStatus=delivered&ErrorCode=&To=%2B250788123456",
            "",
        );
        assert!(found.known);
        let event = found.event;
        assert_eq!((event.provider_message_id.as_deref(), event.status), (Some("SM01AB"), DeliveryStatus::Delivered));
        assert_eq!((event.delivery_ref, event.error_code, event.error_class), (None, None, None));
        assert_eq!(event.raw_status.as_deref(), Some("delivered"));
        assert_eq!((event.occurred_at, event.by_arrival), (now(), true));
    }

    #[test]
    fn the_address_may_name_our_delivery() {
        let body = "MessageSid=SM1&MessageStatus=sent";
        let of = |query: &str| report(body, query).event.delivery_ref;
        assert_eq!(of(&format!("a=1&ref={REF}")).as_deref(), Some(REF.to_ascii_lowercase().as_str()));
        assert_eq!(of("ref=1"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn an_error_is_classified_by_its_code_and_an_unmapped_one_is_unknown() {
        let of = |code: &str| {
            let event = report(&format!("MessageSid=SM1&MessageStatus=undelivered&ErrorCode={code}"), "").event;
            (event.status.as_str(), event.error_class.map(ErrorClass::as_str), event.evidence.map(Evidence::as_str))
        };
        assert_eq!(of("30003"), ("failed", Some("retryable"), None));
        assert_eq!(of("30005"), ("failed", Some("permanent"), None));
        assert_eq!(of("21610"), ("undeliverable", Some("permanent"), Some("opted_out")));
        assert_eq!(of("99999"), ("failed", Some("unknown"), None));
        assert_eq!(of("0"), ("failed", Some("unknown"), None));
        let delivered = report("MessageSid=SM1&MessageStatus=delivered&ErrorCode=30003", "").event;
        assert_eq!((delivered.error_code, delivered.error_class), (None, None), "what arrived did not fail");
    }

    #[test]
    fn a_word_that_no_table_has_is_kept_as_unknown() {
        let found = report("MessageSid=SM1&MessageStatus=teleported&ErrorCode=30003", "");
        assert!(!found.known);
        assert_eq!(
            (found.event.status, found.event.raw_status.as_deref()),
            (DeliveryStatus::Unknown, Some("teleported"))
        );
        assert_eq!(
            (found.event.error_code.as_deref(), found.event.error_class),
            (Some("30003"), Some(ErrorClass::Unknown))
        );
    }

    #[test]
    fn a_body_without_a_message_or_a_status_is_no_report() {
        for body in ["", "MessageSid=SM1", "MessageStatus=sent", "MessageSid=+&MessageStatus=sent"] {
            assert_eq!(parse_status(&form::parse(body), "", now()).unwrap_err().type_slug, "bad-body", "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_callback_panics_and_its_parts_are_bounded(
            body in "((MessageSid|MessageStatus|ErrorCode|SmsSid)=\\PC{0,300}&){0,8}", query: String,
        ) {
            if let Ok(found) = parse_status(&form::parse(&body), &query, now()) {
                let parts = [found.event.provider_message_id, found.event.raw_status, found.event.error_code];
                prop_assert!(parts.into_iter().flatten().all(|part| part.chars().count() <= 128 && !part.contains('\0')));
            }
        }
    }
}
