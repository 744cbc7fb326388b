//! MTN SMS V3: token, sending, inbound messages and delivery reports; tolerant of its older shapes and of OneAPI.
//!
//! From MTN's developer pages (sms-v3-api, understanding-oauth-20, response-and-error-codes). V3 does not document inbound
//! messages, so several shapes are read.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::channel::Provider;
use crate::error_class::ErrorClass;
use crate::form;
use crate::ids::{content_hash, is_uuid};
use crate::json::{as_text, clip, field, first_field, integer, record, text};
use crate::phone::{Address, E164};
use crate::problem::Problem;
use crate::send::{Accepted, Outcome, Refused};
use crate::status::{self, DeliveryEvent, DeliveryStatus};
use crate::timestamp;

/// The path of sending, below the base address.
pub const OUTBOUND_PATH: &str = "/v3/sms/messages/sms/outbound";

/// The path and query of the token request, unless configured otherwise.
pub const TOKEN_PATH: &str = "/v1/oauth/access_token?grant_type=client_credentials";

/// Longest inbound text kept, in characters: ten segments.
pub const MAX_TEXT_CHARS: usize = 1_530;

/// The form body of the token request.
pub fn token_request(api_key: &str, api_secret: &str) -> String {
    form::encode(&[("client_id", api_key), ("client_secret", api_secret)])
}

/// An access token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What goes behind `Bearer`. Never log it.
    pub access_token: String,
    /// Seconds it lives.
    pub expires_in_s: i64,
}

impl Token {
    /// The moment from which it is no longer used: a minute before its end.
    pub fn usable_until(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let seconds = self.expires_in_s.saturating_sub(60).clamp(0, 86_400);
        now.checked_add_signed(TimeDelta::seconds(seconds)).unwrap_or(now)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(...)")
    }
}

/// Reads the answer to the token request; `expires_in` is a number or a string of digits.
pub fn parse_token(http_status: u16, body: &[u8]) -> Result<Token, Refused> {
    let answer = crate::json::foreign_object(body).map_err(|_| unreadable_token(http_status))?;
    match text(&answer, "access_token") {
        Some(access_token) if (200..300).contains(&http_status) => {
            Ok(Token { access_token, expires_in_s: integer(&answer, "expires_in").unwrap_or(300) })
        }
        Some(_) | None => match error_code(&answer) {
            Some(code) => Err(Refused::answered(Provider::Mtn, http_status, Some(code))),
            None => Err(unreadable_token(http_status)),
        },
    }
}

/// A token request sends nothing to anybody: where sending would leave a doubt, it may simply be repeated.
fn unreadable_token(http_status: u16) -> Refused {
    let mut refused = Refused::unreadable(Provider::Mtn, http_status);
    if refused.classified.class == ErrorClass::Unknown {
        refused.classified.class = ErrorClass::Retryable;
    }
    refused
}

/// One message to one recipient.
#[derive(Debug, Clone, Copy)]
pub struct Outbound<'a> {
    /// The name shown as sender.
    pub sender_id: &'a str,
    /// The short code, if there is one.
    pub service_code: Option<&'a str>,
    /// Who gets it.
    pub recipient: &'a E164,
    /// The text, exactly as counted.
    pub text: &'a str,
    /// Our delivery id, echoed in the report; at most 36 characters.
    pub delivery_ref: &'a str,
}

/// The body of the send request. Without a service code MTN wants the sender's name in its place.
pub fn outbound_body(message: &Outbound) -> Value {
    let service_code = message.service_code.filter(|code| !code.is_empty()).unwrap_or(message.sender_id);
    record(vec![
        ("senderAddress", Value::from(message.sender_id)),
        ("serviceCode", Value::from(service_code)),
        ("receiverAddress", Value::Array(vec![Value::from(message.recipient.msisdn())])),
        ("message", Value::from(message.text)),
        ("clientCorrelatorId", Value::from(clip(message.delivery_ref, 36))),
        ("requestDeliveryReceipt", Value::Bool(true)),
    ])
}

/// Reads the answer to the send request. HTTP 200 alone says nothing: `statusCode` must be `0000`.
///
/// MTN gives no message id; reports come back under our `delivery_ref`, which therefore is the provider's message id.
pub fn parse_outbound_response(http_status: u16, body: &[u8], delivery_ref: &str) -> Outcome {
    let Ok(answer) = crate::json::foreign_object(body) else {
        return Err(Refused::unreadable(Provider::Mtn, http_status));
    };
    let request_id = text(&answer, "transactionId");
    match error_code(&answer) {
        Some(code) if code == "0000" && (200..300).contains(&http_status) => Ok(Accepted {
            provider_message_id: Some(delivery_ref.to_owned()),
            provider_request_id: request_id,
            wa_id: None,
            user_id: None,
        }),
        Some(code) => {
            let mut refused = Refused::answered(Provider::Mtn, http_status, Some(code));
            refused.provider_request_id = request_id;
            Err(refused)
        }
        None => Err(Refused::unreadable(Provider::Mtn, http_status)),
    }
}

fn error_code(answer: &Value) -> Option<String> {
    first_field(answer, &["statusCode", "code", "errorCode", "error"])
        .and_then(as_text)
        .map(|code| clip(&code, 64).to_owned())
}

/// An SMS that arrived, normalised: the body of a queue message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundSms {
    /// Who brought it.
    pub provider: Provider,
    /// The provider's id, or a hash of the content where it gives none.
    pub provider_message_id: String,
    /// Who wrote.
    pub from: E164,
    /// The number or service code written to, as far as it is known.
    pub to: String,
    /// What was written.
    pub text: String,
    /// When it was written, by the provider's clock; else when it arrived.
    #[serde(with = "crate::timestamp::rfc3339")]
    pub received_at: DateTime<Utc>,
    /// The provider's own time, where that lies in our future and is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::timestamp::rfc3339_or_none")]
    pub reported_at: Option<DateTime<Utc>>,
}

/// What a body of inbound messages holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inbound {
    /// Messages that can be answered.
    pub messages: Vec<InboundSms>,
    /// Why others are left alone: `short_code`, `sender_name`, `number_withheld`, `empty_text`, `delivery_report`.
    pub ignored: Vec<&'static str>,
    /// What is wrong with others.
    pub refused: Vec<Problem>,
}

/// Reads inbound messages: JSON or form, one or several, plain or wrapped as OneAPI does.
pub fn parse_inbound(content_type: Option<&str>, body: &[u8], received_at: DateTime<Utc>) -> Result<Inbound, Problem> {
    let root = read_body(content_type, body)?;
    let mut inbound = Inbound::default();
    for item in items(&root, &["inboundSMSMessageNotification", "inboundSMSMessageList"], "inboundSMSMessage") {
        if first_field(item, &["deliveryStatus", "deliveryInfoNotification"]).is_some() {
            inbound.ignored.push("delivery_report");
            continue;
        }
        match parse_message(item, received_at) {
            Ok(Ok(message)) => inbound.messages.push(message),
            Ok(Err(reason)) => inbound.ignored.push(reason),
            Err(problem) => inbound.refused.push(problem),
        }
    }
    Ok(inbound)
}

fn parse_message(item: &Value, received_at: DateTime<Utc>) -> Result<Result<InboundSms, &'static str>, Problem> {
    let from = first_text(item, &["from", "senderAddress", "msisdn", "sender", "source", "source_addr"])
        .ok_or_else(|| Problem::missing_field("from", "Name the sender as +250..."))?;
    let address = Address::parse(&from).map_err(|error| {
        Problem::invalid_field("from", error.to_string(), "Name the sender in E.164 form, such as +250788123456")
    })?;
    let from = match address {
        Address::Subscriber(number) => number,
        Address::ShortCode(_) => return Ok(Err("short_code")),
        Address::Alphanumeric(_) => return Ok(Err("sender_name")),
        Address::None => return Ok(Err("number_withheld")),
    };
    let to = first_text(
        item,
        &[
            "to",
            "receiverAddress",
            "destinationAddress",
            "serviceCode",
            "registrationId",
            "shortCode",
            "recipient",
            "destination",
        ],
    );
    let to = to.map(|to| normal_address(&to)).unwrap_or_default();
    let Some(text) = message_text(item) else {
        return Err(Problem::missing_field("message", "Put the text of the SMS into message"));
    };
    let text = clip(crate::json::without_nul(&text).trim(), MAX_TEXT_CHARS).to_owned();
    if text.is_empty() {
        return Ok(Err("empty_text"));
    }
    let sent_at = first_text(item, &["dateTime", "timestamp", "date", "created", "receivedAt"])
        .and_then(|at| timestamp::parse_carrier(&at));
    let id = first_text(item, &["messageId", "messageID", "message_id", "id", "transactionId", "linkId"]);
    let provider_message_id = match id {
        Some(id) => clip(&id, 128).to_owned(),
        None => derived_id(&from, &to, &text, sent_at, received_at),
    };
    let (received_at, reported_at) = timestamp::believable(sent_at.unwrap_or(received_at), received_at);
    Ok(Ok(InboundSms { provider: Provider::Mtn, provider_message_id, from, to, text, received_at, reported_at }))
}

/// Without an id of the provider's, the same text from the same number at the same time is the same message. Without a time of
/// the provider's that is the same minute: a repeat of the webhook is caught, somebody's second "yes" is not.
fn derived_id(from: &E164, to: &str, text: &str, sent_at: Option<DateTime<Utc>>, received_at: DateTime<Utc>) -> String {
    let time = match sent_at {
        Some(at) => at.timestamp_millis(),
        None => received_at.timestamp().div_euclid(60),
    };
    let kind: &[u8] = if sent_at.is_some() { b"provider time" } else { b"minute" };
    let parts = [b"mtn" as &[u8], from.as_str().as_bytes(), to.as_bytes(), text.as_bytes(), kind, &time.to_be_bytes()];
    ["sha256:", &content_hash(&parts)].concat()
}

fn normal_address(text: &str) -> String {
    match Address::parse(text) {
        Ok(Address::Subscriber(number)) => number.as_str().to_owned(),
        Ok(Address::ShortCode(word) | Address::Alphanumeric(word)) => word,
        Ok(Address::None) => String::new(),
        Err(_) => clip(text.trim(), 32).to_owned(),
    }
}

/// Present but empty is an empty text; absent is nothing.
fn message_text(item: &Value) -> Option<String> {
    let scalar = |found: &Value| match found {
        Value::String(text) => Some(text.clone()),
        other => as_text(other),
    };
    ["message", "text", "content", "body"].iter().find_map(|name| match field(item, name)? {
        inner @ Value::Object(_) => first_field(inner, &["body", "text", "content"]).and_then(scalar),
        found => scalar(found),
    })
}

/// What a body of delivery reports holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reports {
    /// The reports.
    pub events: Vec<DeliveryEvent>,
    /// Items without an id or with an unknown status.
    pub unreadable: usize,
}

/// Reads delivery reports: V3, V2 and OneAPI shapes, JSON or form.
pub fn parse_delivery_reports(
    content_type: Option<&str>,
    body: &[u8],
    received_at: DateTime<Utc>,
) -> Result<Reports, Problem> {
    let root = read_body(content_type, body)?;
    let mut reports = Reports::default();
    for item in items(&root, &["deliveryInfoNotification", "deliveryInfoList"], "deliveryInfo") {
        // OneAPI keeps our reference beside the report, not in it.
        let outer = field(&root, "deliveryInfoNotification").or_else(|| field(&root, "deliveryInfoList"));
        match parse_report(item, outer, received_at) {
            Some(event) => reports.events.push(event),
            None => reports.unreadable += 1,
        }
    }
    Ok(reports)
}

fn parse_report(item: &Value, outer: Option<&Value>, received_at: DateTime<Utc>) -> Option<DeliveryEvent> {
    const REFERENCES: [&str; 4] = ["clientCorrelatorId", "clientCorrelator", "callbackData", "requestId"];
    let reference = first_text(item, &REFERENCES).or_else(|| outer.and_then(|outer| first_text(outer, &REFERENCES)))?;
    let raw = first_text(item, &["deliveryStatus", "status", "message_status"])?;
    let status = status::from_mtn(&raw)?;
    let error_code = first_text(item, &["error", "err", "errorCode"])
        .filter(|code| code.bytes().any(|digit| digit != b'0'))
        .map(|code| clip(&code, 64).to_owned());
    let error_class = match status {
        DeliveryStatus::Failed | DeliveryStatus::Undeliverable | DeliveryStatus::Expired => Some(ErrorClass::Permanent),
        _ => None,
    };
    let at = first_text(item, &["completedDate", "doneDate", "donedate", "deliveredDate", "timestamp", "dateTime"]);
    let stamp = at.and_then(|at| timestamp::parse_carrier(&at));
    let (occurred_at, reported_at) = timestamp::believable(stamp.unwrap_or(received_at), received_at);
    Some(DeliveryEvent {
        provider: Provider::Mtn,
        delivery_ref: is_uuid(&reference).then(|| reference.to_ascii_lowercase()),
        provider_message_id: Some(clip(&reference, 128).to_owned()),
        status,
        occurred_at,
        reported_at,
        by_arrival: stamp.is_none(),
        error_code: error_class.and(error_code),
        error_class,
        evidence: None,
        raw_status: Some(clip(&raw, 64).to_owned()),
        pricing: None,
    })
}

/// JSON by content type or look; else a form.
fn read_body(content_type: Option<&str>, body: &[u8]) -> Result<Value, Problem> {
    let is_form = content_type.is_some_and(|kind| kind.to_ascii_lowercase().contains("x-www-form-urlencoded"));
    let start = body.iter().find(|byte| !byte.is_ascii_whitespace() && !matches!(byte, 0xef | 0xbb | 0xbf)).copied();
    if matches!(start, Some(b'{')) || !is_form && !matches!(start, Some(b'[')) {
        return crate::json::foreign_object(body);
    }
    if matches!(start, Some(b'[')) {
        // Wrapped, so that one reader serves both.
        let array = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let wrapped = [b"{\"items\":" as &[u8], array, b"}"].concat();
        return crate::json::foreign_object(&wrapped);
    }
    let mut map = Map::new();
    for (name, value) in form::parse(&String::from_utf8_lossy(body)) {
        map.entry(name).or_insert(Value::String(crate::json::without_nul(&value)));
    }
    if map.is_empty() {
        return Err(Problem::bad_body("The form is empty"));
    }
    Ok(Value::Object(map))
}

/// The items of a body: unwrapped from `wrappers.inner`, `data`, `items`, `messages`, or the body itself.
fn items<'a>(root: &'a Value, wrappers: &[&str], inner: &str) -> Vec<&'a Value> {
    let mut found = first_field(root, wrappers).map_or(root, |wrapped| field(wrapped, inner).unwrap_or(wrapped));
    if std::ptr::eq(found, root) {
        for name in ["items", "data", "messages", "reports"] {
            if let Some(nested @ (Value::Object(_) | Value::Array(_))) = field(root, name) {
                found = field(nested, inner).unwrap_or(nested);
                break;
            }
        }
    }
    match found {
        // All of them: the body's own limit is the limit, and what is left out behind a 200 would be lost.
        Value::Array(items) => items.iter().filter(|item| item.is_object()).collect(),
        other => vec![other],
    }
}

/// The first of several names with a scalar, or with a list whose first item is one.
fn first_text(value: &Value, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| match field(value, name)? {
        Value::Array(items) => items.first().and_then(as_text),
        other => as_text(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const REF: &str = "7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11";

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400, 0).unwrap()
    }

    fn inbound(body: &str) -> Inbound {
        parse_inbound(Some("application/json"), body.as_bytes(), now()).unwrap()
    }

    #[track_caller]
    fn one(body: &str) -> InboundSms {
        let found = inbound(body);
        assert_eq!(found.messages.len(), 1, "{found:?}");
        found.messages[0].clone()
    }

    #[test]
    fn every_message_of_a_large_body_is_taken() {
        let many: Vec<Value> = (0..1_500)
            .map(|n| json!({"from": "+250788123456", "to": "8080", "message": "yes", "messageId": n.to_string()}))
            .collect();
        let body = Value::Array(many).to_string();
        let at = DateTime::from_timestamp(1_795_226_400, 0).unwrap();
        assert_eq!(parse_inbound(None, body.as_bytes(), at).unwrap().messages.len(), 1_500);
    }

    #[test]
    fn the_token_is_asked_for_with_a_form_and_its_life_is_a_string() {
        assert_eq!(token_request("k&y", "s t"), "client_id=k%26y&client_secret=s+t");
        let token =
            parse_token(200, br#"{"access_token":"gGqV7","token_type":"BearerToken","expires_in":"3599"}"#).unwrap();
        assert_eq!((token.access_token.as_str(), token.expires_in_s), ("gGqV7", 3599));
        assert_eq!(token.usable_until(now()), now() + TimeDelta::seconds(3539));
        assert_eq!(format!("{token:?}"), "Token(...)");
        assert_eq!(parse_token(200, br#"{"access_token":"x","expires_in":3600}"#).unwrap().expires_in_s, 3600);
        let refused = |http, body: &str| parse_token(http, body.as_bytes()).unwrap_err().classified.class;
        assert_eq!(refused(401, r#"{"error":"invalid_client"}"#), ErrorClass::Config);
        assert_eq!(refused(500, "oops"), ErrorClass::Retryable, "nothing was sent to anybody");
        assert_eq!(refused(200, "{}"), ErrorClass::Retryable);
    }

    #[test]
    fn one_message_goes_to_the_digits_without_plus() {
        let recipient = E164::parse("+250788123456").unwrap();
        let message = Outbound {
            sender_id: "EasyMO",
            service_code: None,
            recipient: &recipient,
            text: "Muraho",
            delivery_ref: REF,
        };
        assert_eq!(
            outbound_body(&message),
            json!({
                "senderAddress": "EasyMO", "serviceCode": "EasyMO", "receiverAddress": ["250788123456"], "message": "Muraho",
                "clientCorrelatorId": REF, "requestDeliveryReceipt": true,
            })
        );
        assert_eq!(outbound_body(&Outbound { service_code: Some("8080"), ..message })["serviceCode"], "8080");
    }

    #[test]
    fn http_200_is_not_yet_a_success() {
        let good =
            br#"{"statusCode":"0000","statusMessage":"ok","transactionId":"2026112104","data":{"status":"PENDING"}}"#;
        let accepted = parse_outbound_response(200, good, REF).unwrap();
        assert_eq!(accepted.provider_message_id.as_deref(), Some(REF));
        assert_eq!(accepted.provider_request_id.as_deref(), Some("2026112104"));
        let class = |http, body: &str| {
            let refused = parse_outbound_response(http, body.as_bytes(), REF).unwrap_err();
            (refused.classified.class, refused.error_code)
        };
        assert_eq!(class(200, r#"{"statusCode":"6001"}"#), (ErrorClass::Config, Some("6001".into())));
        assert_eq!(class(200, r#"{"statusCode":"7777"}"#), (ErrorClass::Unknown, Some("7777".into())));
        assert_eq!(class(429, r#"{"statusCode":"1013"}"#), (ErrorClass::Retryable, Some("1013".into())));
        assert_eq!(class(408, r#"{"statusCode":"3003"}"#), (ErrorClass::Unknown, Some("3003".into())));
        assert_eq!(class(401, r#"{"statusCode":"4000"}"#), (ErrorClass::Config, Some("4000".into())));
        assert_eq!(class(502, "<html>"), (ErrorClass::Unknown, None));
        assert_eq!(class(503, ""), (ErrorClass::Retryable, None));
        assert_eq!(class(200, "cut"), (ErrorClass::Unknown, None));
        assert_eq!(class(500, r#"{"statusCode":"0000"}"#).0, ErrorClass::Unknown);
    }

    #[test]
    fn the_simplest_shape_works() {
        let sms = one(r#"{"from":"+250788123456","to":"+250788000000","message":"Ndashaka kubona inzu"}"#);
        assert_eq!(
            (sms.from.as_str(), sms.to.as_str(), sms.text.as_str()),
            ("+250788123456", "+250788000000", "Ndashaka kubona inzu")
        );
        assert_eq!(sms.received_at, now());
        assert!(sms.provider_message_id.starts_with("sha256:"));
        let back: InboundSms = serde_json::from_str(&serde_json::to_string(&sms).unwrap()).unwrap();
        assert_eq!(back, sms, "it survives the queue");
    }

    #[test]
    fn a_time_in_the_future_is_not_believed_and_kept_as_it_came() {
        let sms =
            one(r#"{"from":"+250788123456","message":"Yego","messageId":"m-1","dateTime":"2040-01-01T00:00:00Z"}"#);
        assert_eq!(sms.received_at, now() + chrono::TimeDelta::minutes(2));
        assert_eq!(sms.reported_at.map(timestamp::to_rfc3339).as_deref(), Some("2040-01-01T00:00:00.000Z"));
        let back: InboundSms = serde_json::from_str(&serde_json::to_string(&sms).unwrap()).unwrap();
        assert_eq!(back, sms, "it survives the queue");
        let report = br#"{"clientCorrelatorId":"r-1","deliveryStatus":"DELIVRD","timestamp":"2040-01-01T00:00:00Z"}"#;
        let event = parse_delivery_reports(None, report, now()).unwrap().events.remove(0);
        assert_eq!(event.occurred_at, now() + chrono::TimeDelta::minutes(2));
        assert_eq!(event.to_value()["reported_at"], "2040-01-01T00:00:00.000Z");
    }

    #[test]
    fn every_alias_and_wrapping_is_read() {
        for body in [
            r#"{"dateTime":"2026-11-21T01:05:00Z","registrationId":"8080","message":"Yego","senderAddress":"250788123456","messageID":"m-77"}"#,
            r#"{"inboundSMSMessageNotification":{"callbackData":"x","inboundSMSMessage":{"dateTime":"2026-11-21T01:05:00Z","destinationAddress":"tel:8080","messageId":"m-77","message":"Yego","senderAddress":"tel:+250788123456"}}}"#,
            r#"{"inboundSMSMessageList":{"inboundSMSMessage":[{"dateTime":"2026-11-21T01:05:00Z","destinationAddress":"8080","messageId":"m-77","message":"Yego","senderAddress":"tel:+250788123456"}]}}"#,
            r#"{"data":{"msisdn":"0788123456","shortCode":8080,"text":"Yego","id":"m-77","timestamp":"2026-11-21T03:05:00"}}"#,
            r#"{"data":[{"source_addr":"250788123456","receiverAddress":["8080"],"content":"Yego","message_id":"m-77","date":"2026-11-21 03:05:00"}]}"#,
            r#"[{"sender":"250788123456","recipient":"8080","message":{"body":"Yego"},"linkId":"m-77","receivedAt":"20261121030500"}]"#,
        ] {
            let sms = one(body);
            assert_eq!(
                (sms.from.as_str(), sms.to.as_str(), sms.text.as_str(), sms.provider_message_id.as_str()),
                ("+250788123456", "8080", "Yego", "m-77"),
                "{body}"
            );
            assert_eq!(timestamp::to_rfc3339(sms.received_at), "2026-11-21T01:05:00.000Z", "{body}");
        }
        let form = b"from=%2B250788123456&to=8080&text=Yego+rwose&id=m-77&date=2026-11-21+06%3A05%3A00";
        for kind in
            [Some("application/x-www-form-urlencoded; charset=utf-8"), Some("application/X-WWW-form-urlencoded")]
        {
            let sms = parse_inbound(kind, form, now()).unwrap().messages.remove(0);
            assert_eq!((sms.text.as_str(), sms.provider_message_id.as_str()), ("Yego rwose", "m-77"));
        }
    }

    #[test]
    fn several_messages_stand_for_themselves() {
        let found = inbound(
            r#"{"messages":[{"from":"0788123456","message":"one","id":1},{"from":"0748123456","message":"two"},
                {"from":"8080","message":"ad"},{"from":"EasyMO","message":"ad"},{"from":"anonymous","message":"x"},
                {"from":"0788123456","message":"  "},{"from":"0788123456"},{"message":"no sender"},
                {"from":"0788123456","deliveryStatus":"DELIVERED"}]}"#,
        );
        assert_eq!(found.messages.len(), 1);
        assert_eq!(found.ignored, ["short_code", "sender_name", "number_withheld", "empty_text", "delivery_report"]);
        let fields: Vec<_> = found.refused.iter().map(|problem| problem.field.unwrap()).collect();
        assert_eq!(fields, ["from", "message", "from"]);
        assert!(!found.refused.iter().any(|problem| problem.detail.contains("0748123456")));
    }

    #[test]
    fn without_an_id_a_repeat_is_caught_and_a_second_yes_is_not() {
        let at = |seconds| {
            let body = br#"{"from":"0788123456","to":"8080","message":"yes"}"#;
            parse_inbound(None, body, now() + TimeDelta::seconds(seconds))
                .unwrap()
                .messages
                .remove(0)
                .provider_message_id
        };
        assert_eq!(at(0), at(20));
        assert_ne!(at(0), at(180));
        let with_time = |time: &str| {
            one(&format!(r#"{{"from":"0788123456","message":"yes","dateTime":"{time}"}}"#)).provider_message_id
        };
        assert_eq!(with_time("2026-11-21T04:05:00Z"), with_time("2026-11-21T06:05:00+02:00"));
        assert_ne!(with_time("2026-11-21T04:05:00Z"), with_time("2026-11-21T04:05:01Z"));
    }

    #[test]
    fn delivery_reports_of_all_generations_are_read() {
        let v3 = format!(
            r#"{{"id":88120453,"clientCorrelatorId":"{REF}","deliveryStatus":"DELIVERED","details":"Delivered to handset","error":"000","senderAddress":"EasyMO","receiverAddress":"250788123456","submittedDate":"2026-11-21T04:00:01","completedDate":"2026-11-21T04:00:07"}}"#
        );
        let oneapi = format!(
            r#"{{"deliveryInfoNotification":{{"callbackData":"{REF}","deliveryInfo":{{"address":"tel:+250788123456","deliveryStatus":"DeliveredToTerminal"}}}}}}"#
        );
        for body in [&v3, &oneapi] {
            let reports = parse_delivery_reports(None, body.as_bytes(), now()).unwrap();
            assert_eq!((reports.events.len(), reports.unreadable), (1, 0), "{body}");
            let event = &reports.events[0];
            assert_eq!((event.status, event.delivery_ref.as_deref()), (DeliveryStatus::Delivered, Some(REF)));
            assert_eq!((event.error_code.as_deref(), event.error_class), (None, None));
        }
        let event = parse_delivery_reports(None, v3.as_bytes(), now()).unwrap().events.remove(0);
        assert_eq!(timestamp::to_rfc3339(event.occurred_at), "2026-11-21T02:00:07.000Z");
        let failed = format!("clientCorrelatorId={REF}&deliveryStatus=UNDELIV&error=027");
        let event = parse_delivery_reports(Some("application/x-www-form-urlencoded"), failed.as_bytes(), now())
            .unwrap()
            .events
            .remove(0);
        assert_eq!((event.status, event.error_code.as_deref()), (DeliveryStatus::Undeliverable, Some("027")));
        assert_eq!(event.occurred_at, now());
        let mixed = format!(
            r#"[{{"clientCorrelatorId":"ours-1","deliveryStatus":"ACCEPTD"}},{{"clientCorrelatorId":"{REF}","deliveryStatus":"DREAMT"}},{{"deliveryStatus":"DELIVERED"}}]"#
        );
        let reports = parse_delivery_reports(None, mixed.as_bytes(), now()).unwrap();
        assert_eq!((reports.events.len(), reports.unreadable), (1, 2));
        assert_eq!(
            (reports.events[0].delivery_ref.as_deref(), reports.events[0].provider_message_id.as_deref()),
            (None, Some("ours-1"))
        );
    }

    #[test]
    fn bad_bodies_are_refused() {
        assert_eq!(parse_inbound(None, b"{", now()).unwrap_err().type_slug, "bad-json");
        assert_eq!(parse_inbound(Some("application/json"), b"hello", now()).unwrap_err().status, 400);
        assert_eq!(
            parse_inbound(Some("application/x-www-form-urlencoded"), b"", now()).unwrap_err().type_slug,
            "bad-body"
        );
        assert_eq!(inbound("{}").refused[0].field, Some("from"));
    }

    #[test]
    fn a_message_in_another_encoding_loses_a_character_and_not_itself() {
        for (kind, body) in [
            (
                "application/json",
                b"{\"from\":\"+250788123456\",\"to\":\"8080\",\"text\":\"Kimironko, s'il vous pla\xeet\"}".as_slice(),
            ),
            ("application/json", br#"[{"from":"+250788123456","to":"8080","text":"Kimironko, s'il vous pla\ud83dt"}]"#),
            ("application/x-www-form-urlencoded", b"from=%2B250788123456&to=8080&text=Kimironko, s'il vous pla\xeet"),
            ("application/x-www-form-urlencoded", b"from=%2B250788123456&to=8080&text=Kimironko, s'il vous pla%EEt"),
        ] {
            let inbound = parse_inbound(Some(kind), body, now()).unwrap();
            assert_eq!(inbound.messages[0].text, "Kimironko, s'il vous pla\u{fffd}t", "{kind}");
        }
        let with_mark = b"\xef\xbb\xbf[{\"from\":\"+250788123456\",\"text\":\"Yego\"}]";
        assert_eq!(parse_inbound(None, with_mark, now()).unwrap().messages[0].text, "Yego");
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>, form: bool) {
            let kind = form.then_some("application/x-www-form-urlencoded");
            let _ = parse_inbound(kind, &body, now());
            let _ = parse_delivery_reports(kind, &body, now());
            let _ = (parse_token(200, &body), parse_outbound_response(200, &body, REF));
        }

        #[test]
        fn odd_shapes_do_not_panic(a in "\\PC{0,20}", n: i64) {
            for value in [json!({"data": n}), json!({"inboundSMSMessageList": [a]}), json!({"from": [a], "message": {"body": n}}),
                json!({"from": "0788123456", "message": a, "dateTime": n}), json!({"messages": [[n], null, {"from": a}]})] {
                let _ = parse_inbound(None, value.to_string().as_bytes(), now());
                let _ = parse_delivery_reports(None, value.to_string().as_bytes(), now());
            }
        }

        #[test]
        fn the_text_is_bounded_and_without_nul(text in "(\\PC|\0|\n){1,60}", times in 1_usize..60) {
            let body = json!({"from": "0788123456", "message": text.repeat(times)}).to_string();
            for sms in parse_inbound(None, body.as_bytes(), now()).unwrap().messages {
                prop_assert!(sms.text.chars().count() <= MAX_TEXT_CHARS && !sms.text.contains('\0'));
            }
        }
    }
}
