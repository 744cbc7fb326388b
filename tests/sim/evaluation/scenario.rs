//! What stands in a scenario's file, and where a reader of one is told what is wrong with it.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Context, Result, Trouble};

/// One file. `{phone}` in SQL becomes the person's number in quotes' inside, `{profile}` a query for their profile's id.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name, without the ending.
    #[serde(skip)]
    pub file: String,
    pub title: String,
    /// In which the person speaks: en, fr, rw, sw.
    pub language: String,
    /// What it is there for: `journey: ...`, `tool: ...`, `handover`, `refusal`, `injection`.
    pub covers: Vec<String>,
    /// SQL before anything happens: services on offer, preferences.
    #[serde(default)]
    pub prepare: Vec<String>,
    pub steps: Vec<Step>,
    pub then: Vec<Check>,
}

/// What happens.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Step {
    /// The person writes an SMS.
    Sms {
        sms: String,
        #[serde(default)]
        model: Vec<Model>,
    },
    /// The person writes on WhatsApp.
    Whatsapp {
        whatsapp: String,
        #[serde(default)]
        model: Vec<Model>,
    },
    /// A call of the person has ended.
    Call(Call),
    /// Somebody else does something meanwhile.
    Do { sql: String },
}

/// A call that has ended.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// (`user` or `assistant`, text), in order.
    #[serde(rename = "call")]
    pub transcript: Vec<(String, String)>,
    pub locale: Option<String>,
    /// They have WhatsApp, and wrote there not long ago.
    #[serde(default)]
    pub on_whatsapp: bool,
}

/// What the simulated model does when it is asked, one answer after the other.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Model {
    Say {
        say: String,
    },
    /// Name and arguments of each call.
    Tools {
        tools: Vec<(String, Value)>,
    },
    /// It will not answer.
    Refuse {
        refuse: String,
    },
}

/// What must be true afterwards.
#[derive(Clone, Debug, Deserialize)]
pub struct Check {
    /// Not asked of a real model: it is free to say it otherwise.
    #[serde(default)]
    pub simulated_only: bool,
    #[serde(flatten)]
    pub expected: Expected,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// The one value that a query answers with (several rows: a list of them).
    Database {
        ask: String,
        is: Value,
    },
    Phone(Phone),
}

/// What the person has got on one channel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phone {
    /// sms, whatsapp.
    #[serde(rename = "phone")]
    pub channel: String,
    /// So many messages.
    pub count: Option<usize>,
    /// In the newest message: each of these, whatever the case.
    #[serde(default)]
    pub newest_says: Vec<String>,
    /// In the newest message: at least one of these.
    #[serde(default)]
    pub newest_says_one_of: Vec<String>,
    /// In no message.
    #[serde(default)]
    pub never_says: Vec<String>,
}

impl Phone {
    /// What is not as it must be.
    pub fn faults(&self, got: &[String]) -> Vec<String> {
        let mut faults = Vec::new();
        let channel = &self.channel;
        if let Some(count) = self.count
            && got.len() != count
        {
            faults.push(format!("{} messages by {channel}, not {count}", got.len()));
        }
        let newest = got.last().map(|text| text.to_lowercase()).unwrap_or_default();
        let says = |part: &String| newest.contains(&part.to_lowercase());
        for part in self.newest_says.iter().filter(|part| !says(part)) {
            faults.push(format!("the newest message by {channel} does not say {part:?}: {newest:?}"));
        }
        if !self.newest_says_one_of.is_empty() && !self.newest_says_one_of.iter().any(says) {
            faults.push(format!(
                "the newest message by {channel} says none of {:?}: {newest:?}",
                self.newest_says_one_of
            ));
        }
        for part in &self.never_says {
            if got.iter().any(|text| text.to_lowercase().contains(&part.to_lowercase())) {
                faults.push(format!("a message by {channel} says {part:?}"));
            }
        }
        faults
    }
}

/// All scenarios of a folder, by name.
pub fn read(dir: &Path) -> Result<Vec<Scenario>> {
    let entries = std::fs::read_dir(dir).context(format!("cannot read the scenarios in {}", dir.display()))?;
    let mut scenarios = Vec::new();
    for entry in entries {
        let path = entry.context("cannot list the scenarios")?.path();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
        let mut scenario: Scenario =
            serde_json::from_str(&text).context(format!("{} is no scenario", path.display()))?;
        scenario.file = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if scenario.steps.is_empty() || scenario.then.is_empty() {
            return Err(Trouble::new(format!(
                "{}: nothing happens, or nothing must be true afterwards",
                path.display()
            )));
        }
        scenarios.push(scenario);
    }
    scenarios.sort_by(|left, right| left.file.cmp(&right.file));
    Ok(scenarios)
}
