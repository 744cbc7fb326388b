//! `cargo xtask dead-letters`: work that was given up, listed, put back or dropped.
//!
//! Numbers and texts are masked unless they are asked for; who replays or drops says why, and the database keeps it.

use anyhow::{Result, bail};
use clap::Subcommand;
use ihuza_core::redact;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::migrate::connection::{self, call};
use crate::places;

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    database: connection::Place,
}

#[derive(Subcommand)]
enum Action {
    /// Those that nobody has settled, newest first, one line each.
    List {
        /// Also those that were replayed or dropped.
        #[arg(long)]
        all: bool,
        /// Of this queue alone.
        #[arg(long)]
        queue: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// All about one, as JSON.
    Show {
        id: String,
        /// With numbers and texts.
        #[arg(long)]
        payload: bool,
    },
    /// Have the work done again: the next sweep puts it onto its queue. Twice is as good as once.
    Replay(Settle),
    /// Give it up for good; its payload is removed, the row stays.
    Drop(Settle),
}

#[derive(clap::Args)]
struct Settle {
    /// One or several.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Why, for those who ask later.
    #[arg(long)]
    reason: String,
    /// Who wants it; without it, the user of this machine.
    #[arg(long)]
    by: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    options.database.run(async |client| match &options.action {
        Action::List { all, queue, limit } => list(&client, *all, queue.as_deref(), *limit).await,
        Action::Show { id, payload } => show(&client, id, *payload).await,
        Action::Replay(settle) => each(&client, "replay_dead_letter", settle).await,
        Action::Drop(settle) => each(&client, "drop_dead_letter", settle).await,
    })
}

async fn list(client: &Client, all: bool, queue: Option<&str>, limit: u32) -> Result<()> {
    let found = call(client, "list_dead_letters", &json!({"all": all, "queue": queue, "limit": limit})).await?;
    let letters = found.as_array().map(Vec::as_slice).unwrap_or_default();
    for letter in letters {
        println!("{}", line(letter));
    }
    eprintln!("{} dead letters", letters.len());
    Ok(())
}

/// One letter in a line: id, time, queue, reason, what can be done with it.
fn line(letter: &Value) -> String {
    let text = |name: &str| letter.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    let state = if letter.get("dropped_at").is_some_and(|at| !at.is_null()) {
        "dropped"
    } else if letter.get("replayed_at").is_some_and(|at| !at.is_null()) {
        "replayed"
    } else if letter.get("replayable") == Some(&Value::Bool(true)) {
        "replayable"
    } else {
        "ids only"
    };
    let created = text("created_at");
    let created = created.get(..19).unwrap_or(&created);
    let correlation = redact::scrub(&text("correlation_id"));
    format!("{}  {created}  {}  {}  {state}  {correlation}", text("id"), text("queue"), text("reason"))
}

async fn show(client: &Client, id: &str, payload: bool) -> Result<()> {
    let found = call(client, "list_dead_letters", &json!({"id": id, "payload": true})).await?;
    let Some(letter) = found.get(0) else {
        bail!("there is no dead letter {id}");
    };
    let mut letter = letter.clone();
    if !payload {
        mask(&mut letter);
    }
    println!("{}", serde_json::to_string_pretty(&letter)?);
    Ok(())
}

/// Members of a payload that say which work it is, and nothing about people.
const PLAIN: &[&str] = &[
    "action",
    "at",
    "call_ref",
    "channel",
    "class",
    "created_at",
    "dropped_at",
    "error_code",
    "first_seen_at",
    "id",
    "kind",
    "message_id",
    "outcome",
    "provider",
    "purpose",
    "queue",
    "reason",
    "received_at",
    "replayed_at",
    "rpc",
    "status",
];

/// Leaves of the letter what tells the work, and says of the rest only how much there is.
fn mask(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if PLAIN.contains(&name.as_str()) || name.ends_with("_id") => {
                        *text = redact::scrub(text);
                    }
                    member => mask(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::String(text) if ihuza_core::ids::is_uuid(text) => {}
        Value::String(text) => *text = format!("({} characters)", text.chars().count()),
        Value::Number(number) if number.to_string().len() >= 8 => *value = Value::String("(a number)".to_owned()),
        Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

async fn each(client: &Client, function: &str, settle: &Settle) -> Result<()> {
    let by = settle.by.clone().or_else(|| places::set("USER")).unwrap_or_default();
    let mut failed = 0;
    for id in &settle.ids {
        let p = json!({"id": id, "reason": settle.reason, "by": by});
        match call(client, function, &p).await {
            Ok(answer) => println!("{id}  {}", answer.get("status").and_then(Value::as_str).unwrap_or_default()),
            Err(error) => {
                failed += 1;
                eprintln!("{id}  {error:#}");
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} were refused, as told above", settle.ids.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_tells_the_work_and_no_number_or_text() {
        let mut letter = json!({
            "id": "6f1b2c3d-0000-4000-8000-000000000001", "queue": "sms-inbound", "reason": "retries_exhausted", "attempts": 100,
            "correlation_id": "for +250788123456", "payload": {"v": 1, "first_seen_at": "2030-01-01T08:00:00.000Z", "body": {
                "provider": "mtn", "provider_message_id": "m-1", "from": "+250788123456", "text": "My PIN is 1234",
                "msisdn": 250788123456_u64, "session_id": "6f1b2c3d-0000-4000-8000-000000000002", "parts": ["hello"], "nested": {"name": "Keza"}}}
        });
        mask(&mut letter);
        let shown = letter.to_string();
        for secret in ["788123456", "PIN", "hello", "Keza"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        for told in
            ["sms-inbound", "retries_exhausted", "m-1", "6f1b2c3d-0000-4000-8000-000000000002", "(14 characters)"]
        {
            assert!(shown.contains(told), "{told} not in {shown}");
        }
    }

    #[test]
    fn a_line_tells_what_can_be_done() {
        let line = |more: Value| {
            let mut letter = json!({"id": "x", "created_at": "2030-01-01T08:00:00.123+00:00", "queue": "q", "reason": "r", "correlation_id": null});
            if let (Some(letter), Value::Object(more)) = (letter.as_object_mut(), more) {
                letter.extend(more);
            }
            super::line(&letter)
        };
        assert_eq!(line(json!({"replayable": true})), "x  2030-01-01T08:00:00  q  r  replayable  -");
        assert_eq!(line(json!({"replayable": false})), "x  2030-01-01T08:00:00  q  r  ids only  -");
        assert_eq!(
            line(json!({"replayed_at": "now", "replayable": true})),
            "x  2030-01-01T08:00:00  q  r  replayed  -"
        );
        assert_eq!(
            line(json!({"dropped_at": "now", "replayed_at": "then"})),
            "x  2030-01-01T08:00:00  q  r  dropped  -"
        );
    }
}
