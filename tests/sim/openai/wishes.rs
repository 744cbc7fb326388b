//! What somebody writes that only a tool can do: a ride at another time, another budget, a person of the team. The stand-in
//! wants the tool then, with what it was told is open, as the real model would.

use serde_json::{Value, json};

use super::answer::short;
use super::facts;

/// What of a person is open, as a request tells it (`ihuza_core::known`).
#[derive(Debug, Default)]
pub struct Open {
    rides: Vec<Value>,
    asked_for: Vec<Value>,
}

impl Open {
    pub fn of(told: &str) -> Self {
        let lines = |what: &str| {
            let items = told.lines().filter_map(|line| serde_json::from_str(line.trim().strip_prefix(what)?).ok());
            items.collect()
        };
        Self { rides: lines("booked: "), asked_for: lines("asked for: ") }
    }
}

/// The tool that does it, and what it is given besides nulls; nothing where it is not certain which ride or request is meant.
pub fn wish(question: &str, open: &Open) -> Option<(&'static str, Value)> {
    if asks_for_a_person(question) {
        let reason = format!("Wants to speak to a person: {}", short(question, 200));
        return Some(("transfer_to_human", json!({ "reason": reason })));
    }
    if let ([ride], Some(time)) = (open.rides.as_slice(), time_of_day(question))
        && let Some((day, _)) = ride.get("pickup_at").and_then(Value::as_str).and_then(|at| at.split_once('T'))
    {
        let change = json!({"action": "change", "number": ride.get("number"), "pickup_at": format!("{day}T{time}")});
        return Some(("book_transport", change));
    }
    if let ([asked], Some(budget)) = (open.asked_for.as_slice(), facts::amount(question)) {
        return Some(("service_request_save", json!({"number": asked.get("number"), "budget": budget})));
    }
    None
}

fn asks_for_a_person(question: &str) -> bool {
    const SAID: [&str; 6] = [
        "speak to a person",
        "talk to a person",
        "parler à une personne",
        "parler à quelqu'un",
        "kuvugana n'umuntu",
        "kuongea na mtu",
    ];
    let question = question.to_lowercase().replace('’', "'");
    SAID.iter().any(|said| question.contains(said))
}

/// `9 o'clock`, `9am`, `9:30 pm`, `9h30`, as `HH:MM`; a bare number is no time.
fn time_of_day(question: &str) -> Option<String> {
    let words: Vec<String> = question
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase().replace('’', "'"))
        .collect();
    words.iter().enumerate().find_map(|(index, word)| {
        let digits = word.chars().take_while(char::is_ascii_digit).count();
        let (hour, rest) = word.split_at_checked(digits)?;
        let mut hour: u32 = hour.parse().ok()?;
        let next = words.get(index + 1).map(String::as_str).unwrap_or_default();
        let (minute, half) = match rest.split_at_checked(1) {
            None | Some(("", _)) => ("", next),
            Some((":" | "h", minutes)) => {
                let half = minutes.find(|c: char| !c.is_ascii_digit()).unwrap_or(minutes.len());
                let (minutes, half) = minutes.split_at_checked(half)?;
                (if minutes.is_empty() { "00" } else { minutes }, if half.is_empty() { next } else { half })
            }
            Some(_) => ("", rest),
        };
        match half {
            "pm" if hour < 12 => hour += 12,
            "am" if hour == 12 => hour = 0,
            "am" | "pm" | "o'clock" => {}
            _ if minute.is_empty() => return None,
            _ => {}
        }
        let minute: u32 = if minute.is_empty() { 0 } else { minute.parse().ok()? };
        (hour < 24 && minute < 60).then(|| format!("{hour:02}:{minute:02}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "What is open, data:\n<<<\nasked for: {\"kind\":\"housing\",\"number\":4}\n\
                        booked: {\"number\":7,\"pickup\":\"Remera\",\"pickup_at\":\"2030-01-02T08:00\"}\narea: Remera\n>>>";

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, time) in [
            ("Please make the moto 9 o'clock", Some("09:00")),
            ("Make it 9 o’clock.", Some("09:00")),
            ("at 9pm", Some("21:00")),
            ("at 9:30 pm please", Some("21:30")),
            ("12 am", Some("00:00")),
            ("à 9h", Some("09:00")),
            ("à 18h45!", Some("18:45")),
            ("07:05", Some("07:05")),
            ("We are 3", None),
            ("at 25:00", None),
            ("300k a month", None),
            ("3 bedrooms in Remera", None),
        ] {
            assert_eq!(time_of_day(text).as_deref(), time, "{text}");
        }
    }

    #[test]
    fn a_wish_names_the_one_that_is_open_and_is_none_without_it() {
        let open = Open::of(TOLD);
        let ride = json!({"action": "change", "number": 7, "pickup_at": "2030-01-02T09:00"});
        assert_eq!(wish("Make it 9 o'clock", &open), Some(("book_transport", ride)));
        let budget = json!({"number": 4, "budget": 250_000});
        assert_eq!(wish("Change budget to 250k", &open), Some(("service_request_save", budget)));
        assert_eq!(wish("What is my budget?", &open), None);
        for question in ["Make it 9 o'clock", "Change budget to 250k"] {
            assert_eq!(wish(question, &Open::default()), None, "{question}");
        }
        let two = Open::of(&format!("{TOLD}\nbooked: {{\"number\":8,\"pickup_at\":\"2030-01-03T08:00\"}}"));
        assert_eq!(wish("Make it 9 o'clock", &two), None, "which one?");
        let (tool, given) = wish("I want to speak to a person", &Open::default()).unwrap();
        assert_eq!(tool, "transfer_to_human");
        assert_eq!(given["reason"], "Wants to speak to a person: I want to speak to a person");
    }
}
