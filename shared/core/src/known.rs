//! What is known of a person before they say anything: what they asked for, what is booked for them, what is remembered. Lines
//! for a model, the same in a call and in messages; whoever shows them says that they are data.

use serde_json::Value;

use crate::json::{items_at, text};
use crate::json_text::to_text;

/// Memories `{key, value, since?, source?, confidence?}`, as `key: value (since)`, so that a model can tell what is old; of one that
/// the person did not say for keeping, also that it was taken from a summary, and how sure it is.
pub fn memories(memories: &[Value]) -> impl Iterator<Item = String> {
    memories.iter().filter_map(|memory| {
        let mut line = [&*text(memory, "key")?, ": ", &*text(memory, "value")?].concat();
        let since = text(memory, "since");
        let taken = text(memory, "source").filter(|source| source == "summary").map(|_| {
            let sure = memory
                .get("confidence")
                .filter(|sure| sure.is_number())
                .map(|sure| [", sure ", &to_text(sure)].concat());
            ["from a summary", sure.as_deref().unwrap_or_default()].concat()
        });
        let marks: Vec<String> = since.into_iter().chain(taken).collect();
        if !marks.is_empty() {
            line.extend([" (", &marks.join(", "), ")"]);
        }
        Some(line)
    })
}

/// `requests` and `bookings` that are open and `handovers`, as SQL's `open_requests`, `open_bookings` and `handovers_of` tell them.
pub fn open(known: &Value) -> impl Iterator<Item = String> {
    [("requests", "asked for: "), ("bookings", "booked: "), ("handovers", "a colleague was asked to take over: ")]
        .into_iter()
        .flat_map(move |(list, what)| items_at(known, list).iter().map(move |item| [what, &to_text(item)].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_is_a_line_and_what_is_no_memory_is_left_out() {
        let lines: Vec<String> =
            memories(&[json!({"key": "area", "value": "Remera"}), json!({"key": "x"}), json!(3)]).collect();
        assert_eq!(lines, ["area: Remera"]);
        let said =
            json!({"key": "area", "value": "Remera", "since": "2026-11-20", "source": "agent", "confidence": 1.00});
        let taken =
            json!({"key": "pets", "value": "a dog", "since": "2026-11-20", "source": "summary", "confidence": 0.8});
        let lines: Vec<String> = memories(&[said, taken]).collect();
        assert_eq!(lines, ["area: Remera (2026-11-20)", "pets: a dog (2026-11-20, from a summary, sure 0.8)"]);
        let known = json!({"requests": [{"number": 1, "kind": "housing"}], "bookings": [{"number": 7}], "handovers": [{"state": "waiting"}], "memories": []});
        let lines: Vec<String> = open(&known).collect();
        assert_eq!(
            lines,
            [
                r#"asked for: {"kind":"housing","number":1}"#,
                r#"booked: {"number":7}"#,
                r#"a colleague was asked to take over: {"state":"waiting"}"#
            ]
        );
        assert_eq!(open(&Value::Null).count(), 0);
    }
}
