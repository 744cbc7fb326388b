//! What is said in a call: the words that the caller's turns are written down as, and what the model makes of them.
//!
//! The simulator hears when somebody speaks, not what; a script says that. It outlives a connection: a session that is
//! opened with the same ephemeral key goes on where the former one was cut, and so does one that is told the turns so far.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::speech::{self, Speech};

/// A conversation.
#[derive(Clone, Debug)]
pub struct Script {
    /// What the model says before the caller said anything.
    pub greeting: Speech,
    /// The caller's turns, in order.
    pub turns: Vec<Turn>,
}

/// One turn of the caller, and what follows from it.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Its transcript.
    pub text: String,
    /// As a transcription names it: ISO 639-1.
    pub language: Option<String>,
    /// One response each, in order: the first when the turn ends, the next when the client asks for one.
    pub acts: Vec<Act>,
}

/// What one response of the model does.
#[derive(Clone, Debug)]
pub enum Act {
    Say(Speech),
    /// Calls a function, and may say something before.
    Call {
        name: String,
        arguments: Value,
        saying: Option<Speech>,
    },
    /// Says the first if this text stands in the newest output of a function, else the second.
    SayIfTold {
        told: String,
        then: Speech,
        otherwise: Speech,
    },
}

impl Turn {
    pub fn new(text: &str, acts: Vec<Act>) -> Self {
        Self { text: text.to_owned(), language: None, acts }
    }
}

impl Default for Script {
    /// Somebody looks for a house, interrupts, and thanks.
    fn default() -> Self {
        let arguments = serde_json::json!({"query": "house", "area": "Kimironko"});
        let search = Act::Call { name: "search_services".to_owned(), arguments, saying: Some(speech::AGENT_LOOKING) };
        let answer = Act::SayIfTold {
            told: "Kimironko".to_owned(),
            then: speech::AGENT_OFFER,
            otherwise: speech::AGENT_NOTHING,
        };
        Self {
            greeting: speech::AGENT_GREETING,
            turns: vec![
                Turn::new(speech::CALLER_QUESTION.text, vec![search, answer]),
                Turn::new(speech::CALLER_INTERRUPTS.text, vec![Act::Say(speech::AGENT_PARKING)]),
                Turn::new(speech::CALLER_THANKS.text, vec![Act::Say(speech::AGENT_PARKING)]),
            ],
        }
    }
}

impl Script {
    /// Somebody looks for a house, interrupts, and has a ride booked for the next morning. What they look for is kept, and that
    /// a ride is booked is said only when the tool says so.
    pub fn house_and_ride(now: DateTime<Utc>) -> Self {
        let call = |name: &str, arguments: Value, saying: Option<Speech>| Act::Call {
            name: name.to_owned(),
            arguments,
            saying,
        };
        let request =
            json!({"kind": "housing", "area": "Kimironko", "budget": 300_000, "details": "two bedrooms, to rent"});
        let ride = json!({"action": "create", "pickup": "Kimironko", "destination": "Kigali airport", "pickup_at": tomorrow_at_eight(now), "vehicle": "moto"});
        let house = vec![
            call("service_request_save", request, Some(speech::AGENT_LOOKING)),
            call("search_services", json!({"query": "house", "area": "Kimironko"}), None),
            Act::SayIfTold { told: "garden".to_owned(), then: speech::AGENT_OFFER, otherwise: speech::AGENT_NOTHING },
        ];
        let booking = vec![
            call("book_transport", ride, None),
            Act::SayIfTold {
                told: "requested".to_owned(),
                then: speech::AGENT_BOOKED,
                otherwise: speech::AGENT_NOT_DONE,
            },
        ];
        Self {
            greeting: speech::AGENT_GREETING,
            turns: vec![
                Turn::new(speech::CALLER_QUESTION.text, house),
                Turn::new(speech::CALLER_INTERRUPTS.text, vec![Act::Say(speech::AGENT_BEHIND)]),
                Turn::new(speech::CALLER_RIDE.text, vec![Act::Say(speech::AGENT_RIDE)]),
                Turn::new(speech::CALLER_YES.text, booking),
            ],
        }
    }
}

/// As the tool takes it: Kigali is two hours ahead of UTC all year.
fn tomorrow_at_eight(now: DateTime<Utc>) -> String {
    (now + TimeDelta::hours(2) + TimeDelta::days(1)).format("%Y-%m-%dT08:00").to_string()
}

/// How far a conversation is.
#[derive(Debug, Default)]
pub struct Progress {
    script: Script,
    turn: usize,
    acts: VecDeque<Act>,
}

impl Progress {
    pub fn new(script: Script) -> Self {
        Self { script, ..Self::default() }
    }

    /// The caller's next turn: its transcript and language. Beyond the script nothing is understood.
    pub fn hears(&mut self) -> (String, Option<String>) {
        let turn = self.script.turns.get(self.turn);
        self.turn += 1;
        self.acts = turn.map(|turn| turn.acts.iter().cloned().collect()).unwrap_or_default();
        turn.map(|turn| (turn.text.clone(), turn.language.clone())).unwrap_or_default()
    }

    /// A client tells what was said before: a turn that the script has next was had already.
    pub fn told(&mut self, text: &str) {
        if self.script.turns.get(self.turn).is_some_and(|turn| turn.text == text) {
            self.turn += 1;
        }
    }

    /// What the next response does.
    pub fn act(&mut self) -> Act {
        let idle = if self.turn == 0 { self.script.greeting } else { speech::AGENT_NOTHING };
        self.acts.pop_front().unwrap_or(Act::Say(idle))
    }
}

/// A script as it is ordered over HTTP; speech by the names of its files.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ordered {
    #[serde(default)]
    greeting: Option<String>,
    turns: Vec<OrderedTurn>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderedTurn {
    text: String,
    #[serde(default)]
    language: Option<String>,
    #[serde(default)]
    acts: Vec<OrderedAct>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum OrderedAct {
    Say(String),
    Call {
        name: String,
        arguments: Value,
        #[serde(default)]
        saying: Option<String>,
    },
    SayIfTold {
        told: String,
        then: String,
        otherwise: String,
    },
}

impl TryFrom<Ordered> for Script {
    type Error = String;

    fn try_from(ordered: Ordered) -> Result<Self, String> {
        let greeting = ordered.greeting.as_deref().map(spoken).transpose()?.unwrap_or(speech::AGENT_GREETING);
        let turn = |turn: OrderedTurn| {
            let acts = turn.acts.into_iter().map(act).collect::<Result<_, _>>()?;
            Ok(Turn { text: turn.text, language: turn.language, acts })
        };
        Ok(Self { greeting, turns: ordered.turns.into_iter().map(turn).collect::<Result<_, String>>()? })
    }
}

fn act(ordered: OrderedAct) -> Result<Act, String> {
    Ok(match ordered {
        OrderedAct::Say(name) => Act::Say(spoken(&name)?),
        OrderedAct::Call { name, arguments, saying } => {
            Act::Call { name, arguments, saying: saying.as_deref().map(spoken).transpose()? }
        }
        OrderedAct::SayIfTold { told, then, otherwise } => {
            Act::SayIfTold { told, then: spoken(&then)?, otherwise: spoken(&otherwise)? }
        }
    })
}

fn spoken(name: &str) -> Result<Speech, String> {
    Speech::named(name).ok_or_else(|| {
        let known: Vec<&str> = speech::ALL.iter().map(|speech| speech.name).collect();
        format!("there is no speech {name:?}: one of {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tomorrow_is_kigalis() {
        let at = |text: &str| tomorrow_at_eight(text.parse().unwrap());
        assert_eq!(at("2030-12-30T21:59:00Z"), "2030-12-31T08:00");
        assert_eq!(at("2030-12-30T22:00:00Z"), "2031-01-01T08:00");
    }
}
