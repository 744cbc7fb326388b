//! Whether a request to the Responses API is one that OpenAI takes, and one that we mean to send.

use serde_json::{Map, Value};

/// Why a request is refused.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
    pub param: String,
}

type Checked = Result<(), Refusal>;

/// The fields that we have a use for. Others exist; one of them in a request of ours is a surprise worth a look.
const FIELDS: [&str; 18] = [
    "model",
    "instructions",
    "input",
    "max_output_tokens",
    "reasoning",
    "text",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_tool_calls",
    "store",
    "include",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "truncation",
    "background",
];

/// In service, and not about to end.
const MODELS: [&str; 6] = ["gpt-6-luna", "gpt-6.1-terra", "gpt-5.6-luna", "gpt-5.4-mini", "gpt-5.4-nano", "gpt-5.1"];

pub fn request(body: &Value) -> Checked {
    let fields = object(body, "body")?;
    if let Some(stranger) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return refuse("unknown_parameter", stranger, format!("Unknown parameter: '{stranger}'."));
    }
    let model = text(fields, "model")?;
    if !MODELS.contains(&model) {
        return Err(Refusal {
            status: 404,
            code: "model_not_found",
            message: format!("The model `{model}` does not exist or you do not have access to it."),
            param: "model".to_owned(),
        });
    }
    // OpenAI would take it, and keep our callers' words for 30 days.
    if fields.get("store") != Some(&Value::Bool(false)) {
        return refuse(
            "store_not_false",
            "store",
            "store must be false: conversations are kept in our own database only",
        );
    }
    input(fields.get("input"))?;
    limits(fields)?;
    if let Some(format) = body.pointer("/text/format") {
        text_format(format)?;
    }
    if let Some(tools) = fields.get("tools") {
        for tool in array(tools, "tools")? {
            tool_shape(tool)?;
        }
    }
    tool_choice(fields)
}

fn limits(fields: &Map<String, Value>) -> Checked {
    if let Some(limit) = fields.get("max_output_tokens") {
        let limit = limit.as_u64().unwrap_or(0);
        if limit < 16 {
            return refuse("integer_below_min_value", "max_output_tokens", "max_output_tokens must be at least 16");
        }
    }
    if let Some(effort) = fields.get("reasoning").and_then(|reasoning| reasoning.get("effort")) {
        one_of(effort, "reasoning.effort", &["none", "minimal", "low", "medium", "high", "xhigh", "max"])?;
    }
    if let Some(verbosity) = fields.get("text").and_then(|text| text.get("verbosity")) {
        one_of(verbosity, "text.verbosity", &["low", "medium", "high"])?;
    }
    if let Some(tier) = fields.get("service_tier") {
        one_of(tier, "service_tier", &["auto", "default", "flex", "priority", "fast"])?;
    }
    if fields.contains_key("safety_identifier") && text(fields, "safety_identifier")?.len() > 128 {
        return refuse("string_above_max_length", "safety_identifier", "at most 128 characters");
    }
    if let Some(metadata) = fields.get("metadata") {
        let metadata = object(metadata, "metadata")?;
        let long =
            |(key, value): (&String, &Value)| key.len() > 64 || value.as_str().is_none_or(|value| value.len() > 512);
        if metadata.len() > 16 || metadata.iter().any(long) {
            return refuse("invalid_metadata", "metadata", "at most 16 pairs, keys of 64 and values of 512 characters");
        }
    }
    Ok(())
}

fn input(input: Option<&Value>) -> Checked {
    let items = match input {
        Some(Value::String(text)) if !text.is_empty() => return Ok(()),
        Some(Value::Array(items)) if !items.is_empty() => items,
        _ => {
            return refuse("missing_required_parameter", "input", "input must be a text or a list of items, not empty");
        }
    };
    let mut calls: Vec<&str> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let at = format!("input[{index}]");
        let fields = object(item, &at)?;
        match fields.get("type").and_then(Value::as_str).unwrap_or("message") {
            "message" => message(fields, &at)?,
            "function_call" => {
                text(fields, "name")?;
                let arguments = text(fields, "arguments")?;
                if serde_json::from_str::<Value>(arguments).is_err() {
                    return refuse("invalid_value", &at, "arguments must be JSON text");
                }
                calls.push(text(fields, "call_id")?);
            }
            "function_call_output" => {
                text(fields, "output")?;
                let call = text(fields, "call_id")?;
                if !calls.contains(&call) {
                    return refuse(
                        "invalid_value",
                        &at,
                        format!("No tool call found for function call output with call_id {call}."),
                    );
                }
            }
            "reasoning" => {
                text(fields, "id")?;
            }
            other => {
                return refuse("invalid_value", &at, format!("Invalid value: '{other}' for type."));
            }
        }
    }
    Ok(())
}

fn message(fields: &Map<String, Value>, at: &str) -> Checked {
    let role = fields.get("role").unwrap_or(&Value::Null);
    one_of(role, &format!("{at}.role"), &["user", "assistant", "system", "developer"])?;
    let part = if role == "assistant" { ["output_text", "refusal"] } else { ["input_text", "input_image"] };
    match fields.get("content") {
        Some(Value::String(text)) if !text.is_empty() => Ok(()),
        Some(Value::Array(parts)) if !parts.is_empty() => {
            for content in parts {
                one_of(content.get("type").unwrap_or(&Value::Null), &format!("{at}.content"), &part)?;
            }
            Ok(())
        }
        _ => refuse("missing_required_parameter", at, "content must be a text or a list of parts, not empty"),
    }
}

fn text_format(format: &Value) -> Checked {
    let fields = object(format, "text.format")?;
    match text(fields, "type")? {
        "text" => Ok(()),
        "json_schema" => {
            name(text(fields, "name")?, "text.format.name")?;
            let schema = fields.get("schema").unwrap_or(&Value::Null);
            if fields.get("strict") != Some(&Value::Bool(true)) {
                return refuse("strict_not_true", "text.format.strict", "structured answers are asked for strictly");
            }
            if schema.get("type") != Some(&Value::from("object")) {
                return refuse(
                    "invalid_json_schema",
                    "text.format.schema",
                    "schema must be a JSON Schema of 'type: \"object\"'",
                );
            }
            strict_schema(schema, "text.format.schema")
        }
        other => refuse("invalid_value", "text.format.type", format!("Invalid value: '{other}'.")),
    }
}

fn tool_shape(tool: &Value) -> Checked {
    let fields = object(tool, "tools")?;
    if text(fields, "type")? != "function" {
        return refuse("invalid_value", "tools.type", "only functions are used");
    }
    name(text(fields, "name")?, "tools.name")?;
    let parameters = fields.get("parameters").unwrap_or(&Value::Null);
    if fields.get("strict") == Some(&Value::Bool(true)) {
        strict_schema(parameters, "tools.parameters")?;
    }
    Ok(())
}

fn tool_choice(fields: &Map<String, Value>) -> Checked {
    match fields.get("tool_choice") {
        None => Ok(()),
        Some(Value::Object(choice)) => text(choice, "name").map(|_| ()),
        Some(choice) => one_of(choice, "tool_choice", &["auto", "none", "required"]),
    }
}

/// The strict subset: every object closed, and every property required.
fn strict_schema(schema: &Value, at: &str) -> Checked {
    let Some(fields) = schema.as_object() else {
        return refuse("invalid_json_schema", at, "schema must be an object");
    };
    if let Some(Value::Object(properties)) = fields.get("properties") {
        if fields.get("additionalProperties") != Some(&Value::Bool(false)) {
            return refuse(
                "invalid_json_schema",
                at,
                "'additionalProperties' is required to be supplied and to be false.",
            );
        }
        let required = fields.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        for (key, property) in properties {
            if !required.iter().any(|name| name == key) {
                let why = format!(
                    "'required' is required to be an array including every key in properties. Missing '{key}'."
                );
                return refuse("invalid_json_schema", at, why);
            }
            strict_schema(property, &format!("{at}.{key}"))?;
        }
        if required.len() != properties.len() {
            return refuse("invalid_json_schema", at, "'required' names a property that is not there");
        }
    } else if fields.get("type") == Some(&Value::from("object")) && !fields.contains_key("properties") {
        return refuse("invalid_json_schema", at, "an object must list its properties");
    }
    for inner in ["items"] {
        if let Some(schema) = fields.get(inner) {
            strict_schema(schema, &format!("{at}.{inner}"))?;
        }
    }
    for choice in fields.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
        strict_schema(choice, &format!("{at}.anyOf"))?;
    }
    Ok(())
}

fn name(name: &str, at: &str) -> Checked {
    let proper =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if proper { Ok(()) } else { refuse("invalid_value", at, "expected a name like [A-Za-z0-9_-]{1,64}") }
}

fn one_of(value: &Value, at: &str, allowed: &[&str]) -> Checked {
    match value.as_str() {
        Some(text) if allowed.contains(&text) => Ok(()),
        _ => refuse(
            "invalid_value",
            at,
            format!("Invalid value: {value}. Supported values are: {}.", allowed.join(", ")),
        ),
    }
}

fn object<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, Refusal> {
    value.as_object().ok_or_else(|| invalid("invalid_type", at, "expected an object"))
}

fn array<'a>(value: &'a Value, at: &str) -> Result<&'a Vec<Value>, Refusal> {
    value.as_array().ok_or_else(|| invalid("invalid_type", at, "expected a list"))
}

fn text<'a>(fields: &'a Map<String, Value>, field: &str) -> Result<&'a str, Refusal> {
    let value = fields.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    value.ok_or_else(|| invalid("missing_required_parameter", field, format!("Missing required parameter: '{field}'.")))
}

fn refuse(code: &'static str, param: &str, message: impl Into<String>) -> Checked {
    Err(invalid(code, param, message))
}

fn invalid(code: &'static str, param: &str, message: impl Into<String>) -> Refusal {
    Refusal { status: 400, code, message: message.into(), param: param.to_owned() }
}
