//! Whether an outbound message is one that MTN takes.

use serde_json::{Map, Value};

const MAX_RECIPIENTS: usize = 20;
const MAX_CORRELATOR: usize = 36;
/// Alphanumeric sender names are as long as this (3GPP TS 23.040 §9.1.2.5).
const MAX_SENDER: usize = 11;
const MAX_CHARACTERS: usize = 1600;

/// An outbound message that is as it should be.
pub struct Outbound {
    pub recipients: Vec<String>,
    pub sender: String,
    pub text: String,
    pub correlator: String,
    pub wants_report: bool,
}

impl Outbound {
    /// The error is MTN's `supportMessage`.
    pub fn parse(body: &[u8]) -> std::result::Result<Self, String> {
        const KNOWN: [&str; 7] = [
            "message",
            "serviceCode",
            "receiverAddress",
            "clientCorrelatorId",
            "senderAddress",
            "requestDeliveryReceipt",
            "keyword",
        ];
        let body: Value = serde_json::from_slice(body).map_err(|_| "body is not JSON".to_owned())?;
        let body = body.as_object().ok_or("body is not an object")?;
        if let Some(stranger) = body.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(format!("{stranger} is not a field of this request"));
        }
        let service_code = text(body, "serviceCode")?;
        let correlator = text(body, "clientCorrelatorId")?;
        if correlator.len() > MAX_CORRELATOR {
            return Err(format!("clientCorrelatorId is longer than {MAX_CORRELATOR} characters"));
        }
        let message = text(body, "message")?;
        if message.chars().count() > MAX_CHARACTERS {
            return Err(format!("message is longer than {MAX_CHARACTERS} characters"));
        }
        let sender = match body.get("senderAddress") {
            None => service_code,
            Some(_) => text(body, "senderAddress")?,
        };
        if sender.chars().count() > MAX_SENDER {
            return Err(format!("senderAddress is longer than {MAX_SENDER} characters"));
        }
        let wants_report = match body.get("requestDeliveryReceipt") {
            None => false,
            Some(value) => value.as_bool().ok_or("requestDeliveryReceipt must be true or false")?,
        };
        Ok(Self { recipients: recipients(body)?, sender, text: message, correlator, wants_report })
    }
}

fn text(body: &Map<String, Value>, field: &str) -> std::result::Result<String, String> {
    match body.get(field) {
        None => Err(format!("{field} is required")),
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(_) => Err(format!("{field} must be a text that is not empty")),
    }
}

fn recipients(body: &Map<String, Value>) -> std::result::Result<Vec<String>, String> {
    let list = body.get("receiverAddress").ok_or("receiverAddress is required")?;
    let list = list.as_array().ok_or("receiverAddress must be a list")?;
    if list.is_empty() || list.len() > MAX_RECIPIENTS {
        return Err(format!("receiverAddress must hold 1 to {MAX_RECIPIENTS} numbers"));
    }
    let mut numbers = Vec::new();
    for entry in list {
        let number = entry.as_str().ok_or("receiverAddress must hold texts")?;
        if !number.bytes().all(|byte| byte.is_ascii_digit()) || !(8..=15).contains(&number.len()) {
            return Err("receiverAddress must be 8 to 15 digits with country code and without +".to_owned());
        }
        numbers.push(number.to_owned());
    }
    Ok(numbers)
}
