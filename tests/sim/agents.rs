//! The agents of `agents/`: one folder each, with what it is (`agent.json`) and what it is told in each language
//! (`text.<locale>.md` for messages, `voice.<locale>.md` for calls), and how they get into a database.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokio_postgres::Client;

use crate::error::{Context, Result, Trouble};

/// Who answers when nobody else is meant; what it is told for calls is the beginning of what the others are told.
const GENERAL: &str = "call-center";
/// Every agent speaks all of them.
const LOCALES: [&str; 4] = ["en", "fr", "rw", "sw"];

/// One agent as its files have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    pub slug: String,
    /// The argument of `private.load_agent`.
    pub row: Value,
}

/// What became of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    New,
    Changed,
    Same,
    /// Somebody changed the row in the database: it is left as it is.
    Edited,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Same => "as it was",
            Self::Edited => "edited in the database since, so left alone",
        })
    }
}

/// Reads all of them, the general one first.
pub fn read(dir: &Path) -> Result<Vec<Agent>> {
    let general_voice = texts(&dir.join(GENERAL), "voice")?;
    let entries = std::fs::read_dir(dir).context(format!("cannot read the agents in {}", dir.display()))?;
    let mut agents = Vec::new();
    for entry in entries {
        let folder = entry.context("cannot list the agents")?.path();
        let Some(slug) = folder.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        if folder.is_dir() {
            agents.push(agent(&folder, slug, &general_voice)?);
        }
    }
    agents.sort_by(|left, right| (left.slug != GENERAL, &left.slug).cmp(&(right.slug != GENERAL, &right.slug)));
    Ok(agents)
}

fn agent(folder: &Path, slug: String, general_voice: &Map<String, Value>) -> Result<Agent> {
    let file = folder.join("agent.json");
    let text = std::fs::read_to_string(&file).context(format!("cannot read {}", file.display()))?;
    let row: Value = serde_json::from_str(&text).context(format!("{} is no JSON", file.display()))?;
    let Value::Object(mut row) = row else {
        return Err(Trouble::new(format!("{} must hold one object", file.display())));
    };
    let instructions = texts(folder, "text")?;
    for locale in LOCALES {
        if !instructions.contains_key(locale) {
            return Err(Trouble::new(format!("{} has no text.{locale}.md: every agent speaks it", folder.display())));
        }
    }
    let mut voice = texts(folder, "voice")?;
    // How to speak on the phone is the same for all; what about is their own.
    for (locale, manner) in general_voice {
        if let (false, Some(manner), Some(own)) =
            (voice.contains_key(locale), manner.as_str(), instructions.get(locale).and_then(Value::as_str))
        {
            voice.insert(locale.clone(), format!("{own}\n\n{manner}").into());
        }
    }
    row.insert("slug".to_owned(), slug.as_str().into());
    row.insert("instructions".to_owned(), instructions.into());
    row.insert("voice_instructions".to_owned(), voice.into());
    Ok(Agent { slug, row: row.into() })
}

/// The files `<kind>.<locale>.md` of a folder, by locale.
fn texts(folder: &Path, kind: &str) -> Result<Map<String, Value>> {
    let mut found = Map::new();
    for locale in LOCALES {
        let file = folder.join(format!("{kind}.{locale}.md"));
        if file.is_file() {
            let text = std::fs::read_to_string(&file).context(format!("cannot read {}", file.display()))?;
            found.insert(locale.to_owned(), text.trim().into());
        }
    }
    Ok(found)
}

/// Takes them into a database, all or none. A row that somebody changed there is only replaced with `overwrite`.
pub async fn load(client: &mut Client, agents: &[Agent], overwrite: bool) -> Result<Vec<(String, Loaded)>> {
    let transaction = client.transaction().await.context("cannot begin")?;
    let mut done = Vec::new();
    for Agent { slug, row } in agents {
        let mut row = row.clone();
        if let Some(row) = row.as_object_mut() {
            row.insert("overwrite".to_owned(), json!(overwrite));
        }
        let said = transaction
            .query_one("select private.load_agent($1)", &[&row])
            .await
            .context(format!("the database does not take agent {slug}"))?;
        let loaded = match said.get::<_, &str>(0) {
            "new" => Loaded::New,
            "changed" => Loaded::Changed,
            "edited" => Loaded::Edited,
            _ => Loaded::Same,
        };
        done.push((slug.clone(), loaded));
    }
    transaction.commit().await.context("cannot commit")?;
    Ok(done)
}
