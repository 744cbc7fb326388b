//! What is known of a person before they say anything: what they asked for, what is booked for them, what is remembered. Lines
//! for a model, the same in a call and in messages; whoever shows them says that they are data.

use serde_json::Value;

use crate::json::{items_at, text};
use crate::json_text::to_text;

/// Memories `{key, value}`, as `key: value`.
pub fn memories(memories: &[Value]) -> impl Iterator<Item = String> {
    memories.iter().filter_map(|memory| Some([&*text(memory, "key")?, ": ", &*text(memory, "value")?].concat()))
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
