//! The phone call with which the story begins: spoken over SIP and RTP into the relay, and heard to have been answered.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use ihuza_sim::openai::realtime::Script;
use ihuza_sim::phone::PhoneCall;
use ihuza_sim::speech::{self, Speech};
use ihuza_sim::world::World;
use serde_json::{Map, Value};

use crate::progress;

/// What the agent finds when it looks.
const SERVICE: &str = "House with a garden";
/// So much of the offer is let through before the caller interrupts.
const PATIENT_FOR_MS: u64 = 3000;

/// A call that took place, and what is kept of it.
pub struct Told {
    pub id: String,
    pub provider_call_id: String,
    pub call: PhoneCall,
    pub hung_up: Instant,
    /// Milliseconds, by what was waited for.
    pub timings: Map<String, Value>,
}

struct Line<'a> {
    world: &'a World,
    call: &'a PhoneCall,
    patience: Duration,
}

/// Calls, asks, interrupts, has a ride booked, hangs up; and reads what was stored.
pub async fn tell(world: &World, phone: &str, patience: Duration) -> Result<Told> {
    let sql = "insert into public.services (name, category, area, keywords, price) values ($1, 'housing', 'Kimironko', 'house inzu', '300,000 RWF')";
    world.execute(sql, &[&SERVICE]).await?;
    world.openai().realtime().script(Script::house_and_ride(SystemTime::now().into()));
    let mut timings = Map::new();
    let relay = world.relay()?;
    progress::note(&format!("dials {}, which is the relay at {} (SIP over UDP):", relay.number, relay.sip));
    let since = Instant::now();
    let call = world.call_from(phone).await.context("nobody answered the call")?;
    let mut note = |what: &str, since: Instant| {
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        timings.insert(what.to_owned(), millis.into());
        millis
    };
    progress::done(&format!("answered after {} ms", note("call_answered", since)));
    let line = Line { world, call: &call, patience };

    let since = Instant::now();
    line.hears(&speech::AGENT_GREETING, 20).await?;
    note("greeting_begins", since);
    line.hears_all("agent", &speech::AGENT_GREETING).await?;
    line.says("person", &speech::CALLER_QUESTION).await;
    let since = Instant::now();
    line.hears(&speech::AGENT_LOOKING, 20).await?;
    note("answer_begins", since);
    line.hears_all("agent", &speech::AGENT_LOOKING).await?;
    let tool = line.searched().await?;
    progress::done(&format!("the agent calls service_request_save and search_services: {tool}"));
    line.hears(&speech::AGENT_OFFER, PATIENT_FOR_MS).await?;
    progress::note(&format!("   agent: {}", speech::AGENT_OFFER.text));
    line.says("person, interrupting", &speech::CALLER_INTERRUPTS).await;
    line.hears_all("agent", &speech::AGENT_BEHIND).await?;
    let offered = call.heard_of(&speech::AGENT_OFFER).unwrap_or_default();
    ensure!(
        offered < speech::AGENT_OFFER.ms() - 2000,
        "the agent was not interrupted: {offered} ms of its {} ms were heard",
        speech::AGENT_OFFER.ms()
    );
    progress::done(&format!(
        "interrupted: the caller heard {offered} ms of the offer's {} ms",
        speech::AGENT_OFFER.ms()
    ));
    line.says("person", &speech::CALLER_RIDE).await;
    line.hears_all("agent", &speech::AGENT_RIDE).await?;
    line.says("person", &speech::CALLER_YES).await;
    let ride = line.booked().await?;
    progress::done(&format!("the agent calls book_transport: {ride}"));
    line.hears_all("agent", &speech::AGENT_BOOKED).await?;
    call.hang_up().await.context("the relay did not take the end of the call")?;
    let hung_up = Instant::now();
    let id = line.stored().await.context("the call is not stored as it was")?;
    Ok(Told { id, provider_call_id: call.call_id.clone(), call, hung_up, timings })
}

impl Line<'_> {
    async fn says(&self, who: &str, speech: &Speech) {
        progress::note(&format!("  {who}: {}", speech.text));
        self.call.speak(speech).await;
    }

    async fn hears_all(&self, who: &str, speech: &Speech) -> Result<()> {
        self.hears(speech, speech.ms()).await?;
        progress::note(&format!("   {who}: {}", speech.text));
        Ok(())
    }

    /// Waits until so many milliseconds of it were heard, byte for byte.
    async fn hears(&self, speech: &Speech, ms: u64) -> Result<()> {
        let what = format!("{ms} ms of {:?} on the telephone", speech.text);
        let look = async || Ok(self.call.heard_of(speech).filter(|heard| *heard >= ms).map(drop));
        Ok(self.world.wait_for(what, self.patience, look).await?)
    }

    /// A tool's row of this call, once it is there.
    async fn used(&self, tool: &str) -> Result<Value> {
        let sql = format!(
            "select t.arguments, t.result from public.mcp_tool_calls t join public.voice_calls c on c.id = t.call_id
              where c.provider_call_id = '{}' and t.name = '{tool}'",
            self.call.call_id
        );
        let look = async || Ok(self.world.rows(&sql).await?.into_iter().next());
        let row = self.world.wait_for(format!("{tool} in mcp_tool_calls"), self.patience, look).await?;
        Ok(Value::Object(row))
    }

    /// What was booked, as it is stored.
    async fn booked(&self) -> Result<String> {
        let used = self.used("book_transport").await?;
        ensure!(used.pointer("/result/ok") == Some(&Value::Bool(true)), "the ride was not booked: {used}");
        let sql = format!(
            "select b.number, b.pickup, b.destination, b.vehicle, b.state, to_char(b.pickup_at at time zone 'Africa/Kigali', 'YYYY-MM-DD HH24:MI') as at
               from public.transport_bookings b join public.voice_calls c on c.id = b.call_id where c.provider_call_id = '{}'",
            self.call.call_id
        );
        let rides = self.world.rows(&sql).await?;
        let [ride] = rides.as_slice() else { bail!("there should be one booking of the call: {rides:?}") };
        let text = |name: &str| ride.get(name).and_then(Value::as_str).unwrap_or_default();
        ensure!(
            text("state") == "requested" && text("at").ends_with("08:00"),
            "the ride is not the one asked for: {ride:?}"
        );
        Ok(format!(
            "ride {} in transport_bookings, by {} from {} to {}, {}",
            ride.get("number").unwrap_or(&Value::Null),
            text("vehicle"),
            text("pickup"),
            text("destination"),
            text("at")
        ))
    }

    /// What the search gave, as it is stored.
    async fn searched(&self) -> Result<String> {
        let row = self.used("search_services").await?;
        let name = row.pointer("/result/result/services/0/name").and_then(Value::as_str).unwrap_or_default();
        ensure!(name == SERVICE, "the search did not find the house: {row}");
        let area = row.pointer("/arguments/area").and_then(Value::as_str).unwrap_or_default();
        Ok(format!("in {area} it finds \"{name}\""))
    }

    /// The id of the call, once all that was said and done is in the database.
    async fn stored(&self) -> Result<String> {
        let of_call = format!("from public.voice_calls where provider_call_id = '{}'", self.call.call_id);
        let ended = format!("select coalesce((select ended_at is not null {of_call}), false)");
        self.world.wait_for_sql(&ended, self.patience).await?;
        let rows = self
            .world
            .rows(&format!("select id, end_cause, duration_seconds, cost, cost_currency, correlation_id {of_call}"))
            .await?;
        let row = rows.first().context("there is no row of the call")?;
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = text("id");
        ensure!(text("end_cause") == "caller_hangup", "the call ended by {:?}", text("end_cause"));
        let cost = row.get("cost").and_then(Value::as_f64).unwrap_or_default();
        ensure!(cost > 0.0, "the call has no cost: {row:?}");

        let sql = format!("select role, text, interrupted from public.transcripts where call_id = '{id}' order by seq");
        let said = self.world.rows(&sql).await?;
        let cut: Vec<&Map<String, Value>> =
            said.iter().filter(|turn| turn.get("interrupted") == Some(&Value::Bool(true))).collect();
        ensure!(
            said.len() == 10 && cut.len() == 1,
            "the transcript should have ten turns, one of them interrupted: {said:?}"
        );
        let heard = cut.first().and_then(|turn| turn.get("text")?.as_str()).unwrap_or_default();
        let is_beginning = speech::AGENT_OFFER.text.starts_with(heard) && heard.len() < speech::AGENT_OFFER.text.len();
        ensure!(is_beginning && !heard.is_empty(), "the interrupted turn is not the beginning of the offer: {heard:?}");
        let sql = format!(
            "select count(*) as count, max(seq) as last, count(*) filter (where correlation_id <> '{}') as others
               from public.voice_events where call_id = '{id}'",
            text("correlation_id")
        );
        let events = Value::Object(self.world.rows(&sql).await?.into_iter().next().unwrap_or_default());
        let number = |name: &str| events.get(name).and_then(Value::as_i64).unwrap_or_default();
        ensure!(number("count") == number("last") && number("count") > 0, "events are missing: {events}");
        ensure!(number("others") == 0, "events of the call have another correlation id: {events}");
        progress::done(&format!(
            "the caller hangs up after {} s: {} turns and {} events stored without a gap, {cost:.4} {}",
            row.get("duration_seconds").unwrap_or(&Value::Null),
            said.len(),
            number("count"),
            text("cost_currency"),
        ));
        progress::note(&format!("stored of the interrupted turn, as far as it was heard: {heard:?}"));
        Ok(id)
    }
}
