//! What a client may send, and what of it is refused at once: unknown events, unknown fields, fields that are missing or of
//! the wrong kind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::super::check::Refusal;
use super::settings::{Checked, keys, refusal, session, word};

/// Sound in one event.
const MOST_AUDIO_BYTES: usize = 15 * 1024 * 1024;

/// An event of a client, read and sound by itself.
#[derive(Debug, PartialEq)]
pub enum Event {
    Update(Value),
    Append(Vec<u8>),
    Commit,
    Clear,
    Create { item: Value, previous: Option<String> },
    Truncate { item_id: String, content_index: u64, audio_end_ms: u64 },
    Delete(String),
    Retrieve(String),
    Respond(Value),
    Cancel(Option<String>),
}

/// Name, required fields, optional fields.
const EVENTS: [(&str, &[&str], &[&str]); 10] = [
    ("session.update", &["session"], &[]),
    ("input_audio_buffer.append", &["audio"], &[]),
    ("input_audio_buffer.commit", &[], &[]),
    ("input_audio_buffer.clear", &[], &[]),
    ("conversation.item.create", &["item"], &["previous_item_id"]),
    ("conversation.item.truncate", &["item_id", "content_index", "audio_end_ms"], &[]),
    ("conversation.item.delete", &["item_id"], &[]),
    ("conversation.item.retrieve", &["item_id"], &[]),
    ("response.create", &[], &["response"]),
    ("response.cancel", &[], &["response_id"]),
];

impl Event {
    /// Reads a message that is a JSON object.
    pub fn read(given: &Value) -> Result<Self, Refusal> {
        let name = given.get("type").and_then(Value::as_str);
        let name = name.ok_or_else(|| missing("type"))?;
        let Some((_, required, optional)) = EVENTS.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<String> = EVENTS.iter().map(|(known, ..)| format!("'{known}'")).collect();
            let message = format!("Invalid value: '{name}'. Supported values are: {}.", known.join(", "));
            return Err(refusal("invalid_value", "type", &message));
        };
        let known = [&["type", "event_id"], *required, *optional].concat();
        let fields = keys(given, "event", &known).map_err(|refused| Refusal {
            message: refused.message.replace("event.", ""),
            param: refused.param.replace("event.", ""),
            ..refused
        })?;
        if let Some(name) = required.iter().find(|name| !fields.contains_key(**name)) {
            return Err(missing(name));
        }
        Ok(match name {
            "session.update" => {
                let wanted = fields.get("session").cloned().unwrap_or_default();
                session(&wanted)?;
                Self::Update(wanted)
            }
            "input_audio_buffer.append" => Self::Append(audio(fields)?),
            "input_audio_buffer.commit" => Self::Commit,
            "input_audio_buffer.clear" => Self::Clear,
            "conversation.item.create" => {
                let wanted = fields.get("item").cloned().unwrap_or_default();
                item(&wanted)?;
                Self::Create { item: wanted, previous: text(fields, "previous_item_id")? }
            }
            "conversation.item.truncate" => Self::Truncate {
                item_id: text(fields, "item_id")?.unwrap_or_default(),
                content_index: count(fields, "content_index")?,
                audio_end_ms: count(fields, "audio_end_ms")?,
            },
            "conversation.item.delete" => Self::Delete(text(fields, "item_id")?.unwrap_or_default()),
            "conversation.item.retrieve" => Self::Retrieve(text(fields, "item_id")?.unwrap_or_default()),
            "response.create" => {
                let wanted = fields.get("response").cloned().unwrap_or_else(|| json!({}));
                response(&wanted)?;
                Self::Respond(wanted)
            }
            _ => Self::Cancel(text(fields, "response_id")?),
        })
    }
}

fn missing(name: &str) -> Refusal {
    refusal("missing_required_parameter", name, &format!("Missing required parameter: '{name}'."))
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(refusal("invalid_type", name, &format!("Invalid type for '{name}': expected a string."))),
    }
}

fn count(fields: &Map<String, Value>, name: &str) -> Result<u64, Refusal> {
    let message = || format!("Invalid type for '{name}': expected a non-negative integer.");
    fields.get(name).and_then(Value::as_u64).ok_or_else(|| refusal("invalid_type", name, &message()))
}

fn audio(fields: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let written = text(fields, "audio")?.ok_or_else(|| missing("audio"))?;
    let message = "Invalid 'audio'. Expected base64-encoded audio bytes.";
    let bytes = STANDARD.decode(written).map_err(|_| refusal("invalid_value", "audio", message))?;
    if bytes.len() > MOST_AUDIO_BYTES {
        return Err(refusal("invalid_value", "audio", "Audio of one event exceeds 15 MiB."));
    }
    Ok(bytes)
}

fn response(given: &Value) -> Checked {
    let known = [
        "instructions",
        "output_modalities",
        "audio",
        "tools",
        "tool_choice",
        "max_output_tokens",
        "metadata",
        "conversation",
        "input",
        "reasoning",
        "parallel_tool_calls",
    ];
    let fields = keys(given, "response", &known)?;
    word(fields, "conversation", &["auto", "none"])?;
    if let Some(audio) = fields.get("audio") {
        let audio = keys(audio, "response.audio", &["output"])?;
        if let Some(output) = audio.get("output") {
            keys(output, "response.audio.output", &["format", "voice"])?;
        }
    }
    match fields.get("output_modalities") {
        Some(given) if *given != json!(["audio"]) && *given != json!(["text"]) => {
            Err(refusal("invalid_value", "response.output_modalities", "Either audio or text."))
        }
        _ => Ok(()),
    }
}

fn item(given: &Value) -> Checked {
    let kind = given.get("type").and_then(Value::as_str).ok_or_else(|| missing("item.type"))?;
    let common = ["type", "id", "object", "status"];
    let own: &[&str] = match kind {
        "message" => &["role", "content"],
        "function_call" => &["call_id", "name", "arguments"],
        "function_call_output" => &["call_id", "output"],
        _ => return Err(refusal("invalid_value", "item.type", &format!("Invalid value: '{kind}'."))),
    };
    let fields = keys(given, "item", &[&common, own].concat())?;
    for name in own {
        if !fields.contains_key(*name) {
            return Err(missing(&format!("item.{name}")));
        }
        if *name != "content" {
            text(fields, name)?;
        }
    }
    if kind == "message" { content(fields) } else { Ok(()) }
}

/// Parts of a message; what a role may say is the vendor's list.
fn content(fields: &Map<String, Value>) -> Checked {
    let role = fields.get("role").and_then(Value::as_str).unwrap_or_default();
    let allowed: &[&str] = match role {
        "user" => &["input_text", "input_audio", "input_image"],
        "system" => &["input_text"],
        // The model's own sound cannot be written for it.
        "assistant" => &["output_text"],
        _ => return Err(refusal("invalid_value", "item.role", &format!("Invalid value: '{role}'."))),
    };
    let parts = fields.get("content").and_then(Value::as_array).filter(|parts| !parts.is_empty());
    let parts = parts.ok_or_else(|| refusal("invalid_type", "item.content", "A list of parts is expected."))?;
    for part in parts {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        if !allowed.contains(&kind) {
            let message = format!("Invalid value: '{kind}'. Supported values are: {}.", allowed.join(", "));
            return Err(refusal("invalid_value", "item.content.type", &message));
        }
        let own: &[&str] = match kind {
            "input_audio" => &["type", "audio", "transcript"],
            "input_image" => &["type", "image_url", "detail"],
            _ => &["type", "text"],
        };
        let part = keys(part, "item.content", own)?;
        if kind.ends_with("_text") && !part.get("text").is_some_and(Value::is_string) {
            return Err(missing("item.content.text"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(given: Value, code: &str, param: &str) {
        let refused = Event::read(&given).unwrap_err();
        assert_eq!((refused.code, refused.param.as_str()), (code, param), "{given}");
    }

    #[test]
    fn what_the_relay_sends_is_read() {
        for sound in [
            json!({"type": "session.update", "event_id": "e", "session": {"type": "realtime"}}),
            json!({"type": "input_audio_buffer.append", "audio": "1dXV"}),
            json!({"type": "input_audio_buffer.commit"}),
            json!({"type": "input_audio_buffer.clear"}),
            json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}}),
            json!({"type": "conversation.item.create", "item": {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}}),
            json!({"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "c", "output": "{}"}, "previous_item_id": "root"}),
            json!({"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 240}),
            json!({"type": "conversation.item.delete", "item_id": "i"}),
            json!({"type": "response.create", "response": {"instructions": "Greet."}}),
            json!({"type": "response.create"}),
            json!({"type": "response.cancel"}),
        ] {
            assert!(Event::read(&sound).is_ok(), "{sound}: {:?}", Event::read(&sound));
        }
    }

    #[test]
    fn what_is_of_the_beta_or_of_nobody_is_refused_by_name() {
        refused(json!({"audio": "1dXV"}), "missing_required_parameter", "type");
        refused(json!({"type": "transcription_session.update"}), "invalid_value", "type");
        refused(json!({"type": "output_audio_buffer.clear"}), "invalid_value", "type");
        refused(json!({"type": "input_audio_buffer.append"}), "missing_required_parameter", "audio");
        refused(json!({"type": "input_audio_buffer.append", "audio": "!"}), "invalid_value", "audio");
        refused(json!({"type": "input_audio_buffer.append", "audio": [1]}), "invalid_type", "audio");
        refused(json!({"type": "input_audio_buffer.commit", "final": true}), "unknown_parameter", "final");
        refused(json!({"type": "session.update", "session": {}}), "missing_required_parameter", "session.type");
        let session = |field: &str, value: Value| json!({"type": "session.update", "session": {"type": "realtime", field: value}});
        for beta in
            ["voice", "modalities", "input_audio_format", "turn_detection", "temperature", "max_response_output_tokens"]
        {
            refused(session(beta, json!("x")), "unknown_parameter", &format!("session.{beta}"));
        }
        let truncate = json!({"type": "conversation.item.truncate", "item_id": "i", "content_index": 0});
        refused(truncate, "missing_required_parameter", "audio_end_ms");
        let truncate =
            json!({"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": -1});
        refused(truncate, "invalid_type", "audio_end_ms");
        refused(
            json!({"type": "response.create", "response": {"modalities": ["audio"]}}),
            "unknown_parameter",
            "response.modalities",
        );
        let item = |item: Value| json!({"type": "conversation.item.create", "item": item});
        refused(
            item(json!({"type": "message", "role": "user", "content": [{"type": "text", "text": "beta"}]})),
            "invalid_value",
            "item.content.type",
        );
        refused(
            item(json!({"type": "message", "role": "assistant", "content": [{"type": "output_audio", "audio": ""}]})),
            "invalid_value",
            "item.content.type",
        );
        refused(item(json!({"type": "message", "role": "user", "content": []})), "invalid_type", "item.content");
        refused(
            item(json!({"type": "function_call_output", "call_id": "c"})),
            "missing_required_parameter",
            "item.output",
        );
        refused(item(json!({"type": "function_call_output", "call_id": "c", "output": {}})), "invalid_type", "output");
    }
}
