//! Whether a send request is one that Meta takes, as far as the request alone tells.

use serde_json::{Map, Value};

use super::template::Call;

const MAX_TEXT: usize = 4096;
const MAX_CALLBACK_DATA: usize = 512;
const MAX_BUTTONS: usize = 3;
const MAX_BUTTON_TITLE: usize = 20;
const MAX_BUTTON_BODY: usize = 1024;

/// A code of Meta's and its details.
pub type Verdict<T> = Result<T, (i64, String)>;

/// A send request that is well formed.
#[derive(Clone, Debug)]
pub struct Message {
    /// A number with its `+`, or a user id.
    pub recipient: String,
    pub text: Option<String>,
    pub(super) template: Option<Call>,
    pub callback_data: Option<String>,
    pub body: Value,
}

impl Message {
    pub(super) fn parse(bytes: &[u8]) -> Verdict<Self> {
        let body: Value = serde_json::from_slice(bytes).map_err(|_| (100, "Invalid JSON".to_owned()))?;
        let fields = body.as_object().ok_or((100, "Invalid parameter".to_owned()))?;
        if fields.get("messaging_product") != Some(&Value::from("whatsapp")) {
            return Err((100, "The parameter messaging_product is required.".to_owned()));
        }
        if fields.get("recipient_type").is_some_and(|kind| kind != "individual") {
            return Err((100, "recipient_type must be individual".to_owned()));
        }
        let recipient = recipient(fields)?;
        let callback_data = match fields.get("biz_opaque_callback_data") {
            None => None,
            Some(Value::String(data)) if units(data) <= MAX_CALLBACK_DATA => Some(data.clone()),
            Some(_) => {
                return Err((
                    131_009,
                    format!("biz_opaque_callback_data must be a text of at most {MAX_CALLBACK_DATA}"),
                ));
            }
        };
        let kind = fields.get("type").and_then(Value::as_str).unwrap_or("text");
        let content = fields.get(kind).and_then(Value::as_object);
        let content = content.ok_or_else(|| (131_008, format!("The parameter {kind} is required.")))?;
        let (text, template) = match kind {
            "text" => (Some(text_body(content, MAX_TEXT)?), None),
            "interactive" => (Some(interactive(content)?), None),
            "template" => (None, Some(Call::parse(content)?)),
            _ => {
                return Err((131_051, format!("Message type {kind} is not one that we send")));
            }
        };
        Ok(Self { recipient, text, template, callback_data, body })
    }
}

/// A number in `to`, which wins, or a business-scoped user id in `recipient`.
fn recipient(fields: &Map<String, Value>) -> Verdict<String> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let Some(to) = text("to") else {
        let id = text("recipient").ok_or((131_008, "The parameter to is required.".to_owned()))?;
        let (country, rest) = id.split_once('.').unwrap_or_default();
        let proper = country.len() == 2
            && country.bytes().all(|byte| byte.is_ascii_uppercase())
            && (1..=128).contains(&rest.len())
            && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
        return if proper {
            Ok(id.to_owned())
        } else {
            Err((131_009, "recipient must be a business-scoped user id".to_owned()))
        };
    };
    let digits = to.strip_prefix('+').unwrap_or_default();
    let proper = (8..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !proper {
        // Without the + Meta may put our own country code in front.
        return Err((131_009, "to must be + and 8 to 15 digits".to_owned()));
    }
    Ok(to.to_owned())
}

fn text_body(content: &Map<String, Value>, limit: usize) -> Verdict<String> {
    let body = content.get("body").and_then(Value::as_str);
    let body = body.ok_or((131_008, "The parameter body is required.".to_owned()))?;
    if body.trim().is_empty() || units(body) > limit {
        return Err((131_009, format!("body must be 1 to {limit} characters")));
    }
    Ok(body.to_owned())
}

fn interactive(content: &Map<String, Value>) -> Verdict<String> {
    let wrong = |why: &str| (131_009, why.to_owned());
    if content.get("type").and_then(Value::as_str) != Some("button") {
        return Err(wrong("interactive type must be button"));
    }
    let body = content.get("body").and_then(|body| body.get("text")).and_then(Value::as_str);
    let body = body.ok_or((131_008, "The parameter interactive.body.text is required.".to_owned()))?;
    if body.trim().is_empty() || units(body) > MAX_BUTTON_BODY {
        return Err(wrong("interactive body must be 1 to 1024 characters"));
    }
    let buttons = content.get("action").and_then(|action| action.get("buttons")).and_then(Value::as_array);
    let buttons = buttons.ok_or((131_008, "The parameter action.buttons is required.".to_owned()))?;
    if buttons.is_empty() || buttons.len() > MAX_BUTTONS {
        return Err(wrong("1 to 3 buttons"));
    }
    for button in buttons {
        let title = button.pointer("/reply/title").and_then(Value::as_str).unwrap_or_default();
        if title.is_empty() || units(title) > MAX_BUTTON_TITLE {
            return Err(wrong("button title must be 1 to 20 characters"));
        }
        if button.pointer("/reply/id").and_then(Value::as_str).unwrap_or_default().is_empty() {
            return Err(wrong("button id is required"));
        }
    }
    Ok(body.to_owned())
}

/// Length as Meta may count it; which unit it really uses is not documented.
pub fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

pub fn title(code: i64) -> &'static str {
    match code {
        4 => "Application request limit reached",
        100 => "Invalid parameter",
        190 => "Access token has expired",
        368 => "Temporarily blocked for policies violations",
        80_007 => "Rate limit issues",
        130_429 => "Rate limit hit",
        131_000 => "Something went wrong",
        131_008 => "Required parameter is missing",
        131_009 => "Parameter value is not valid",
        131_016 => "Service unavailable",
        131_026 => "Message undeliverable",
        131_047 => "Re-engagement message",
        131_048 => "Spam rate limit hit",
        131_049 => "Meta chose not to deliver",
        131_051 => "Unsupported message type",
        131_056 => "(Business Account, Consumer Account) pair rate limit hit",
        132_000 => "Template Param Count Mismatch",
        132_001 => "Template does not exist",
        132_005 => "Template Hydrated Text Too Long",
        132_012 => "Template Parameter Format Mismatch",
        132_018 => "Template parameter value is not valid",
        _ => "Request failed",
    }
}

pub fn http_status(code: i64) -> u16 {
    match code {
        0 | 190 => 401,
        3 | 10 | 200..=299 | 131_005 | 368 | 131_031 => 403,
        132_001 => 404,
        131_000 | 131_057 => 500,
        2 | 131_016 | 133_004 => 503,
        _ => 400,
    }
}
