//! What a line of the functions' log must be, and what must never stand in one.

use std::collections::{BTreeMap, BTreeSet};

use ihuza_core::log::EVENTS;
use serde_json::{Map, Value};

/// Pieces of text shorter than this are words that anybody may use.
const TELLING: usize = 14;
/// The runtime's own word on an alarm of a Durable Object that it has to set anew: it was killed before it had noted it.
const OF_THE_RUNTIME: &str = "NOSENTRY SQLite alarm handler canceled with requestScheduledAlarm.";
/// National numbers without the trunk's zero have nine digits.
const NATIONAL: usize = 9;

/// Everything of one world that belongs to people or opens a door.
#[derive(Default)]
pub struct Private {
    /// Name and value.
    keys: Vec<(String, String)>,
    /// The last nine digits of every number.
    numbers: BTreeSet<String>,
    /// What was said and written, line by line.
    texts: BTreeSet<String>,
}

impl Private {
    /// Looks at the database of the world and at the settings of its functions.
    pub async fn of(database_url: &str, settings: &BTreeMap<String, String>) -> Self {
        let mut private = Self::default();
        let secret =
            |name: &str| ["KEY", "SECRET", "TOKEN"].iter().any(|word| name.contains(word)) && !name.ends_with("_PATH");
        for (name, value) in settings.iter().filter(|(name, value)| secret(name) && value.len() >= 12) {
            private.keys.push((name.clone(), value.clone()));
        }
        let client = ihuza_sim::postgres::connect(database_url).await.unwrap();
        let numbers = "select phone_number from profiles union select from_number from voice_calls union select to_number from voice_calls
                       union select recipient from message_delivery_log union select sender from message_delivery_log";
        for row in client.query(numbers, &[]).await.unwrap() {
            if let Some(number) = row.get::<_, Option<String>>(0) {
                private.number(&number);
            }
        }
        let texts = "select content from conversation_messages union select content from message_delivery_log
                     union select text from transcripts union select headline from call_summaries
                     union select next_step from call_summaries
                     union select jsonb_array_elements_text(points) from call_summaries";
        for row in client.query(texts, &[]).await.unwrap() {
            if let Some(text) = row.get::<_, Option<String>>(0) {
                private.text(&text);
            }
        }
        private
    }

    fn number(&mut self, number: &str) {
        let digits: String = number.chars().filter(char::is_ascii_digit).collect();
        if let Some(tail) = digits.len().checked_sub(NATIONAL).and_then(|from| digits.get(from..)) {
            self.numbers.insert(tail.to_owned());
        }
    }

    fn text(&mut self, text: &str) {
        let pieces = text.lines().map(str::trim).filter(|piece| piece.chars().count() >= TELLING);
        self.texts.extend(pieces.map(str::to_owned));
    }

    /// What is wrong with a line, if anything is.
    pub fn complaint(&self, line: &str) -> Option<String> {
        self.fault(line).map(|fault| format!("{fault}: {line}"))
    }

    fn fault(&self, line: &str) -> Option<String> {
        if line.starts_with(OF_THE_RUNTIME) {
            return None;
        }
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(line) else {
            return Some("no JSON object".to_owned());
        };
        let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        for name in ["event", "level", "message", "at", "function", "correlation_id"] {
            if text(name).is_none() {
                return Some(format!("no {name}"));
            }
        }
        let event = text("event").unwrap_or_default();
        if !EVENTS.iter().any(|known| known.as_str() == event) {
            return Some(format!("no event is called {event}"));
        }
        self.leak(line, &fields)
    }

    /// What stands in a line that must not, if anything does.
    pub fn leak(&self, line: &str, fields: &Map<String, Value>) -> Option<String> {
        if let Some((name, _)) = self.keys.iter().find(|(_, value)| line.contains(value.as_str())) {
            return Some(format!("holds {name}"));
        }
        if line.contains("Bearer ")
            || line.contains("eyJ")
            || line.contains("sb_secret_")
            || line.contains("ek_")
            || line.contains("mcpt_")
        {
            return Some("holds a token".to_owned());
        }
        if let Some(number) = self.numbers.iter().find(|number| line.contains(number.as_str())) {
            return Some(format!("holds the number that ends in {}", number.get(NATIONAL - 3..).unwrap_or_default()));
        }
        let mut words = Vec::new();
        fields.values().for_each(|value| strings(value, &mut words));
        let told = self.texts.iter().find(|piece| words.iter().any(|word| word.contains(piece.as_str())));
        told.map(|piece| format!("holds what somebody wrote ({piece:?})"))
    }
}

fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, into)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            into.push(name.clone());
            strings(value, into);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn the_reader_of_the_logs_sees_what_must_not_be_there() {
    let mut private = Private::default();
    private.keys.push(("MTN_SMS_API_KEY".to_owned(), "k3y-of-the-carrier".to_owned()));
    private.number("+250788200001");
    private.text("EasyMO summary:\n1) Budget: 300k RWF/month\nok");
    let line = |message: &str| {
        serde_json::json!({"event": "SMS_SEND_FAILED", "level": "warn", "message": message, "at": "2026-11-21T02:00:00.000Z",
                           "function": "post-call-notify", "correlation_id": "c-1"})
        .to_string()
    };
    let check = |line: &str, expected: &str| assert_eq!(private.fault(line).as_deref(), Some(expected), "{line}");
    assert_eq!(private.fault(&line("mtn refused; to +25078****001; ok")), None);
    check("Uncaught Error", "no JSON object");
    assert_eq!(private.fault("NOSENTRY SQLite alarm handler canceled with requestScheduledAlarm.; actorId = e"), None);
    check(r#"{"event":"SMS_SEND_FAILED"}"#, "no level");
    check(&line("").replace("warn", ""), "no level");
    check(&line("x").replace("SMS_SEND_FAILED", "SMS_LOST"), "no event is called SMS_LOST");
    check(&line("used k3y-of-the-carrier"), "holds MTN_SMS_API_KEY");
    check(&line("sent Bearer x"), "holds a token");
    check(&line("for mcpt_0f0f"), "holds a token");
    for spelling in ["+250788200001", "250788200001", "0788200001", "tel:+250788200001"] {
        check(&line(spelling), "holds the number that ends in 001");
    }
    check(&line("told: 1) Budget: 300k RWF/month"), "holds what somebody wrote (\"1) Budget: 300k RWF/month\")");
}
