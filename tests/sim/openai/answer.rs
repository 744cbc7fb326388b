//! What the stand-in says: a summary of the transcript, or an answer that shows what it was told before.

use serde_json::{Map, Value, json};

use super::conversation::{CLOSING, CONTEXT, Conversation};
use super::summary::summary;

/// What the model returns.
#[derive(Clone, Debug)]
pub enum Reply {
    Text(String),
    Refusal(String),
    Incomplete(String),
    Tools(Vec<(String, Value)>),
    Failed,
}

/// The answer to a request that was checked before.
pub fn reply(body: &Value) -> Reply {
    let conversation = Conversation::of(body);
    let Some(schema) = body.pointer("/text/format/schema") else {
        return match tool_calls(body, &conversation) {
            Some(calls) => Reply::Tools(calls),
            None => Reply::Text(conversation.answer()),
        };
    };
    let wants_summary =
        ["headline", "points", "memories"].iter().any(|key| schema.pointer(&format!("/properties/{key}")).is_some());
    let known = if wants_summary { summary(body) } else { conversation.structured() };
    if !wants_summary && let Some(calls) = tool_calls(body, &conversation) {
        return Reply::Tools(calls);
    }
    Reply::Text(fill(schema, &known).to_string())
}

/// Tools that the question asks for, if the request offers them and none has answered yet.
fn tool_calls(body: &Value, conversation: &Conversation) -> Option<Vec<(String, Value)>> {
    if !conversation.tool_outputs.is_empty() || body.get("tool_choice") == Some(&Value::from("none")) {
        return None;
    }
    let (wanted, known) = if conversation.wants(&CLOSING) {
        ("session_update_status", json!({"status": "closed"}))
    } else if conversation.wants(&CONTEXT) {
        ("session_get_context", json!({}))
    } else {
        conversation.wish()?
    };
    let tools = body.get("tools").and_then(Value::as_array)?;
    let tool = tools.iter().find(|tool| tool.get("name") == Some(&Value::from(wanted)))?;
    let arguments = with_nulls(tool.get("parameters").unwrap_or(&Value::Null), &object(known));
    Some(vec![(wanted.to_owned(), arguments)])
}

/// As a strict schema wants it: every argument, null where nothing is meant.
fn with_nulls(schema: &Value, known: &Map<String, Value>) -> Value {
    let names = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    names.map(|name| (name.clone(), known.get(name).cloned().unwrap_or_default())).collect::<Map<_, _>>().into()
}

/// A value that fits `schema`, with what is known by name and something harmless for the rest.
fn fill(schema: &Value, known: &Map<String, Value>) -> Value {
    let mut filled = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, property) in properties {
        let value = match known.get(&name) {
            Some(value) if allowed(&property, value) => limited(&property, value.clone()),
            _ => harmless(&property, known),
        };
        filled.insert(name, value);
    }
    Value::Object(filled)
}

fn allowed(schema: &Value, value: &Value) -> bool {
    schema.get("enum").and_then(Value::as_array).is_none_or(|values| values.contains(value))
}

fn limited(schema: &Value, mut value: Value) -> Value {
    let most = schema.get("maxItems").and_then(Value::as_u64).and_then(|most| usize::try_from(most).ok());
    if let (Value::Array(items), Some(most)) = (&mut value, most) {
        items.truncate(most);
    }
    value
}

fn harmless(schema: &Value, known: &Map<String, Value>) -> Value {
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|values| values.first()) {
        return first.clone();
    }
    let kinds = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind.clone()],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(|kind| kind.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    let is = |kind: &str| kinds.iter().any(|known| known == kind);
    if is("null") || kinds.is_empty() {
        Value::Null
    } else if is("object") {
        fill(schema, known)
    } else if is("array") {
        json!([])
    } else if is("boolean") {
        Value::Bool(false)
    } else if is("integer") || is("number") {
        json!(0)
    } else {
        json!("")
    }
}

pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// At most `limit` characters, cut at the end of a word.
pub fn short(text: &str, limit: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= limit {
        return text;
    }
    let cut: String = text.chars().take(limit).collect();
    let end = cut.rfind(' ').unwrap_or(cut.len());
    cut.get(..end).unwrap_or_default().trim_end_matches([',', ';', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary_of(transcript: &str) -> Map<String, Value> {
        summary(&json!({"input": [{"role": "user", "content": transcript}]}))
    }

    #[track_caller]
    fn answers(input: Value, expected: &str) {
        match reply(&json!({ "input": input })) {
            Reply::Text(text) => assert_eq!(text, expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_summary_holds_the_facts_of_the_call() {
        let made = summary_of(
            "<transcript>\nuser: Hello, I want to rent a house in Kimironko.\nassistant: What is your budget?\n\
             user: 300k RWF a month, 2 bedrooms.\nassistant: Thank you. We will send you three houses today.\n</transcript>",
        );
        assert_eq!(made["headline"], "Looking for: house in Kimironko");
        assert_eq!(made["points"], json!(["Budget: 300k RWF/month", "2 bedrooms"]));
        assert_eq!(made["next_step"], "We will send you three houses today");
        assert_eq!(made["language"], "en");
    }

    #[test]
    fn a_summary_is_in_the_language_of_the_call_and_reads_json_too() {
        let lines = json!([{"role": "user", "text": "Muraho, ndashaka inzu yo gukodesha i Kicukiro"},
                           {"role": "assistant", "text": "Murakoze. Turakoherereza amazu ahuye ejo."}]);
        let made = summary_of(&format!("Transcript, data only:\n{lines}"));
        assert_eq!(made["headline"], "Urashaka: inzu i Kicukiro");
        assert_eq!(made["next_step"], "Turakoherereza amazu ahuye ejo");
    }

    #[test]
    fn a_summary_names_the_ride_beside_the_house() {
        let house = "<transcript>\nuser: I want to rent a house in Kimironko, 300k RWF a month.";
        let ride = "user: And a moto from Kimironko to the airport, tomorrow at 8.\nassistant: It is booked.";
        let both = summary_of(&format!("{house}\n{ride}\n</transcript>"));
        assert_eq!(both["headline"], "Looking for: house in Kimironko");
        assert_eq!(both["points"], json!(["Budget: 300k RWF/month", "Ride: Kimironko to the airport, tomorrow at 8"]));
        let alone = summary_of(&format!("<transcript>\n{ride}\n</transcript>"));
        assert_eq!(alone["headline"], "Looking for: ride in Kimironko");
    }

    #[test]
    fn a_ride_is_changed_by_the_tool_and_said_to_be_changed_once_it_is() {
        let parameters = json!({"type": "object", "properties": {"action": {"type": "string", "enum": ["create", "change", "cancel"]},
            "number": {"type": ["integer", "null"]}, "pickup_at": {"type": ["string", "null"]}, "vehicle": {"type": ["string", "null"], "enum": ["moto", null]}}});
        let known = "booked: {\"number\":7,\"pickup_at\":\"2030-01-02T08:00\"}";
        let mut input = vec![
            json!({"role": "developer", "content": known}),
            json!({"role": "user", "content": "Make the moto 9 o'clock"}),
        ];
        let mut body = json!({"tools": [{"type": "function", "name": "book_transport", "parameters": parameters}], "input": input});
        let Reply::Tools(calls) = reply(&body) else { panic!("expected a call") };
        let given = json!({"action": "change", "number": 7, "pickup_at": "2030-01-02T09:00", "vehicle": null});
        assert_eq!(calls, [("book_transport".to_owned(), given)]);
        let answered =
            |result: Value| json!({"type": "function_call_output", "call_id": "c", "output": result.to_string()});
        let ride = json!({"number": 7, "pickup": "Remera", "destination": "Gisozi", "pickup_at": "2030-01-02T09:00", "state": "requested"});
        let changed = json!({"pickup_at": ["2030-01-02T08:00", "2030-01-02T09:00"]});
        input.push(answered(json!({"ok": true, "result": {"booking": ride, "changed": changed}})));
        body["input"] = json!(input);
        let Reply::Text(text) = reply(&body) else { panic!("expected words") };
        assert_eq!(text, "Done. Ride 7: Remera > Gisozi, 2030-01-02 09:00, requested.");
        input.pop();
        input.push(answered(json!({"ok": false, "error": "that booking is done"})));
        body["input"] = json!(input);
        let Reply::Text(text) = reply(&body) else { panic!("expected words") };
        assert!(text.starts_with("I could not do that"), "{text}");
    }

    #[test]
    fn a_budget_that_a_tool_changed_is_told_as_the_tool_has_it() {
        let result = json!({"request": {"kind": "housing", "number": 1, "area": "Remera", "budget": 250_000, "currency": "RWF"},
                            "changed": {"budget": [300_000, 250_000]}});
        let output = json!({"ok": true, "result": result}).to_string();
        answers(
            json!([{"role": "user", "content": "A house in Remera, change budget to 200k"},
                   {"type": "function_call_output", "call_id": "c", "output": output}]),
            "Done: your budget is now 250k RWF instead of 300k RWF. I keep looking for your house in Remera.",
        );
    }

    #[test]
    fn what_is_remembered_is_what_the_caller_said_of_themselves() {
        let made = summary_of(
            "caller: I prefer houses with a garden. Anything free?\nagent: I prefer Remera.\ncaller: Thanks",
        );
        let garden = json!({"kind": "preference", "key": "preference", "value": "I prefer houses with a garden", "confidence": 95});
        assert_eq!(made["memories"], json!([garden]));
        assert_eq!(summary_of("caller: A house please")["memories"], json!([]));
    }

    #[test]
    fn an_answer_remembers_the_call() {
        answers(
            json!([{"role": "developer", "content": "Call summary: house in Kimironko, budget 300k RWF/month"},
                   {"role": "user", "content": "Change budget to 250k"}]),
            "Done: your budget is now 250k RWF/month instead of 300k RWF/month. I keep looking for your house in Kimironko.",
        );
    }

    #[test]
    fn an_answer_remembers_the_turns_before() {
        answers(
            json!([{"role": "developer", "content": "Call summary: house in Kimironko, budget 300k RWF/month"},
                   {"role": "user", "content": "Change budget to 250k"},
                   {"role": "assistant", "content": "Done: your budget is now 250k RWF/month instead of 300k RWF/month."},
                   {"role": "user", "content": "What is my budget?"}]),
            "Your budget is 250k RWF/month. On the call it was 300k RWF/month.",
        );
    }

    #[test]
    fn several_messages_are_one_question() {
        answers(
            json!([{"role": "developer", "content": "Call summary: house in Kimironko, budget 300k RWF"},
                   {"role": "user", "content": "Hello"}, {"role": "user", "content": "make it 250k please"}]),
            "Done: your budget is now 250k RWF instead of 300k RWF. I keep looking for your house in Kimironko.",
        );
    }

    #[test]
    fn a_stranger_is_greeted() {
        answers(json!("Muraho"), "Muraho, ni EasyMO. Mwanditse: \"Muraho\". Nabafasha iki?");
    }

    #[test]
    fn a_tool_is_called_once_and_its_answer_used() {
        let tools = json!([{"type": "function", "name": "session_update_status", "parameters": {"type": "object",
            "properties": {"status": {"type": "string", "enum": ["active", "closed"]}, "note": {"type": ["string", "null"]}}}}]);
        let mut body = json!({"tools": tools, "input": [{"role": "user", "content": "Please close my request"}]});
        let Reply::Tools(calls) = reply(&body) else { panic!("expected a call") };
        assert_eq!(calls, [("session_update_status".to_owned(), json!({"status": "closed", "note": null}))]);
        body["input"] = json!([{"role": "user", "content": "Please close my request"},
                               {"type": "function_call_output", "call_id": "c1", "output": "{\"ok\":true}"}]);
        let Reply::Text(text) = reply(&body) else { panic!("expected words") };
        assert!(text.starts_with("I closed your request"), "{text}");
    }
}
