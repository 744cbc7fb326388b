//! What only the whole local world shows: calls of the database for one piece of work, and the time from a call's end to
//! the providers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use ihuza_sim::control::{Control, Recorded};
use ihuza_sim::mtn::Reports;
use ihuza_sim::openai::Script;
use ihuza_sim::verbs::{CallSeed, SeededCall};
use ihuza_sim::whatsapp::Statuses;
use ihuza_sim::world::{World, WorldConfig};
use serde_json::{Value, json};

use super::Figure;
use super::http::{Connection, Request};
use super::stats::{Dice, percentile};
use crate::progress::{self, Step};

/// What the distance to a hosted database and to the providers costs.
const DATABASE_LATENCY: Duration = Duration::from_millis(50);
const PROVIDER_LATENCY: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(30);
/// After the last expected call of the database: would there be another?
const SILENCE: Duration = Duration::from_millis(400);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the service has promised since its first description, and what we aim at.
const PROMISE_MS: f64 = 10_000.0;
const AIM_MS: f64 = 1_000.0;
/// People whose calls, messages and tools are counted.
const COUNTED: usize = 3;
/// Senders that share the calls, so that a slow answer delays nobody else.
const SENDERS: usize = 8;

/// The calls that are offered.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub calls: usize,
    pub a_second: f64,
    pub seed: u64,
}

pub fn measure(offer: Offer) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the asynchronous runtime")?;
    let figures = runtime.block_on(async {
        let step = Step::start("the local world", None);
        let config = WorldConfig {
            gateway_latency: DATABASE_LATENCY,
            provider_latency: PROVIDER_LATENCY,
            ..WorldConfig::default()
        };
        let world = Box::pin(World::start(config)).await?;
        // Reports of what was sent are work of their own and would be counted with ours.
        world.mtn().set_reports(Reports::never());
        world.whatsapp().set_statuses(Statuses::never());
        step.finish();
        let step = Step::start("calls of the database for one piece of work", None);
        let mut figures = counts(&world).await?;
        step.finish();
        figures.extend(journeys(&world, offer).await?);
        anyhow::Ok(figures)
    });
    // The world's own threads may still be closing sockets; nothing waits for them.
    runtime.shutdown_background();
    figures
}

async fn counts(world: &World) -> Result<Vec<Figure>> {
    let phones: Vec<String> = (0..COUNTED).map(|number| format!("+25078300000{number}")).collect();
    let mut notifications = Vec::new();
    let mut turns = Vec::new();
    let mut with_tool = Vec::new();
    for phone in &phones {
        let call = world.seed_call(&CallSeed::new(phone).on_whatsapp_now()).await?;
        world.gateway().clear();
        let answer = world.post_call_notify(&call).await?;
        if answer.status != 202 {
            bail!("post-call-notify answered {}: {}", answer.status, answer.body);
        }
        notifications.push(until(world, "finish_call_notification").await?);
    }
    for phone in &phones {
        world.gateway().clear();
        world.sms_from(phone, "Change budget to 250k").await?;
        turns.push(until(world, "finish_sms_turn").await?);
    }
    for phone in &phones {
        world.gateway().clear();
        world.openai().next(Script::Tools(vec![("session_get_context".to_owned(), json!({}))]));
        world.sms_from(phone, "What did we talk about?").await?;
        with_tool.push(until(world, "finish_sms_turn").await?);
    }
    Ok(vec![
        count("edge.post-call-notify.postgrest_calls", &notifications, "for one notification over two channels; aim 2"),
        count("edge.sms-inbound-webhook.postgrest_calls", &turns, "for one SMS turn; aim 2"),
        count(
            "edge.sms-inbound-webhook.postgrest_calls_with_a_tool",
            &with_tool,
            "for one SMS turn with one tool call; aim 3",
        ),
    ])
}

fn count(name: &str, counted: &[Vec<String>], note: &str) -> Figure {
    let most = counted.iter().max_by_key(|calls| calls.len()).cloned().unwrap_or_default();
    let note = format!("{note}; the most of all: {}", most.join(", "));
    Figure::new(name, most.len() as f64, "calls", counted.len() as u64, &note)
}

/// The database functions called until `last` was answered and nothing more came.
async fn until(world: &World, last: &str) -> Result<Vec<String>> {
    let is_last = |entry: &Recorded| entry.path.ends_with(last) && entry.status.is_some();
    let deadline = Instant::now() + PATIENCE;
    while !world.gateway().requests().iter().any(is_last) {
        if Instant::now() > deadline {
            bail!("waited in vain for {last}: the database saw {:?}", called(world.gateway()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tokio::time::sleep(SILENCE).await;
    Ok(called(world.gateway()))
}

fn called(gateway: &Control) -> Vec<String> {
    gateway.requests().iter().map(|entry| entry.path.rsplit('/').next().unwrap_or_default().to_owned()).collect()
}

async fn journeys(world: &World, offer: Offer) -> Result<Vec<Figure>> {
    let step = Step::start(&format!("{} calls in the database", offer.calls), None);
    let people: Vec<CallSeed> = (0..offer.calls)
        .map(|number| CallSeed::new(&format!("+25078{:07}", 4_000_000 + number)).on_whatsapp_now())
        .collect();
    let mut calls = Vec::with_capacity(offer.calls);
    for some in people.chunks(2) {
        match some {
            [one, other] => {
                calls.extend(<[SeededCall; 2]>::from(tokio::try_join!(world.seed_call(one), world.seed_call(other))?))
            }
            others => {
                for one in others {
                    calls.push(world.seed_call(one).await?);
                }
            }
        }
    }
    step.finish();
    world.mtn().control().clear();
    world.whatsapp().control().clear();

    let seconds = offer.calls as f64 / offer.a_second;
    let step = Step::start(
        &format!("{} calls end, {} a second, from seed {}", offer.calls, offer.a_second, offer.seed),
        Some(&format!("{seconds:.0} s")),
    );
    let url = world.edge()?.url("post-call-notify")?;
    let port =
        url.rsplit(':').next().and_then(|port| port.parse().ok()).with_context(|| format!("{url} has no port"))?;
    let sent = send(&calls, offer, port, world.secret("SUPABASE_SERVICE_ROLE_KEY")?)?;
    let deadline = Instant::now() + PATIENCE;
    let arrived = loop {
        let arrived = arrivals(world);
        let all = calls.iter().all(|call| arrived.get(&call.phone).is_some_and(|at| at.both().is_some()));
        if all || Instant::now() > deadline {
            break arrived;
        }
        tokio::time::sleep(LOOK_EVERY * 10).await;
    };
    step.finish();
    let journeys: Vec<f64> = calls
        .iter()
        .zip(&sent)
        .filter_map(|(call, sent)| Some((arrived.get(&call.phone)?.both()? - sent.at_us) as f64 / 1e3))
        .collect();
    let lost = calls.len() - journeys.len();
    if lost > 0 {
        progress::warn(&format!(
            "{lost} of {} calls did not reach both providers: no percentile counts them",
            calls.len()
        ));
    }
    let accepts: Vec<f64> = sent.iter().map(|sent| sent.accept_ms).collect();
    let within = journeys.iter().filter(|journey| **journey <= AIM_MS).count();
    let note = format!(
        "from the POST of a call's end to the arrival of the later of the two provider requests; {} calls, {} a second, seed {}; \
         50 ms added to each database call, 150 ms to each provider (the summary's model too); aim: p95 under 1 s, {within} calls \
         were; {lost} never arrived; answered 202 after {:.1} ms (median); no delivery reports; local queues take one batch at a \
         time, the hosted ones many",
        calls.len(),
        offer.a_second,
        offer.seed,
        percentile(&accepts, 50.0)
    );
    let figure = |percent: f64| {
        let name = format!("edge.call_end_to_providers.p{percent:.0}_ms");
        Figure::new(name, percentile(&journeys, percent), "ms", journeys.len() as u64, &note)
            .beside("promise of 10 s", PROMISE_MS)
    };
    Ok([50.0, 95.0, 99.0].map(figure).into())
}

/// One POST: when it left, and how long its answer took.
#[derive(Clone, Copy)]
struct Sent {
    at_us: i64,
    accept_ms: f64,
}

/// Posts the end of each call when it is due, in the order of the calls.
fn send(calls: &[SeededCall], offer: Offer, port: u16, key: &str) -> Result<Vec<Sent>> {
    let due = due(offer);
    let bearer = format!("Bearer {key}");
    let started = Instant::now();
    let lane = |first: usize| -> Result<Vec<(usize, Sent)>> {
        let mut connection = Connection::open(port)?;
        let mut sent = Vec::new();
        for (number, (call, due)) in calls.iter().zip(&due).enumerate().skip(first).step_by(SENDERS) {
            let body = json!({"callId": call.id.to_string(), "phoneNumber": call.phone}).to_string();
            let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
            let request = Request::new("POST", "/post-call-notify", &headers, &body);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            let at_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
            let asked = Instant::now();
            let answer = connection.send(&request)?;
            if answer.status != 202 {
                bail!("post-call-notify answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
            }
            sent.push((number, Sent { at_us, accept_ms: asked.elapsed().as_secs_f64() * 1e3 }));
        }
        Ok(sent)
    };
    let mut all = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..SENDERS).map(|first| scope.spawn(move || lane(first))).collect();
        let ended = lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| bail!("a sender ended abnormally")));
        ended.collect::<Result<Vec<_>>>()
    })?
    .concat();
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, sent)| sent).collect())
}

/// When each call ends, counted from the beginning: one in every interval, anywhere within it.
fn due(offer: Offer) -> Vec<Duration> {
    let mut dice = Dice(offer.seed);
    (0..offer.calls).map(|number| Duration::from_secs_f64((number as f64 + dice.roll()) / offer.a_second)).collect()
}

/// First request to each provider for one person, in microseconds since 1970.
#[derive(Default, Clone, Copy)]
struct Arrived {
    sms: Option<i64>,
    whatsapp: Option<i64>,
}

impl Arrived {
    /// When both had arrived.
    fn both(self) -> Option<i64> {
        Some(self.sms?.max(self.whatsapp?))
    }
}

/// By phone number.
fn arrivals(world: &World) -> BTreeMap<String, Arrived> {
    let mut arrivals: BTreeMap<String, Arrived> = BTreeMap::new();
    for entry in world.mtn().control().requests() {
        let body = entry.json();
        let receivers = body.get("receiverAddress").and_then(Value::as_array).cloned().unwrap_or_default();
        for receiver in receivers.iter().filter_map(Value::as_str) {
            arrivals.entry(phone(receiver)).or_default().sms.get_or_insert(entry.at.timestamp_micros());
        }
    }
    for entry in world.whatsapp().control().requests() {
        if let Some(receiver) = entry.json().get("to").and_then(Value::as_str) {
            arrivals.entry(phone(receiver)).or_default().whatsapp.get_or_insert(entry.at.timestamp_micros());
        }
    }
    arrivals
}

fn phone(number: &str) -> String {
    format!("+{}", number.trim_start_matches('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_end_steadily_and_the_same_way_for_the_same_seed() {
        let offer = Offer { calls: 50, a_second: 10.0, seed: 1 };
        let due = due(offer);
        assert_eq!(due, super::due(offer));
        for (number, due) in due.iter().enumerate() {
            assert_eq!(due.as_millis() / 100, number as u128);
        }
    }

    #[test]
    fn both_have_arrived_when_the_later_has() {
        assert_eq!(Arrived { sms: Some(1), whatsapp: Some(3) }.both(), Some(3));
        assert_eq!(Arrived { sms: Some(1), whatsapp: None }.both(), None);
    }
}
