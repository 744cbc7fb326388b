//! The requests that the accept paths are measured with: proper ones, and for the comparison of both sides also improper ones.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::http::Request;

/// Of the length and form of a legacy service key, which callers present.
pub const SERVICE_KEY: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJzdXBhYmFzZSIsInJlZiI6ImJlbmNobWFya3BsYWNlaG9sZGVyIiwicm9sZSI6InNlcnZpY2Vfcm9sZSIsImlhdCI6MTc2NzIyNTYwMCwiZXhwIjoyMDgyNTg1NjAwfQ.Zm9yLW1lYXN1cmluZy1vbmx5LW5vLWtleS1hdC1hbGw";
pub const WEBHOOK_SECRET: &str = "for-measuring-only-5f1a7c0e9b3d4286";

/// The accept paths that are measured.
pub const MEASURED: [Accept; 2] = [Accept::PostCallNotify, Accept::SmsInbound];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    PostCallNotify,
    SmsInbound,
}

impl Accept {
    pub fn function(self) -> &'static str {
        match self {
            Accept::PostCallNotify => "post-call-notify",
            Accept::SmsInbound => "sms-inbound-webhook",
        }
    }

    /// What a request of this kind asks of the Worker, for notes.
    pub fn work(self) -> &'static str {
        match self {
            Accept::PostCallNotify => {
                "bearer key compared in constant time, JSON parsed and checked, one queue send, one log line"
            }
            Accept::SmsInbound => {
                "HMAC-SHA256 verified, JSON parsed and checked, keyword and language looked for, one queue send, one log line"
            }
        }
    }

    pub fn accepted(self) -> u16 {
        match self {
            Accept::PostCallNotify => 202,
            Accept::SmsInbound => 200,
        }
    }

    /// A proper request, another one for every number.
    pub fn request(self, number: usize) -> Request {
        match self {
            Accept::PostCallNotify => post_call_notify(
                SERVICE_KEY,
                &format!(
                    r#"{{"callId":"{}","profileId":"{}","phoneNumber":"+2507881{:05}"}}"#,
                    uuid(number),
                    uuid(number + 7),
                    number % 100_000
                ),
            ),
            Accept::SmsInbound => signed(
                "/sms-inbound-webhook",
                &sms(number, "Hello, is the house in Kimironko still available? My budget is 250k."),
            ),
        }
    }

    /// Requests that both sides must treat alike, good and bad.
    pub fn comparison(self) -> Vec<Request> {
        match self {
            Accept::PostCallNotify => {
                let bodies = [
                    r#"{"callId":"call-1","phoneNumber":"+250788123456"}"#,
                    r#"{"call_id":"call-1","phone_number":"0788 123 456","correlation_id":"mine-1"}"#,
                    r#"{"callId":88120453,"profileId":"  p-1 "}"#,
                    r#"{"callId":"a\u0000b"}"#,
                    r#"{"callId":"call-1","phoneNumber":"+250688123456"}"#,
                    r#"{"callId":"call-1","phoneNumber":"12"}"#,
                    r#"{"callId":"call-1","correlationId":"two words"}"#,
                    r#"{"phoneNumber":"+250788123456"}"#,
                    r#"{"callId":"#,
                    "[1]",
                ];
                let mut requests: Vec<Request> =
                    bodies.iter().map(|body| post_call_notify(SERVICE_KEY, body)).collect();
                requests.push(post_call_notify("somebody else's key", "{}"));
                requests.push(Request::new("PUT", "/post-call-notify", &[], "{}"));
                requests
            }
            Accept::SmsInbound => {
                let mut requests: Vec<Request> =
                    TEXTS.iter().enumerate().map(|(at, text)| signed("/sms-inbound-webhook", &sms(at, text))).collect();
                let bodies = [
                    r#"{"senderAddress":"250788123456","receiverAddress":"8080","message":"Yego","dateTime":"2026-11-21T06:05:00","id":77}"#,
                    r#"{"inboundSMSMessageNotification":{"inboundSMSMessage":{"senderAddress":"tel:+250788123456","destinationAddress":"8080","message":"x","messageId":"m"}}}"#,
                    r#"[{"from":"8080","message":"ad","id":"1"},{"from":"0788123456","message":{"body":"b"},"id":"2","date":"20261121060500"}]"#,
                    r#"{"from":"+254712345678","message":"from abroad","timestamp":"2026-11-21T04:05:00.250Z","to":"EasyMO"}"#,
                    r#"{"from":"+250688123456","message":"x"}"#,
                    r#"{"from":"anonymous","message":"x"}"#,
                    r#"{"message":"x"}"#,
                    "{",
                ];
                requests.extend(bodies.iter().map(|body| signed("/sms-inbound-webhook", body)));
                let bearer = format!("Bearer {WEBHOOK_SECRET}");
                let form = "from=%2B250788123456&to=8080&text=Yego+rwose&id=m-77&date=2026-11-21+06%3A05%3A00";
                let headers =
                    [("authorization", bearer.as_str()), ("content-type", "application/x-www-form-urlencoded")];
                requests.push(Request::new("POST", "/sms-inbound-webhook", &headers, form));
                requests.push(Request::new("POST", &format!("/mtn/{WEBHOOK_SECRET}"), &[], &sms(1, "by path")));
                requests.push(Request::new("POST", "/mtn/guess", &[], &sms(1, "by path")));
                requests.push(Request::new("POST", "/", &[("x-signature", "sha256=00"), ("x-timestamp", "1")], "{}"));
                requests
            }
        }
    }
}

/// Keywords and languages of inbound messages.
const TEXTS: [&str; 8] = [
    "STOP",
    "Arrêtez, s'il vous plaît!",
    "stop stop. Thank you",
    "Please stop by tomorrow",
    "Ndashaka kubona inzu ejo, murakoze",
    "Habari, nyumba bado ipo?",
    "Bonjour, je cherche une maison à louer",
    "250k",
];

fn post_call_notify(key: &str, body: &str) -> Request {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    Request::new("POST", "/post-call-notify", &headers, body)
}

fn sms(number: usize, text: &str) -> String {
    format!(
        r#"{{"from":"+2507882{:05}","to":"8080","message":"{text}","messageId":"msg-{number}","dateTime":"2026-11-21T06:05:00"}}"#,
        number % 100_000
    )
}

/// Signed as our own scheme has it: HMAC-SHA256 of timestamp, point and body.
pub fn signed(path: &str, body: &str) -> Request {
    let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
    // HMAC takes keys of every length.
    let mac = Hmac::<Sha256>::new_from_slice(WEBHOOK_SECRET.as_bytes()).map(|mac| {
        let digest = mac.chain_update(&timestamp).chain_update(".").chain_update(body).finalize().into_bytes();
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    let signature = format!("sha256={}", mac.unwrap_or_default());
    let headers = [
        ("x-signature", signature.as_str()),
        ("x-timestamp", timestamp.as_str()),
        ("content-type", "application/json"),
    ];
    Request::new("POST", path, &headers, body)
}

fn uuid(number: usize) -> String {
    format!("{number:08x}-5f1a-4c0e-9b3d-42867d1a5c0e")
}
