//! Africa's Talking's wire formats: the delivery report of an SMS (docs.africastalking.com, sms/deliveryreports).

use chrono::{DateTime, Utc};

use crate::channel::Provider;
use crate::error_class::{ErrorClass, Evidence};
use crate::problem::Problem;
use crate::status::{self, DeliveryEvent, DeliveryStatus, Report};
use crate::{callback, cost};

/// Reads the parameters of a delivery report: `id` and `status`, maybe `failureReason` and `cost`. A report has no time, and is
/// told from its repeats by message and status.
pub fn parse_report(parameters: &[(String, String)], received_at: DateTime<Utc>) -> Result<Report, Problem> {
    let id = callback::first(parameters, &["id"], 128);
    let word = callback::first(parameters, &["status"], 64);
    let (Some(id), Some(word)) = (id, word) else {
        return Err(Problem::bad_body("no delivery report in this body: it needs id and status"));
    };
    let reason = callback::first(parameters, &["failureReason"], 64);
    let known = status::from_africas_talking(&word);
    let mut status = known.unwrap_or(DeliveryStatus::Unknown);
    let failure = status::failure(Provider::AfricasTalking, status, reason.as_deref());
    let evidence = failure.and_then(|failure| failure.evidence);
    if evidence == Some(Evidence::OptedOut) {
        status = DeliveryStatus::Undeliverable;
    }
    let error_class = match known {
        Some(_) => failure.map(|failure| failure.class),
        None => reason.as_ref().map(|_| ErrorClass::Unknown),
    };
    let event = DeliveryEvent {
        provider: Provider::AfricasTalking,
        provider_message_id: Some(id),
        delivery_ref: None,
        status,
        occurred_at: received_at,
        reported_at: None,
        by_arrival: true,
        error_code: error_class.and(reason),
        error_class,
        evidence,
        raw_status: Some(word),
        pricing: callback::first(parameters, &["cost"], 64).and_then(|cost| cost::read_text(&cost)),
    };
    Ok(Report { event, known: known.is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form;
    use proptest::prelude::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400, 0).unwrap()
    }

    fn report(body: &str) -> Report {
        parse_report(&form::parse(body), now()).unwrap()
    }

    #[test]
    fn a_report_names_message_status_and_cost() {
        let found = report(
            "id=ATXid_5f1c&status=Success&phoneNumber=%2B250788123456&networkCode=63510&retryCount=0&cost=RWF+10.0000",
        );
        assert!(found.known);
        let event = found.event;
        assert_eq!(
            (event.provider_message_id.as_deref(), event.status),
            (Some("ATXid_5f1c"), DeliveryStatus::Delivered)
        );
        assert_eq!(event.pricing.unwrap().to_string(), r#"{"amount":"10.0000","currency":"RWF"}"#);
        assert_eq!((event.error_code, event.by_arrival, event.occurred_at), (None, true, now()));
    }

    #[test]
    fn a_reason_is_classified_and_an_unmapped_one_is_unknown() {
        let of = |status: &str, reason: &str| {
            let event = report(&format!("id=1&status={status}&failureReason={reason}&cost=free")).event;
            assert_eq!(event.pricing, None);
            (event.status.as_str(), event.error_class.map(ErrorClass::as_str), event.evidence.map(Evidence::as_str))
        };
        assert_eq!(of("Failed", "UserInBlackList"), ("undeliverable", Some("permanent"), Some("opted_out")));
        assert_eq!(of("Rejected", "InsufficientCredit"), ("failed", Some("config"), None));
        assert_eq!(of("AbsentSubscriber", "UserIsInactive"), ("undeliverable", Some("permanent"), None));
        assert_eq!(of("Failed", "SunSpots"), ("failed", Some("unknown"), None));
        assert_eq!(of("Expired", ""), ("expired", Some("unknown"), None));
        assert_eq!(of("Success", "SunSpots"), ("delivered", None, None));
    }

    #[test]
    fn a_word_that_no_table_has_is_kept_as_unknown() {
        let found = report("id=1&status=Ascended&failureReason=UserInBlackList");
        assert!(!found.known);
        assert_eq!(
            (found.event.status, found.event.raw_status.as_deref()),
            (DeliveryStatus::Unknown, Some("Ascended"))
        );
        assert_eq!(found.event.error_class, Some(ErrorClass::Unknown));
    }

    #[test]
    fn a_body_without_a_message_or_a_status_is_no_report() {
        for body in ["", "id=1", "status=Sent", "id=%00&status=Sent"] {
            assert_eq!(parse_report(&form::parse(body), now()).unwrap_err().type_slug, "bad-body", "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_report_panics_and_its_parts_are_bounded(body in "((id|status|failureReason|cost)=\\PC{0,300}&){0,8}") {
            if let Ok(found) = parse_report(&form::parse(&body), now()) {
                let parts = [found.event.provider_message_id, found.event.raw_status, found.event.error_code];
                prop_assert!(parts.into_iter().flatten().all(|part| part.chars().count() <= 128 && !part.contains('\0')));
            }
        }
    }
}
