//! Twilio's wire formats: the status callback of a message, and messages as the API lists them.
//!
//! Source: Twilio docs, messaging/guides/track-outbound-message-status and messaging/api/message-resource.

use base64ct::{Base64, Encoding};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::channel::Provider;
use crate::error_class::{ErrorClass, Evidence};
use crate::ids::is_uuid;
use crate::problem::Problem;
use crate::status::{self, DeliveryEvent, DeliveryStatus, Report};
use crate::{callback, cost, form, json, timestamp};

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
    let code = callback::first(parameters, &["ErrorCode"], 64);
    let mut report = report(sid, word, code, received_at);
    report.event.delivery_ref = delivery_ref.map(|(_, id)| id.to_ascii_lowercase());
    Ok(report)
}

/// What Twilio's word and code come to. "Callbacks carry no price": it comes with the comparison of the next day.
fn report(sid: String, word: String, code: Option<String>, received_at: DateTime<Utc>) -> Report {
    let code = code.filter(|code| code.bytes().any(|digit| digit != b'0'));
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
        delivery_ref: None,
        status,
        occurred_at: received_at,
        reported_at: None,
        by_arrival: true,
        error_code: error_class.and(code),
        error_class,
        evidence,
        raw_status: Some(word),
        pricing: None,
    };
    Report { event, known: known.is_some() }
}

/// Messages on a page of a list.
pub const PAGE_SIZE: u32 = 200;

/// Path of the first page of what an account sent on `day`, `YYYY-MM-DD` in UTC.
pub fn list_path(account_sid: &str, day: &str) -> String {
    let query = form::encode(&[("DateSent", day), ("PageSize", &PAGE_SIZE.to_string())]);
    ["/2010-04-01/Accounts/", account_sid, "/Messages.json?", &query].concat()
}

/// Path of one message; none where the id is no id of Twilio's, so that nothing else gets into a path.
pub fn message_path(account_sid: &str, sid: &str) -> Option<String> {
    let is_sid = (10..=64).contains(&sid.len()) && sid.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_sid.then(|| ["/2010-04-01/Accounts/", account_sid, "/Messages/", sid, ".json"].concat())
}

/// One page of a list of messages.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// Those that went out; what came in is left out.
    pub messages: Vec<DeliveryEvent>,
    /// Path and query of the next page; none on the last.
    pub next: Option<String>,
    /// Entries without an id or a status.
    pub unreadable: usize,
}

/// Reads a page. `next_page_uri` counts only if it leads to the same list: our password goes with it.
pub fn parse_page(account_sid: &str, body: &[u8], now: DateTime<Utc>) -> Result<Page, Problem> {
    let root = json::foreign_object(body)?;
    let Some(Value::Array(messages)) = root.get("messages") else {
        return Err(Problem::bad_body("a page without messages"));
    };
    let mut page = Page::default();
    for message in messages {
        if json::text(message, "direction").is_some_and(|direction| direction.starts_with("inbound")) {
            continue;
        }
        match parse_message(message, now) {
            Some(event) => page.messages.push(event),
            None => page.unreadable += 1,
        }
    }
    if let Some(next) = json::text(&root, "next_page_uri") {
        let list = ["/2010-04-01/Accounts/", account_sid, "/Messages.json?"].concat();
        if !next.starts_with(&list) || next.len() > 1024 {
            return Err(Problem::bad_body("the next page is elsewhere"));
        }
        page.next = Some(next);
    }
    Ok(page)
}

/// `Authorization` of a request to Twilio's API (RFC 7617).
///
/// ```
/// assert_eq!(ihuza_core::twilio::authorization("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
/// ```
pub fn authorization(account_sid: &str, auth_token: &str) -> String {
    let user = [account_sid, ":", auth_token].concat();
    ["Basic ", &Base64::encode_string(user.as_bytes())].concat()
}

/// Reads one message of the API (Twilio docs, messaging/api/message-resource): status, code, price, and when that changed last.
pub fn parse_message(message: &Value, now: DateTime<Utc>) -> Option<DeliveryEvent> {
    let short = |name: &str| json::text(message, name).map(|text| json::clip(&text, 128).to_owned());
    let mut event = report(short("sid")?, short("status")?, short("error_code"), now).event;
    // `Sat, 21 Nov 2026 02:00:00 +0000`, which but for the zone's name is the date of HTTP.
    let updated = short("date_updated").map(|at| at.replace("+0000", "GMT"));
    if let Some(at) = updated.and_then(|at| timestamp::parse_http_date(&at)) {
        (event.occurred_at, event.reported_at) = timestamp::believable(at, now);
        event.by_arrival = false;
    }
    event.pricing = short("price").and_then(|amount| cost::read(&amount, &short("price_unit")?));
    Some(event)
}

/// The code of an error that the API answers with.
pub fn error_code(body: &[u8]) -> Option<String> {
    json::text(&json::foreign_object(body).ok()?, "code").map(|code| json::clip(&code, 64).to_owned())
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

    const ACCOUNT: &str = "AC00000000000000000000000000000001";

    #[test]
    fn a_page_has_what_went_out_and_the_way_to_the_next() {
        assert_eq!(
            list_path(ACCOUNT, "2026-11-20"),
            "/2010-04-01/Accounts/AC00000000000000000000000000000001/Messages.json?DateSent=2026-11-20&PageSize=200"
        );
        let next = format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json?PageSize=200&Page=1&PageToken=PASM1");
        let page = |next: &str| {
            format!(
                r#"{{"messages":[
                {{"sid":"SM1","status":"delivered","direction":"outbound-api","price":"-0.04750","price_unit":"USD","error_code":null,
                  "date_updated":"Sat, 21 Nov 2026 01:59:00 +0000"}},
                {{"sid":"SM2","status":"received","direction":"inbound","price":null,"price_unit":"USD"}},
                {{"sid":"SM3","status":"undelivered","direction":"outbound-reply","price":null,"price_unit":"USD","error_code":30005}},
                {{"status":"sent","direction":"outbound-api"}}],"next_page_uri":{next}}}"#
            )
        };
        let found = parse_page(ACCOUNT, page(&format!("\"{next}\"")).as_bytes(), now()).unwrap();
        assert_eq!((found.messages.len(), found.unreadable, found.next.as_deref()), (2, 1, Some(next.as_str())));
        let first = &found.messages[0];
        assert_eq!(first.pricing.as_ref().unwrap().to_string(), r#"{"amount":"0.04750","currency":"USD"}"#);
        assert_eq!(
            (timestamp::to_rfc3339(first.occurred_at).as_str(), first.by_arrival),
            ("2026-11-21T01:59:00.000Z", false)
        );
        let second = &found.messages[1];
        assert_eq!((second.error_code.as_deref(), second.error_class), (Some("30005"), Some(ErrorClass::Permanent)));
        assert_eq!((second.pricing.clone(), second.occurred_at, second.by_arrival), (None, now(), true));
        assert_eq!(parse_page(ACCOUNT, page("null").as_bytes(), now()).unwrap().next, None);
        for elsewhere in
            ["https://evil.example/2010-04-01", "//evil.example/", "/2010-04-01/Accounts/AC2/Messages.json?Page=1"]
        {
            assert!(parse_page(ACCOUNT, page(&format!("\"{elsewhere}\"")).as_bytes(), now()).is_err(), "{elsewhere}");
        }
        for body in ["", "{}", "[]", r#"{"messages":{}}"#] {
            assert!(parse_page(ACCOUNT, body.as_bytes(), now()).is_err(), "{body}");
        }
        assert_eq!(error_code(br#"{"code":20003,"message":"Authenticate","status":401}"#).as_deref(), Some("20003"));
        assert_eq!(error_code(b"<html>"), None);
    }

    #[test]
    fn only_an_id_gets_into_a_path() {
        assert!(
            message_path(ACCOUNT, "SM0123456789abcdef0123456789abcdef")
                .unwrap()
                .ends_with("/Messages/SM0123456789abcdef0123456789abcdef.json")
        );
        for sid in ["", "SM1", "../../Calls", "SM0123456789?x=1", &"S".repeat(65)] {
            assert_eq!(message_path(ACCOUNT, sid), None, "{sid}");
        }
    }

    proptest! {
        #[test]
        fn no_page_panics(body: Vec<u8>, a in "\\PC{0,200}", n: i64) {
            let _ = (parse_page(ACCOUNT, &body, now()), error_code(&body));
            for message in [
                serde_json::json!({"sid": a, "status": a, "price": a, "price_unit": a, "date_updated": a, "error_code": n}),
                serde_json::json!({"sid": n, "status": [a], "price": n}), serde_json::json!(n),
            ] {
                let page = serde_json::json!({"messages": [message], "next_page_uri": a}).to_string();
                let _ = parse_page(ACCOUNT, page.as_bytes(), now());
            }
        }

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
