//! Inbound messages, in the forms that carriers use.

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::{SERVICE_CODE, form};

/// How a caller proves itself to our webhooks; MTN itself signs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// `Authorization: Bearer <secret>`
    #[default]
    Bearer,
    /// `X-Timestamp`, and `X-Signature: sha256=<hex>` over `{timestamp}.{body}`
    Signature,
    /// A secret path segment.
    PathToken,
    Nothing,
}

/// The form in which an inbound message arrives; MTN documents none for V3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// `senderAddress, receiverAddress, message, messageId, dateTime`
    #[default]
    V3,
    /// `from, to, message`, and no id.
    Plain,
    /// `inboundSMSMessageNotification`
    OneApi,
    /// `from=…&to=…&text=…&id=…` as a form.
    Form,
}

/// An inbound message to post.
#[derive(Clone, Debug)]
pub struct Inbound {
    pub from: String,
    pub to: String,
    pub text: String,
    pub id: String,
    pub at: DateTime<Utc>,
    pub shape: Shape,
    pub proof: Proof,
}

impl Inbound {
    pub fn new(from: &str, text: &str) -> Self {
        Self {
            from: from.to_owned(),
            to: SERVICE_CODE.to_owned(),
            text: text.to_owned(),
            id: Uuid::new_v4().to_string(),
            at: Utc::now(),
            shape: Shape::default(),
            proof: Proof::default(),
        }
    }

    pub fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    pub fn to(mut self, to: &str) -> Self {
        self.to = to.to_owned();
        self
    }

    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    pub fn proof(mut self, proof: Proof) -> Self {
        self.proof = proof;
        self
    }

    /// Content type and body.
    pub(super) fn encoded(&self) -> (&'static str, String) {
        let from = self.from.trim_start_matches('+');
        let body = match self.shape {
            Shape::V3 => {
                json!({"senderAddress": from, "receiverAddress": self.to, "message": self.text,
                                "messageId": self.id, "dateTime": kigali(self.at)})
            }
            Shape::Plain => json!({"from": self.from, "to": self.to, "message": self.text}),
            Shape::OneApi => {
                json!({"inboundSMSMessageNotification": {"callbackData": "ihuza", "inboundSMSMessage": {
                "dateTime": self.at.to_rfc3339(), "destinationAddress": format!("tel:{}", self.to),
                "messageId": self.id, "message": self.text, "senderAddress": format!("tel:{}", self.from)}}})
            }
            Shape::Form => {
                let pairs = [("from", &self.from), ("to", &self.to), ("text", &self.text), ("id", &self.id)];
                let pairs: Vec<String> =
                    pairs.iter().map(|(name, value)| format!("{name}={}", form::encoded(value))).collect();
                return ("application/x-www-form-urlencoded", pairs.join("&"));
            }
        };
        ("application/json", body.to_string())
    }
}

/// MTN writes local time (Africa/Kigali, two hours ahead of UTC all year) without a zone.
pub(super) fn kigali(at: DateTime<Utc>) -> String {
    let local = at + chrono::TimeDelta::hours(2);
    local.format("%Y-%m-%dT%H:%M:%S").to_string()
}
