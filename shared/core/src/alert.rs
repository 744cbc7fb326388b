//! The notice of an alert that a webhook gets: what happened, without a number or a text of anybody.

use serde_json::Value;

use crate::json::{obj, record, str_at};
use crate::redact;

/// Headers of a notice beside `content-type`: the alert's id, by which a receiver knows a repeat, and, under a secret, the proof
/// that it is ours, as [`signature::timestamped`](crate::signature::timestamped) checks it.
pub const ID_HEADER: &str = "idempotency-key";
/// Unix seconds.
pub const TIMESTAMP_HEADER: &str = "x-timestamp";
/// `sha256=<hex>` over `{timestamp}.{body}`.
pub const SIGNATURE_HEADER: &str = "x-signature";

/// The body for a row of `claim_alerts`. `text` is for receivers that show one line, such as a chat.
pub fn body(alert: &Value) -> Value {
    let text = |name: &str| redact::scrub(str_at(alert, name).unwrap_or_default());
    let plain = |name: &str| alert.get(name).cloned().unwrap_or_default();
    let line = ["[", &text("severity"), "] ", &text("message")].concat();
    obj(&mut [
        ("id", plain("id").into()),
        ("kind", text("kind").into()),
        ("severity", text("severity").into()),
        ("text", line.into()),
        ("message", text("message").into()),
        ("details", scrubbed(alert.get("details").unwrap_or(&Value::Null)).into()),
        ("client", plain("client").into()),
        ("occurrences", plain("occurrences").into()),
        ("first_at", plain("first_at").into()),
        ("last_at", plain("last_at").into()),
    ])
}

/// Whoever raised the alert should not have put a number into it; here it stops for certain.
fn scrubbed(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(redact::scrub(text)),
        Value::Array(items) => Value::Array(items.iter().map(scrubbed).collect()),
        Value::Object(members) => {
            record(members.iter().map(|(name, member)| (name.as_str(), scrubbed(member))).collect())
        }
        Value::Number(_) | Value::Bool(_) | Value::Null => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_notice_says_what_happened_and_of_nobody() {
        let alert = json!({
            "id": "6f1b2c3d-0000-4000-8000-000000000001", "kind": "dead_letter", "severity": "critical",
            "message": "Work of the queue sms-inbound was given up: retries_exhausted.",
            "details": {"correlation_id": "for +250788123456", "of": [1, {"to": "250788123456"}], "dead_letter_id": "6f1b2c3d-0000-4000-8000-000000000002"},
            "occurrences": 2, "first_at": "2030-01-01T08:00:00+00:00", "last_at": "2030-01-01T08:01:00+00:00", "client": "easymo"
        });
        expect![[r#"{"client":"easymo","details":{"correlation_id":"for +25078****456","dead_letter_id":"6f1b2c3d-0000-4000-8000-000000000002","of":[1,{"to":"25078****456"}]},"first_at":"2030-01-01T08:00:00+00:00","id":"6f1b2c3d-0000-4000-8000-000000000001","kind":"dead_letter","last_at":"2030-01-01T08:01:00+00:00","message":"Work of the queue sms-inbound was given up: retries_exhausted.","occurrences":2,"severity":"critical","text":"[critical] Work of the queue sms-inbound was given up: retries_exhausted."}"#]]
            .assert_eq(&body(&alert).to_string());
    }

    proptest! {
        #[test]
        fn no_number_gets_through(before in "[a-z ]{0,10}", number in "250(78|73)[0-9]{7}", after in "[a-z ]{0,10}") {
            let said = format!("{before} +{number} {after}");
            let notice = body(&json!({"message": said, "details": {"a": {"b": [said]}}})).to_string();
            prop_assert!(!notice.contains(&number), "{}", notice);
        }
    }
}
