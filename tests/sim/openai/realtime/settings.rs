//! The session object of the Realtime API: which fields there are (GA names only), what they may be, and what they are
//! when nothing is said.
//!
//! Names and ranges from package `openai` 3.52.0 (`types/realtime`).

use serde_json::{Map, Value, json};

use super::super::check::Refusal;

/// In service, and not about to end.
pub const MODELS: [&str; 4] = ["gpt-realtime-2.1", "gpt-realtime-2.1-mini", "gpt-realtime-2", "gpt-realtime-1.5"];
const VOICES: [&str; 10] = ["alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"];
const TRANSCRIBERS: [&str; 3] = ["gpt-transcribe", "gpt-live-transcribe", "gpt-realtime-whisper"];

pub type Checked = Result<(), Refusal>;

/// Checks a session as it is sent with a key or with `session.update`.
pub fn session(given: &Value) -> Checked {
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
    amounts(fields)?;
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
            range(output, "speed", 0.25, 1.5)?;
        }
    }
    for tool in fields.get("tools").and_then(Value::as_array).into_iter().flatten() {
        if tool.get("type").is_some_and(|kind| kind == "mcp") {
            remote(tool)?;
            continue;
        }
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

/// A server of remote tools.
fn remote(tool: &Value) -> Checked {
    let known = [
        "type",
        "server_label",
        "server_url",
        "server_description",
        "authorization",
        "headers",
        "allowed_tools",
        "require_approval",
    ];
    let fields = keys(tool, "session.tools", &known)?;
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let label = text("server_label");
    let is_label = label.starts_with(|first: char| first.is_ascii_alphabetic())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if !is_label {
        return Err(refusal("invalid_value", "session.tools.server_label", "A label of letters, digits, - and _."));
    }
    if !["https://", "http://127.0.0.1"].iter().any(|begins| text("server_url").starts_with(begins)) {
        return Err(refusal("invalid_value", "session.tools.server_url", "The URL of the server is expected."));
    }
    if fields.get("authorization").is_some() && text("authorization").is_empty() {
        return Err(refusal("invalid_type", "session.tools.authorization", "A token is expected."));
    }
    if text("authorization").starts_with("Bearer ") {
        return Err(refusal("invalid_value", "session.tools.authorization", "The token alone, without its scheme."));
    }
    let is_names = |given: &Value| given.as_array().is_some_and(|names| names.iter().all(Value::is_string));
    if fields.get("allowed_tools").is_some_and(|given| !is_names(given) && !given.is_object()) {
        return Err(refusal("invalid_type", "session.tools.allowed_tools", "Names of tools are expected."));
    }
    match fields.get("require_approval") {
        Some(Value::String(_)) => word(fields, "require_approval", &["always", "never"]),
        None | Some(Value::Object(_)) => Ok(()),
        Some(_) => Err(refusal("invalid_type", "session.tools.require_approval", "always or never is expected.")),
    }
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
    let turns = keys(turns, at, &[&common, own].concat())?;
    range(turns, "threshold", 0.0, 1.0)?;
    range(turns, "prefix_padding_ms", 0.0, 10_000.0)?;
    range(turns, "silence_duration_ms", 0.0, 10_000.0)?;
    range(turns, "idle_timeout_ms", 5000.0, 30_000.0)?;
    word(turns, "eagerness", &["low", "medium", "high", "auto"])?;
    for name in ["create_response", "interrupt_response"] {
        if turns.get(name).is_some_and(|value| !value.is_boolean()) {
            return Err(refusal("invalid_type", name, "A boolean is expected."));
        }
    }
    Ok(())
}

/// Fields that say how much.
fn amounts(fields: &Map<String, Value>) -> Checked {
    if fields.get("max_output_tokens") != Some(&json!("inf")) {
        range(fields, "max_output_tokens", 1.0, 32_768.0)?;
    }
    match fields.get("truncation") {
        None => {}
        Some(Value::String(word)) if word == "auto" || word == "disabled" => {}
        Some(given) => {
            let truncation = keys(given, "session.truncation", &["type", "retention_ratio", "token_limits"])?;
            word(truncation, "type", &["retention_ratio"])?;
            range(truncation, "retention_ratio", 0.0, 1.0)?;
            if let Some(limits) = truncation.get("token_limits") {
                keys(limits, "session.truncation.token_limits", &["post_instructions"])?;
            }
        }
    }
    if let Some(reasoning) = fields.get("reasoning") {
        let efforts = ["minimal", "low", "medium", "high", "xhigh"];
        word(keys(reasoning, "session.reasoning", &["effort"])?, "effort", &efforts)?;
    }
    match fields.get("instructions") {
        Some(given) if !given.is_string() => {
            Err(refusal("invalid_type", "session.instructions", "A text is expected."))
        }
        _ => Ok(()),
    }
}

pub fn range(fields: &Map<String, Value>, name: &str, least: f64, most: f64) -> Checked {
    match fields.get(name).map(Value::as_f64) {
        None => Ok(()),
        Some(Some(given)) if (least..=most).contains(&given) => Ok(()),
        Some(_) => Err(refusal("invalid_value", name, &format!("A number from {least} to {most} is expected."))),
    }
}

/// A whole session, with what the service fills in.
pub fn defaults(id: &str, model: &str, expires_at: i64) -> Value {
    json!({
        "type": "realtime", "object": "realtime.session", "id": id, "model": model, "output_modalities": ["audio"],
        "instructions": "Your knowledge cutoff is 2024-10. You are a helpful, witty, and friendly AI.",
        "tools": [], "tool_choice": "auto", "max_output_tokens": "inf", "tracing": null, "truncation": "auto",
        "include": null, "prompt": null, "expires_at": expires_at,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000}, "transcription": null, "noise_reduction": null,
                "turn_detection": turn_detection(&json!({"type": "server_vad"})),
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0},
        },
    })
}

/// Turn detection with what the service fills in.
fn turn_detection(given: &Value) -> Value {
    let mut whole = match given.get("type").and_then(Value::as_str) {
        Some("server_vad") => json!({"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300,
            "silence_duration_ms": 500, "idle_timeout_ms": null, "create_response": true, "interrupt_response": true}),
        Some(_) => {
            json!({"type": "semantic_vad", "eagerness": "auto", "create_response": true, "interrupt_response": true})
        }
        None => return Value::Null,
    };
    overlay(&mut whole, given);
    whole
}

/// What a checked `session.update` changes: only what was sent. A format or turn detection is replaced whole.
pub fn merge(session: &mut Value, given: &Value) {
    for (name, value) in given.as_object().into_iter().flatten() {
        if name != "audio" {
            overlay(session, &json!({ name: value }));
        }
    }
    for side in ["input", "output"] {
        let Some(changes) = given.get("audio").and_then(|audio| audio.get(side)) else { continue };
        let mut changes = changes.clone();
        if let Some(turns) = changes.get_mut("turn_detection") {
            *turns = turn_detection(turns);
        }
        if let Some(target) = session.pointer_mut(&format!("/audio/{side}")) {
            overlay(target, &changes);
        }
    }
}

fn overlay(target: &mut Value, changes: &Value) {
    if let (Some(target), Some(changes)) = (target.as_object_mut(), changes.as_object()) {
        target.extend(changes.clone());
    }
}

fn format(given: &Value) -> Checked {
    let whole =
        [json!({"type": "audio/pcm", "rate": 24000}), json!({"type": "audio/pcmu"}), json!({"type": "audio/pcma"})];
    if whole.contains(given) {
        return Ok(());
    }
    Err(refusal("invalid_value", "session.audio.format", "An audio format is expected."))
}

pub fn keys<'a>(value: &'a Value, at: &str, known: &[&str]) -> Result<&'a Map<String, Value>, Refusal> {
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

pub fn word(fields: &Map<String, Value>, name: &str, known: &[&str]) -> Checked {
    match fields.get(name) {
        Some(value) if !value.as_str().is_some_and(|word| known.contains(&word)) => {
            Err(refusal("invalid_value", name, "This value is not supported."))
        }
        _ => Ok(()),
    }
}

pub fn refusal(code: &'static str, param: &str, message: &str) -> Refusal {
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
        check(json!({"type": "realtime", "temperature": 0.8}), Some("unknown_parameter"));
        let mcp = |more: Value| {
            let mut tool = json!({"type": "mcp", "server_label": "ihuza", "server_url": "https://t.example.org/mcp", "authorization": "mcpt_1",
                                  "allowed_tools": ["remember"], "require_approval": "never"});
            overlay(&mut tool, &more);
            json!({"type": "realtime", "tools": [tool]})
        };
        check(mcp(json!({})), None);
        check(mcp(json!({"server_url": "http://t.example.org/mcp"})), Some("invalid_value"));
        check(mcp(json!({"server_label": "our tools"})), Some("invalid_value"));
        check(mcp(json!({"authorization": "Bearer mcpt_1"})), Some("invalid_value"));
        check(mcp(json!({"authorization": null})), Some("invalid_type"));
        check(mcp(json!({"require_approval": "sometimes"})), Some("invalid_value"));
        check(mcp(json!({"allowed_tools": "remember"})), Some("invalid_type"));
        check(mcp(json!({"name": "remember"})), Some("unknown_parameter"));
        check(json!({"type": "realtime", "max_output_tokens": "inf", "truncation": "auto"}), None);
        check(json!({"type": "realtime", "max_output_tokens": 0}), Some("invalid_value"));
        let vad = |field: &str, value: Value| json!({"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", field: value}}}});
        check(vad("threshold", json!(0.55)), None);
        check(vad("threshold", json!(1.5)), Some("invalid_value"));
        check(vad("idle_timeout_ms", json!(1000)), Some("invalid_value"));
        check(vad("create_response", json!("yes")), Some("invalid_type"));
    }

    #[test]
    fn an_update_changes_what_it_names_and_fills_in_the_rest() {
        let mut session = defaults("sess_1", "gpt-realtime-2.1", 0);
        let update = json!({"type": "realtime", "instructions": "Be brief.", "audio": {"input": {
            "format": {"type": "audio/pcma"}, "turn_detection": {"type": "server_vad", "threshold": 0.7}}}});
        merge(&mut session, &update);
        assert_eq!(session["audio"]["input"]["format"], json!({"type": "audio/pcma"}), "no rate of another format");
        assert_eq!(session["audio"]["input"]["turn_detection"]["silence_duration_ms"], 500);
        assert_eq!(session["audio"]["input"]["turn_detection"]["threshold"], 0.7);
        assert_eq!((&session["instructions"], &session["id"]), (&json!("Be brief."), &json!("sess_1")));
        assert_eq!(session["audio"]["output"]["format"]["rate"], 24000);
        merge(&mut session, &json!({"type": "realtime", "audio": {"input": {"turn_detection": null}}}));
        assert_eq!(session["audio"]["input"]["turn_detection"], Value::Null);
    }
}
