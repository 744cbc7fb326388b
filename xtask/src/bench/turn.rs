//! One SMS turn, from the carrier's webhook to our message at the carrier, with a model that answers at once: what is left is
//! ours, the queue's and the database's. Beside it what a use of a tool adds, and the largest context that a model can be shown.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use ihuza_core::agent::{self, CONTEXT_BUDGET_TOKENS, HistoryTurn, Pending, Role};
use ihuza_core::channel::Channel;
use ihuza_core::locale::Locale;
use ihuza_core::summary::CallSummary;
use ihuza_core::timestamp;
use ihuza_core::tool::{self, Surface, TOOLS};
use ihuza_sim::mtn::Reports;
use ihuza_sim::openai::Script;
use ihuza_sim::world::{World, WorldConfig};
use serde_json::json;

use super::Figure;
use super::stats::percentile;
use crate::progress::Step;

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Turns before the first that counts: everything is compiled and every plan is made.
const WARM_UP: usize = 10;

pub fn measure(turns: usize) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the asynchronous runtime")?;
    let figures = runtime.block_on(async {
        let step = Step::start("the local world", None);
        let world = Box::pin(World::start(WorldConfig::default())).await?;
        world.mtn().set_reports(Reports::never());
        step.finish();
        let step = Step::start(&format!("{turns} SMS turns, and as many with a tool"), None);
        let (mut plain, mut with_tool) = (Vec::new(), Vec::new());
        // In turns, so that what slows the machine down slows both down.
        for number in 0..WARM_UP + turns {
            let without = turn(&world, 2 * number, false).await?;
            let with = turn(&world, 2 * number + 1, true).await?;
            if number >= WARM_UP {
                plain.push(without);
                with_tool.push(with);
            }
        }
        step.finish();
        anyhow::Ok(times(&plain, &with_tool))
    });
    // The world's own threads may still be closing sockets; nothing waits for them.
    runtime.shutdown_background();
    let mut figures = figures?;
    figures.push(context()?);
    Ok(figures)
}

/// One turn of somebody new; milliseconds from the post of the webhook to our message at the carrier.
async fn turn(world: &World, number: usize, with_tool: bool) -> Result<f64> {
    let phone = format!("+25078{:07}", 5_000_000 + number);
    if with_tool {
        world.openai().next(Script::Tools(vec![("session_get_context".to_owned(), json!({}))]));
    }
    let sent_us = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_micros();
    let posted = world.sms_from(&phone, "I look for a house in Remera").await?;
    if posted.status != Some(200) {
        bail!("the webhook was answered {:?}: {}", posted.status, posted.answer);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(sms) = world.mtn().messages_to(&phone).first() {
            return Ok((sms.at.timestamp_micros() as f64 - sent_us as f64) / 1e3);
        }
        if Instant::now() > deadline {
            bail!("nobody answered within {PATIENCE:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn times(plain: &[f64], with_tool: &[f64]) -> Vec<Figure> {
    let count = plain.len() as u64;
    let note = "from the post of the webhook to our message at the carrier; the simulated model answers at once";
    let mut figures: Vec<Figure> = [("p50_ms", 50.0), ("p95_ms", 95.0)]
        .map(|(what, percent)| {
            Figure::new(format!("edge.sms_turn.{what}"), percentile(plain, percent), "ms", count, note)
        })
        .into();
    let added: Vec<f64> = with_tool.iter().zip(plain).map(|(with, without)| with - without).collect();
    let note = "what one use of a tool adds to a turn: the call of the database, and a second question to a model that answers at once";
    for (what, percent) in [("overhead_p50_ms", 50.0), ("overhead_p95_ms", 95.0)] {
        figures.push(Figure::new(format!("edge.tool_call.{what}"), percentile(&added, percent), "ms", count, note));
    }
    figures
}

/// The largest context of all: everything that it is made of is longer than what is shown of it.
fn context() -> Result<Figure> {
    let now = timestamp::parse_rfc3339("2026-11-21T08:00:00Z").context("that is a time")?;
    let long = "Ndashaka inzu y'ibyumba bibiri i Kimironko. ".repeat(400);
    let summary = CallSummary {
        language: Locale::Rw,
        headline: long.clone(),
        points: vec![long.clone(); 10],
        next_step: Some(long.clone()),
        intent: None,
    };
    let known = json!({"requests": vec![json!({"details": long}); 10], "bookings": [], "memories": vec![json!({"key": "k", "value": long}); 20]});
    let history: Vec<HistoryTurn> = (0..30)
        .map(|_| HistoryTurn { role: Role::User, channel: Channel::Whatsapp, text: long.clone(), language: None })
        .collect();
    let messages: Vec<Pending> = (0..20).map(|_| Pending { channel: Channel::Whatsapp, text: long.clone() }).collect();
    let turn = agent::Turn {
        brand: &long,
        instructions: &long,
        locale: Locale::Rw,
        is_chosen: false,
        channel: Channel::Whatsapp,
        call_summary: Some(&summary),
        call_ended_at: Some(now),
        known: &known,
        history: &history,
        messages: &messages,
        now,
    };
    let names: Vec<&str> = TOOLS.iter().map(|tool| tool.name).collect();
    let tools = json!(tool::offered(&names, Surface::Text)).to_string();
    let input = json!(agent::input(&turn)).to_string();
    let tokens: usize =
        [agent::instructions(&turn), input, tools].iter().map(|text| agent::estimated_tokens(text)).sum();
    let note = "the largest context that can be: instructions, tools, summary, what is known, history, messages; a token is taken for three characters";
    let figure = Figure::new("edge.context.tokens", tokens as f64, "tokens", 1, note);
    Ok(figure.at_most(Some(CONTEXT_BUDGET_TOKENS as f64), None))
}
