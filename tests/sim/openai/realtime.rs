//! Ephemeral keys of the Realtime API: `POST /v1/realtime/client_secrets`, GA names only.
//!
//! Names and ranges from package `openai` 3.52.0 (`types/realtime`).

use chrono::Utc;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::check::Refusal;
use crate::http::Request;

pub const PATH: &str = "/v1/realtime/client_secrets";

/// In service, and not about to end.
const MODELS: [&str; 4] = ["gpt-realtime-2.1", "gpt-realtime-2.1-mini", "gpt-realtime-2", "gpt-realtime-1.5"];
const VOICES: [&str; 10] = ["alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"];
const TRANSCRIBERS: [&str; 3] = ["gpt-transcribe", "gpt-live-transcribe", "gpt-realtime-whisper"];

type Checked = Result<(), Refusal>;

/// The key, and the answer with it.
pub fn mint(request: &Request) -> Result<(String, Value), Refusal> {
    if request.header("openai-beta").is_some() {
        return Err(refusal("beta_api_shape_disabled", "OpenAI-Beta", "The beta API shape is disabled."));
    }
    if let Some(person) = request.header("openai-safety-identifier")
        && (person.len() > 128 || person.starts_with('+'))
    {
        return Err(refusal(
            "invalid_value",
            "OpenAI-Safety-Identifier",
            "A hash of at most 128 characters is expected.",
        ));
    }
    let body: Value = serde_json::from_slice(&request.body)
        .map_err(|_| refusal("invalid_json", "body", "We could not parse the JSON body"))?;
    let fields = keys(&body, "body", &["expires_after", "session"])?;
    let mut seconds = 600;
    if let Some(expiry) = fields.get("expires_after") {
        let expiry = keys(expiry, "expires_after", &["anchor", "seconds"])?;
        word(expiry, "anchor", &["created_at"])?;
        seconds = expiry.get("seconds").and_then(Value::as_i64).unwrap_or(600);
        if !(10..=7200).contains(&seconds) {
            return Err(refusal("invalid_value", "expires_after.seconds", "seconds must be from 10 to 7200"));
        }
    }
    let given = fields.get("session").cloned().unwrap_or_else(|| json!({"type": "realtime"}));
    session(&given)?;
    let key = format!("ek_{}", Uuid::new_v4().simple());
    let mut effective = given.as_object().cloned().unwrap_or_default();
    effective.insert("id".to_owned(), format!("sess_{}", Uuid::new_v4().simple()).into());
    effective.insert("object".to_owned(), "realtime.session".into());
    let answer = json!({"value": key, "expires_at": Utc::now().timestamp() + seconds, "session": effective});
    Ok((key, answer))
}

fn session(given: &Value) -> Checked {
    let known = [
        "type",
        "model",
        "output_modalities",
        "instructions",
        "audio",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning",
        "max_output_tokens",
        "truncation",
        "include",
        "tracing",
    ];
    let fields = keys(given, "session", &known)?;
    word(fields, "type", &["realtime"])?;
    if fields.get("type").is_none() {
        return Err(refusal(
            "missing_required_parameter",
            "session.type",
            "Missing required parameter: 'session.type'.",
        ));
    }
    if let Some(model) = fields.get("model").and_then(Value::as_str)
        && !MODELS.contains(&model)
    {
        return Err(Refusal {
            status: 404,
            ..refusal("model_not_found", "session.model", "The model does not exist.")
        });
    }
    if let Some(modalities) = fields.get("output_modalities")
        && *modalities != json!(["audio"])
        && *modalities != json!(["text"])
    {
        return Err(refusal("invalid_value", "session.output_modalities", "Either audio or text."));
    }
    if let Some(audio) = fields.get("audio") {
        let audio = keys(audio, "session.audio", &["input", "output"])?;
        if let Some(input) = audio.get("input") {
            listens(input)?;
        }
        if let Some(output) = audio.get("output") {
            let output = keys(output, "session.audio.output", &["format", "voice", "speed"])?;
            output.get("format").map_or(Ok(()), format)?;
            word(output, "voice", &VOICES)?;
        }
    }
    for tool in fields.get("tools").and_then(Value::as_array).into_iter().flatten() {
        let tool = keys(tool, "session.tools", &["type", "name", "description", "parameters"])?;
        word(tool, "type", &["function"])?;
        if tool.get("parameters").and_then(|schema| schema.get("type")) != Some(&json!("object")) {
            return Err(refusal(
                "invalid_value",
                "session.tools.parameters",
                "A JSON Schema of type object is expected.",
            ));
        }
    }
    Ok(())
}

fn listens(input: &Value) -> Checked {
    let input = keys(input, "session.audio.input", &["format", "noise_reduction", "transcription", "turn_detection"])?;
    input.get("format").map_or(Ok(()), format)?;
    if let Some(transcription) = input.get("transcription").filter(|found| !found.is_null()) {
        let known = ["model", "language", "languages", "prompt", "keywords", "delay"];
        word(keys(transcription, "session.audio.input.transcription", &known)?, "model", &TRANSCRIBERS)?;
    }
    if let Some(noise) = input.get("noise_reduction").filter(|found| !found.is_null()) {
        word(
            keys(noise, "session.audio.input.noise_reduction", &["type", "strength"])?,
            "type",
            &["near_field", "far_field"],
        )?;
    }
    let Some(turns) = input.get("turn_detection").filter(|found| !found.is_null()) else {
        return Ok(());
    };
    let at = "session.audio.input.turn_detection";
    let common = ["type", "create_response", "interrupt_response"];
    let own: &[&str] = match turns.get("type").and_then(Value::as_str) {
        Some("server_vad") => &["threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms"],
        Some("semantic_vad") => &["eagerness"],
        _ => return Err(refusal("invalid_value", at, "server_vad or semantic_vad is expected.")),
    };
    keys(turns, at, &[&common, own].concat()).map(|_| ())
}

fn format(given: &Value) -> Checked {
    let whole =
        [json!({"type": "audio/pcm", "rate": 24000}), json!({"type": "audio/pcmu"}), json!({"type": "audio/pcma"})];
    if whole.contains(given) {
        return Ok(());
    }
    Err(refusal("invalid_value", "session.audio.format", "An audio format is expected."))
}

fn keys<'a>(value: &'a Value, at: &str, known: &[&str]) -> Result<&'a Map<String, Value>, Refusal> {
    let Some(map) = value.as_object() else {
        return Err(refusal("invalid_type", at, "An object is expected."));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(stranger) => {
            let message = format!("Unknown parameter: '{at}.{stranger}'.");
            Err(Refusal { message, ..refusal("unknown_parameter", &format!("{at}.{stranger}"), "") })
        }
        None => Ok(map),
    }
}

fn word(fields: &Map<String, Value>, name: &str, known: &[&str]) -> Checked {
    match fields.get(name) {
        Some(value) if !value.as_str().is_some_and(|word| known.contains(&word)) => {
            Err(refusal("invalid_value", name, "This value is not supported."))
        }
        _ => Ok(()),
    }
}

fn refusal(code: &'static str, param: &str, message: &str) -> Refusal {
    Refusal { status: 400, code, message: message.to_owned(), param: param.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: Value, code: Option<&str>) {
        assert_eq!(session(&given).err().map(|refused| refused.code), code, "{given}");
    }

    #[test]
    fn only_the_shape_of_today_is_taken() {
        check(
            json!({"type": "realtime", "model": "gpt-realtime-2.1", "audio": {"output": {"voice": "marin", "format": {"type": "audio/pcma"}}}}),
            None,
        );
        check(json!({"model": "gpt-realtime-2.1"}), Some("missing_required_parameter"));
        check(json!({"type": "realtime", "model": "gpt-4o-realtime-preview-2024-10-01"}), Some("model_not_found"));
        check(json!({"type": "realtime", "voice": "marin"}), Some("unknown_parameter"));
        check(json!({"type": "realtime", "input_audio_format": "g711_alaw"}), Some("unknown_parameter"));
        check(json!({"type": "realtime", "audio": {"input": {"format": "pcm16"}}}), Some("invalid_value"));
        check(
            json!({"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "eagerness": "low"}}}}),
            Some("unknown_parameter"),
        );
        check(
            json!({"type": "realtime", "tools": [{"type": "function", "name": "x", "strict": true, "parameters": {"type": "object"}}]}),
            Some("unknown_parameter"),
        );
    }
}
