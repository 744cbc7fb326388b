//! One JSON line an event, on standard output. Numbers of telephones are masked here, so that nobody has to remember.

use std::io::Write;

use chrono::DateTime;
use ihuza_core::redact;
use serde_json::{Map, Value};

use super::clock::Clock;

/// How much it matters: `Error` means a person must act, `Warn` that we coped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The ordinary course of things.
    Info,
    /// Something went wrong and was dealt with.
    Warn,
    /// Somebody has to look.
    Error,
}

/// Writes the log of the whole relay.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    clock: Clock,
}

impl Log {
    /// By this clock.
    pub fn new(clock: Clock) -> Log {
        Log { clock }
    }

    /// One event. `fields` is an object; ids in it end with `_id`.
    pub fn event(&self, event: &str, level: Level, message: &str, fields: Value) {
        let line = line(event, level, message, self.clock.unix_ms(self.clock.now()), fields);
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

fn line(event: &str, level: Level, message: &str, at_ms: i64, fields: Value) -> String {
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let at =
        DateTime::from_timestamp_millis(at_ms).unwrap_or_default().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let mut out = Map::new();
    for (key, value) in [("event", event), ("level", level), ("message", &redact::scrub(message)), ("at", &at)] {
        out.insert(key.to_owned(), value.into());
    }
    if let Value::Object(fields) = fields {
        for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
            let value = match value {
                Value::String(text) if !key.ends_with("_id") => redact::scrub(&text).into(),
                other => other,
            };
            out.entry(key).or_insert(value);
        }
    }
    Value::Object(out).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_reads_on_its_own_and_masks_numbers() {
        let fields =
            json!({ "from": "+250788123456", "call_id": "8f14", "trunk": "mtn", "none": null, "event": "FORGED" });
        let line = line("CALL_STARTED", Level::Info, "call of +250788123456", 0, fields);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains("788123456") && !line.contains("none"), "{line}");
        assert_eq!(
            (&value["event"], &value["at"], &value["call_id"]),
            (&json!("CALL_STARTED"), &json!("1970-01-01T00:00:00.000Z"), &json!("8f14"))
        );
    }
}
