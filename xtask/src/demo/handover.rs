//! The person asks for a person: the hand-over waits in the queue, and somebody of the team takes it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::story::{Story, step};
use crate::handoffs;
use crate::migrate::connection;
use crate::progress;

/// Of the team.
const OPERATOR: &str = "Aline";

impl Story<'_> {
    /// What an operator sees and does is what `cargo xtask handoffs` shows and does.
    pub(super) async fn asks_for_a_person(&mut self, who: &str, key: &str, phone: &str, session: &str) -> Result<()> {
        let wish = "I want to speak to a person";
        progress::note("Then a person is asked for:");
        let answer = self.says(who, key, phone, session, ("person_asked_for", wish)).await?;
        ensure!(answer.contains("colleague"), step(who, "the answer does not say that a colleague was asked"));
        let id = self.waits(session).await.with_context(|| step(who, "nothing waits in the queue of the team"))?;
        self.is_taken(&id).await.with_context(|| step(OPERATOR, "could not take the hand-over"))
    }

    /// The hand-over of this session, and the alert that tells of it.
    async fn waits(&self, session: &str) -> Result<String> {
        let client = connection::open(&self.world.database_url(), None).await?;
        let waiting = handoffs::list(&client, false, None, 50).await?;
        let is_theirs = |handoff: &&Value| handoff.get("session_id").and_then(Value::as_str) == Some(session);
        let theirs = waiting.iter().find(is_theirs).with_context(|| format!("not among {waiting:?}"))?;
        ensure!(theirs.get("state").and_then(Value::as_str) == Some("waiting"), "it does not wait: {theirs}");
        let id = theirs.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        self.world.wait_for_sql(&alert(&id, "resolved_at is null"), self.patience).await?;
        progress::done("a hand-over waits, and the team is alerted; cargo xtask handoffs list:");
        progress::note(&format!("    {}", handoffs::line(theirs)));
        Ok(id)
    }

    async fn is_taken(&self, id: &str) -> Result<()> {
        let client = connection::open(&self.world.database_url(), None).await?;
        let taken = handoffs::take(&client, id, OPERATOR).await?;
        let count =
            |list: &str| taken.pointer(&format!("/context/{list}")).and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(count("bookings") == 1 && count("messages") > 0, "the operator is not shown what was said and booked");
        let sql = format!(
            "select coalesce((select state = 'taken' and taken_by = '{OPERATOR}' and taken_at is not null from public.handoffs where id = '{id}'), false)"
        );
        self.world.wait_for_sql(&sql, self.patience).await?;
        self.world.wait_for_sql(&alert(id, "resolved_at is not null"), self.patience).await?;
        progress::done(&format!("{OPERATOR} of the team takes it, and the alert is over; cargo xtask handoffs take:"));
        progress::note(&format!("    {}", handoffs::line(&handoffs::find(&client, id).await?)));
        progress::note(&format!(
            "    {OPERATOR} is shown the whole conversation: {} messages, {} ride, {} request",
            count("messages"),
            count("bookings"),
            count("requests")
        ));
        Ok(())
    }
}

fn alert(handoff: &str, how: &str) -> String {
    format!(
        "select exists (select from public.alerts where kind = 'handoff_waiting' and dedupe_key = 'handoff:{handoff}' and {how})"
    )
}
