//! `cargo xtask handoffs`: the queue of people who wait for a person of the team.
//!
//! Numbers are masked unless they are asked for; who takes or closes one is kept with it.

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use ihuza_core::{phone, redact};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::migrate::connection::{self, call};
use crate::places;

#[derive(clap::Args)]
#[command(after_help = "\
ID is the id of a hand-over or its number. Nobody can take what somebody else has taken. A hand-over that waits is an alert, which
ends when it is taken.")]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    database: connection::Place,
}

#[derive(Subcommand)]
enum Action {
    /// Those that are open, in the order in which they are to be taken, one line each.
    List {
        /// Also those that were closed.
        #[arg(long)]
        all: bool,
        /// Of this client alone: its short name.
        #[arg(long)]
        client: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Take one: from now on it is yours.
    Take {
        id: String,
        #[command(flatten)]
        operator: Operator,
        /// With the person's number and the whole conversation, as JSON.
        #[arg(long)]
        whole: bool,
    },
    /// Give back what you have taken; it waits again in its old place.
    Release {
        id: String,
        #[command(flatten)]
        operator: Operator,
    },
    /// Be done with one.
    Close {
        id: String,
        #[command(flatten)]
        operator: Operator,
        /// What came of it, in a few words.
        #[arg(long)]
        outcome: Option<String>,
    },
}

#[derive(clap::Args)]
struct Operator {
    /// Who you are; without it, the user of this machine.
    #[arg(long)]
    by: Option<String>,
}

impl Operator {
    fn name(&self) -> Result<String> {
        let name = self.by.clone().or_else(|| places::set("USER"));
        name.context("say who you are: --by NAME")
    }
}

pub fn run(options: &Options) -> Result<()> {
    options.database.run(async |client| match &options.action {
        Action::List { all, client: of, limit } => {
            let handoffs = list(&client, *all, of.as_deref(), *limit).await?;
            handoffs.iter().for_each(|handoff| println!("{}", line(handoff)));
            eprintln!("{} hand-overs", handoffs.len());
            Ok(())
        }
        Action::Take { id, operator, whole } => {
            let taken = take(&client, id, &operator.name()?).await?;
            println!("{}", line(&find(&client, id).await?));
            if *whole {
                println!("{}", serde_json::to_string_pretty(&taken)?);
            } else {
                eprintln!("with --whole: the person's number and the conversation");
            }
            Ok(())
        }
        Action::Release { id, operator } => {
            let id = id_of(&find(&client, id).await?);
            call(&client, "release_handoff", &json!({"id": id, "operator": operator.name()?})).await?;
            println!("{}", line(&find(&client, &id).await?));
            Ok(())
        }
        Action::Close { id, operator, outcome } => {
            let id = id_of(&find(&client, id).await?);
            let p = json!({"id": id, "operator": operator.name()?, "outcome": outcome});
            call(&client, "close_handoff", &p).await?;
            println!("{}", line(&find(&client, &id).await?));
            Ok(())
        }
    })
}

/// Hand-overs as `{id, number, client_id, state, ...}`, those that are to be taken next first, closed ones last.
pub async fn list(client: &Client, all: bool, of: Option<&str>, limit: u32) -> Result<Vec<Value>> {
    let which = "($1 or h.state <> 'closed') and ($2::text is null or c.slug = $2)";
    rows(client, which, &[&all, &of], i64::from(limit)).await
}

/// One hand-over by its id or number, as [`list`] has it.
pub async fn find(client: &Client, id: &str) -> Result<Value> {
    let found = rows(client, "$1 in (h.id::text, h.number::text)", &[&id.trim().to_lowercase()], 1).await?;
    found.into_iter().next().with_context(|| format!("there is no hand-over {id}"))
}

/// Takes it for this operator: `{handoff, phone_number, context}`. Fails where somebody else was first.
pub async fn take(client: &Client, id: &str, operator: &str) -> Result<Value> {
    let found = find(client, id).await?;
    let p = json!({"id": found.get("id"), "client_id": found.get("client_id"), "operator": operator});
    let taken = call(client, "take_handoff", &p).await?;
    if taken.get("decision").and_then(Value::as_str) != Some("taken") {
        let now = find(client, id).await?;
        bail!("it does not wait: {}", state(&now));
    }
    Ok(taken)
}

async fn rows(
    client: &Client,
    which: &str,
    given: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    limit: i64,
) -> Result<Vec<Value>> {
    let sql = format!(
        "select to_jsonb(h) || jsonb_build_object('client', c.slug, 'minutes', floor(extract(epoch from clock_timestamp() - h.created_at) / 60)::bigint,
                  'phone_number', coalesce(p.phone_number, case v.direction when 'outbound' then v.to_number else v.from_number end))
           from public.handoffs h
           join public.clients c on c.id = h.client_id
           left join public.profiles p on p.id = h.profile_id
           left join public.voice_calls v on v.id = h.call_id
          where {which}
          order by h.state = 'closed', h.state = 'taken', h.urgent desc, h.number
          limit {limit}"
    );
    let found = client.query(&sql, given).await;
    // Postgres' detail may hold a row.
    let found = found.map_err(|error| match error.as_db_error() {
        Some(said) => anyhow::anyhow!("{}", said.message()),
        None => error.into(),
    })?;
    Ok(found.into_iter().map(|row| row.get(0)).collect())
}

/// One hand-over in a line: number, id, state, since when, where the person is, who is wanted, masked number, why.
pub fn line(handoff: &Value) -> String {
    let text = |name: &str| handoff.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    let number = handoff.get("number").and_then(Value::as_i64).unwrap_or_default();
    let minutes = handoff.get("minutes").and_then(Value::as_i64).unwrap_or_default();
    let urgent = if handoff.get("urgent") == Some(&Value::Bool(true)) { "urgent  " } else { "" };
    format!(
        "#{number}  {}  {}  {}  {urgent}{}  {}  {}  {}",
        text("id"),
        state(handoff),
        since(minutes),
        text("channel"),
        text("department"),
        handoff.get("phone_number").and_then(Value::as_str).map_or_else(|| "-".to_owned(), phone::mask),
        redact::scrub(&text("reason")),
    )
}

fn id_of(handoff: &Value) -> String {
    handoff.get("id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// `waiting`, `taken by Aline`, `closed by Aline: called back`.
fn state(handoff: &Value) -> String {
    let text = |name: &str| handoff.get(name).and_then(Value::as_str);
    let state = text("state").unwrap_or("-");
    let by = match state {
        "taken" => text("taken_by"),
        "closed" => text("closed_by"),
        _ => None,
    };
    let outcome = text("outcome").filter(|_| state == "closed").map(|outcome| format!(": {}", redact::scrub(outcome)));
    format!("{state}{}{}", by.map(|by| format!(" by {by}")).unwrap_or_default(), outcome.unwrap_or_default())
}

/// How long ago it was asked for.
fn since(minutes: i64) -> String {
    match minutes {
        ..1 => "just now".to_owned(),
        1..120 => format!("{minutes} min ago"),
        120..2880 => format!("{} h ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handoff(more: Value) -> Value {
        let mut handoff = json!({"id": "x", "number": 3, "state": "waiting", "minutes": 4, "urgent": false, "channel": "sms", "department": null,
            "phone_number": "+250788123456", "reason": "Call me on 0788123456 about my rent"});
        if let (Some(handoff), Value::Object(more)) = (handoff.as_object_mut(), more) {
            handoff.extend(more);
        }
        handoff
    }

    #[test]
    fn a_line_says_who_waits_and_why_and_no_whole_number() {
        assert_eq!(
            line(&handoff(json!({}))),
            "#3  x  waiting  4 min ago  sms  -  +25078****456  Call me on 07881****456 about my rent"
        );
        let urgent = handoff(json!({"urgent": true, "department": "safety", "minutes": 0, "phone_number": null}));
        assert!(
            line(&urgent).starts_with("#3  x  waiting  just now  urgent  sms  safety  -  Call"),
            "{}",
            line(&urgent)
        );
        assert!(!line(&urgent).contains("0788123456"), "{}", line(&urgent));
    }

    #[test]
    fn a_state_says_by_whom() {
        let taken = json!({"state": "taken", "taken_by": "Aline"});
        assert_eq!(state(&handoff(taken)), "taken by Aline");
        let closed =
            json!({"state": "closed", "taken_by": "Aline", "closed_by": "Eric", "outcome": "called +250788123456"});
        assert_eq!(state(&handoff(closed)), "closed by Eric: called +25078****456");
        assert_eq!(state(&handoff(json!({"state": "closed", "closed_by": "relay"}))), "closed by relay");
    }

    #[test]
    fn times_are_told_in_the_unit_that_is_felt() {
        for (minutes, told) in
            [(-1, "just now"), (0, "just now"), (119, "119 min ago"), (121, "2 h ago"), (2880, "2 days ago")]
        {
            assert_eq!(since(minutes), told);
        }
    }
}
