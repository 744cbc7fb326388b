//! What is worth remembering of a conversation: what the model is asked for after it, and what of its answer is kept.
//!
//! The database decides the rest: what was said before, for whom nothing is kept, how much (`private.keep_memories`).

use serde_json::Value;

use crate::json::{integer, items_at, obj, text};
use crate::json_text::parse;
use crate::summary;

/// Most memories of one conversation.
pub const MAX: usize = 5;
/// Longest name of a memory, as the database takes it.
const MAX_KEY_CHARS: usize = 60;
/// Longest memory, in characters.
pub const MAX_CHARS: usize = 160;
/// So many digits are a number of somebody or something: of a phone, a card, an identity.
const DIGITS_OF_A_NUMBER: usize = 9;

/// What the model is told of `memories`.
pub const RULES: &str = "memories: up to 5 lasting preferences or facts about the person that help in a later conversation, \
     such as an area they prefer, a school they need near, when to call them. Often there are none: then leave the list \
     empty. kind: preference or fact. key: a short snake_case English name, such as preferred_area. value: what they said, in \
     their words, at most 120 characters. confidence: from 0 to 100; 100 where they said it plainly. Only what the person \
     said of themselves: never what the agent said, what you conclude, or what is true only this once. Nothing about health, \
     belief, politics or origin; no names of others, phone numbers, passwords, PINs, card or identity numbers. ";

/// The property `memories` of a schema in the strict subset of structured outputs.
macro_rules! schema {
    () => {
        r#""memories":{"type":"array","maxItems":5,"items":{"type":"object","additionalProperties":false,
            "required":["kind","key","value","confidence"],
            "properties":{
                "kind":{"type":"string","enum":["preference","fact"]},
                "key":{"type":"string","description":"A short snake_case English name"},
                "value":{"type":"string","description":"What they said, at most 120 characters"},
                "confidence":{"type":"integer","description":"0 to 100"}}}}"#
    };
}
pub(crate) use schema;

/// The schema of an answer that holds nothing else.
pub fn answer_schema() -> Value {
    const SCHEMA: &str = concat!(
        r#"{"type":"object","additionalProperties":false,"required":["memories"],"properties":{"#,
        schema!(),
        "}}"
    );
    parse(SCHEMA).unwrap_or_default()
}

/// The memories in a model's answer, as `{kind, key, value, confidence}` with confidence from 0 to 100. Everything is checked
/// again: what is no memory, has no name or text, or spells a long number, is left out.
pub fn memories(answer: &Value) -> Vec<Value> {
    items_at(answer, "memories").iter().filter_map(memory).take(MAX).collect()
}

fn memory(found: &Value) -> Option<Value> {
    let kind = text(found, "kind").filter(|kind| kind == "preference" || kind == "fact")?;
    let key = summary::slug(&text(found, "key")?)?;
    let key = key.trim_start_matches(|letter: char| !letter.is_ascii_lowercase());
    let key = crate::json::clip(key, MAX_KEY_CHARS).trim_end_matches('_');
    let value = summary::item(&text(found, "value")?, MAX_CHARS);
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    if key.is_empty() || value.is_empty() || digits >= DIGITS_OF_A_NUMBER {
        return None;
    }
    let confidence = integer(found, "confidence")?.clamp(0, 100);
    Some(obj(&mut [
        ("kind", kind.into()),
        ("key", key.into()),
        ("value", value.into()),
        ("confidence", confidence.into()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn of(kind: &str, key: &str, value: &str, confidence: Value) -> Vec<Value> {
        memories(&json!({"memories": [{"kind": kind, "key": key, "value": value, "confidence": confidence}]}))
    }

    #[test]
    fn a_memory_is_flattened_named_and_bounded() {
        assert_eq!(
            of("preference", "Preferred Area!", "**Kicukiro**,\n near the market", json!(90)),
            [
                json!({"kind": "preference", "key": "preferred_area", "value": "Kicukiro, near the market", "confidence": 90})
            ]
        );
        assert_eq!(of("fact", "2nd_child", "goes to school", json!(900))[0]["confidence"], 100);
        assert_eq!(of("fact", "2nd_child", "goes to school", json!("7"))[0]["key"], "nd_child");
        let long = of("fact", &"key ".repeat(60), &"word ".repeat(100), json!(80));
        assert!(long[0]["key"].as_str().unwrap().len() <= MAX_KEY_CHARS);
        assert!(long[0]["value"].as_str().unwrap().chars().count() <= MAX_CHARS);
    }

    #[test]
    fn what_is_no_memory_is_left_out() {
        for (kind, key, value, confidence) in [
            ("order", "area", "Remera", json!(90)),
            ("fact", "", "Remera", json!(90)),
            ("fact", "123", "Remera", json!(90)),
            ("fact", "area", " \n ", json!(90)),
            ("fact", "area", "Remera", json!(null)),
            ("fact", "area", "Remera", json!(0.9)),
            ("fact", "phone", "call me on 0788 123 456", json!(90)),
            ("fact", "card", "4111-1111-1111-1111", json!(90)),
        ] {
            assert_eq!(
                of(kind, key, value, confidence.clone()),
                Vec::<Value>::new(),
                "{kind} {key} {value} {confidence}"
            );
        }
        assert_eq!(of("fact", "budget", "300 000 RWF a month", json!(90)).len(), 1);
        for answer in [json!(null), json!([]), json!({"memories": {}}), json!({"memories": [null, 1, "a", []]})] {
            assert_eq!(memories(&answer), Vec::<Value>::new());
        }
    }

    #[test]
    fn more_than_a_few_are_not_taken() {
        let many: Vec<Value> = (0..50)
            .map(|at| json!({"kind": "fact", "key": format!("key_{at}"), "value": "x", "confidence": 100}))
            .collect();
        assert_eq!(memories(&json!({"memories": many})).len(), MAX);
    }

    #[test]
    fn the_schema_says_what_is_read() {
        let schema = answer_schema();
        let memories = &schema["properties"]["memories"];
        assert_eq!(memories["maxItems"], MAX);
        assert_eq!(schema["required"], json!(["memories"]));
        let mut names: Vec<&String> = memories["items"]["properties"].as_object().unwrap().keys().collect();
        let mut required: Vec<&str> =
            memories["items"]["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        names.sort_unstable();
        required.sort_unstable();
        assert_eq!(names, required);
    }

    proptest! {
        #[test]
        fn whatever_a_model_answers_fits_the_table(kind in "(preference|fact|.{0,6})", key in "\\PC{0,90}", value: String, confidence: i64) {
            for memory in of(&kind, &key, &value, json!(confidence)) {
                let key = memory["key"].as_str().unwrap();
                prop_assert!(key.len() <= 60 && key.starts_with(|c: char| c.is_ascii_lowercase()), "{}", key);
                prop_assert!(key.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_'), "{}", key);
                let value = memory["value"].as_str().unwrap();
                prop_assert!((1..=MAX_CHARS).contains(&value.chars().count()) && !value.contains(['\n', '\0']));
                prop_assert!((0..=100).contains(&memory["confidence"].as_i64().unwrap()));
            }
        }
    }
}
