//! What a request brings along: the texts of its input, the call's lines inside them, the language asked for.

use serde_json::{Value, json};

use super::words::Language;

/// One line of a call.
pub struct Line {
    pub caller: bool,
    pub text: String,
}

/// The call's lines in whatever form they were given: JSON objects with role and text, or `role: text` by the line.
pub fn transcript(given: &str) -> Vec<Line> {
    let from_json = json_pieces(given).into_iter().flat_map(|piece| spoken_lines(&piece)).collect::<Vec<_>>();
    if !from_json.is_empty() {
        return from_json;
    }
    let mut lines = Vec::new();
    for line in given.lines() {
        let Some((role, text)) = line.trim().trim_start_matches(['-', '*', '[']).split_once(':') else {
            continue;
        };
        let role = role.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        let role = role.split_whitespace().next().unwrap_or_default();
        let caller = ["user", "caller", "customer", "client"].contains(&role);
        let agent = ["assistant", "agent", "ai", "ihuza"].contains(&role);
        if (caller || agent) && !text.trim().is_empty() {
            lines.push(Line { caller, text: text.trim().to_owned() });
        }
    }
    if lines.is_empty() && !given.trim().is_empty() {
        lines.extend(given.lines().map(|line| Line { caller: true, text: line.trim().to_owned() }));
    }
    lines
}

/// Every JSON array or object that begins at the start of a line, or makes up the whole.
fn json_pieces(text: &str) -> Vec<Value> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['[', '{']) {
        let candidate = rest.get(at..).unwrap_or_default();
        let mut stream = serde_json::Deserializer::from_str(candidate).into_iter::<Value>();
        match stream.next() {
            Some(Ok(value)) => {
                let end = stream.byte_offset();
                pieces.push(value);
                rest = candidate.get(end..).unwrap_or_default();
            }
            _ => rest = candidate.get(1..).unwrap_or_default(),
        }
    }
    pieces
}

fn spoken_lines(value: &Value) -> Vec<Line> {
    match value {
        Value::Array(entries) => entries.iter().flat_map(spoken_lines).collect(),
        Value::Object(fields) => {
            let role = fields.get("role").or(fields.get("speaker")).and_then(Value::as_str);
            let text = fields.get("text").or(fields.get("content")).and_then(Value::as_str);
            match (role, text) {
                (Some(role), Some(text)) => {
                    vec![Line { caller: role == "user" || role == "caller", text: text.to_owned() }]
                }
                _ => fields.values().flat_map(spoken_lines).collect(),
            }
        }
        _ => Vec::new(),
    }
}

/// The language that the request itself asks for.
pub fn asked_language(body: &Value, given: &str) -> Option<Language> {
    let allowed = body.pointer("/text/format/schema/properties/language/enum").and_then(Value::as_array);
    if let Some([only]) = allowed.map(Vec::as_slice) {
        return Language::ALL.into_iter().find(|language| only == language.code());
    }
    let instructions = body.get("instructions").and_then(Value::as_str).unwrap_or_default();
    let asked = format!("{instructions}\n{given}").to_lowercase().replace(['"', ' '], "");
    let says = |language: &Language| {
        ["language:", "locale:", "language=", "locale="]
            .iter()
            .any(|label| asked.contains(&format!("{label}{}", language.code())))
    };
    let mut named = Language::ALL.into_iter().filter(says);
    let first = named.next();
    if named.next().is_some() { None } else { first }
}

/// One text of the input.
pub struct Item {
    pub role: String,
    pub text: String,
}

pub fn items(body: &Value) -> Vec<Item> {
    let entries = match body.get("input") {
        Some(Value::String(text)) => vec![json!({"role": "user", "content": text})],
        Some(Value::Array(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    let mut items = Vec::new();
    for entry in entries {
        let role = entry.get("role").or(entry.get("type")).and_then(Value::as_str).unwrap_or_default().to_owned();
        let text = match entry.get("content").or(entry.get("output")) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
                texts.collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        };
        items.push(Item { role, text });
    }
    items
}
