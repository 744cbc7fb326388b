//! Where the summary comes from: the database, else the model and the transcript, else the bare facts of the call.

use ihuza_core::{
    call_facts::{CallFacts, Heard},
    json::{obj, str_at, u32_at},
    locale::Locale,
    log::{Event, Level},
    openai::{self, SummaryRequest},
    summary::{self, CallSummary},
    timestamp,
};
use ihuza_edge::{context::Cx, model};
use serde_json::Value;

use crate::work::Notification;

/// A summary and how it was come by.
pub struct Found {
    pub summary: CallSummary,
    /// `database`, `model` or `facts`.
    pub source: &'static str,
    model: Option<String>,
    usage: Value,
    /// What the caller said that is worth remembering.
    memories: Vec<Value>,
    /// Model calls, for the breaker.
    pub providers: Vec<Value>,
}

impl Found {
    fn plain(summary: CallSummary, source: &'static str) -> Found {
        Found { summary, source, model: None, usage: Value::Null, memories: Vec::new(), providers: Vec::new() }
    }

    /// The `summary` of `finish_call_notification`.
    pub fn row(&self) -> Value {
        obj(&mut [
            ("language", self.summary.language.into()),
            ("headline", (&self.summary.headline).into()),
            ("points", self.summary.points.clone().into()),
            ("next_step", (&self.summary.next_step).into()),
            ("intent", (&self.summary.intent).into()),
            ("source", self.source.into()),
            ("model", (&self.model).into()),
            ("usage", (&self.usage).into()),
            ("memories", self.memories.clone().into()),
        ])
    }
}

pub async fn summarise(cx: &Cx, work: &Notification, locale: Locale) -> Found {
    if let Some(stored) = summary::from_value(&work.summary, locale) {
        return Found::plain(stored, "database");
    }
    let why = if work.transcript.is_empty() {
        "the call has no transcript"
    } else if work.claim.gates.is_open("openai") {
        "the breaker of the model is open"
    } else if cx.config.find("OPENAI_API_KEY").is_none() {
        "OPENAI_API_KEY is not set"
    } else {
        return from_model(cx, work, locale).await;
    };
    cx.log(Level::Info, Event::SummaryFallback, &format!("the summary is written from the facts: {why}"), &[]);
    Found::plain(facts(work, locale), "facts")
}

async fn from_model(cx: &Cx, work: &Notification, locale: Locale) -> Found {
    let name = cx.config.text("OPENAI_SUMMARY_MODEL");
    let safety_identifier = model::safety_identifier(&work.claim.profile.id);
    let request = openai::summary_request(&SummaryRequest {
        model: name,
        brand: &work.claim.client.brand,
        locale: Some(locale),
        transcript: &work.transcript,
        memory_keys: &work.memory_keys,
        safety_identifier: &safety_identifier,
    });
    match model::respond(cx, &request, cx.config.number("SUMMARY_TIMEOUT_MS")).await {
        Ok(reply) => {
            let parsed =
                reply.answer().ok_or(summary::SummaryError::Empty).and_then(|text| summary::parse_answer(text, locale));
            let (summary, memories, source) = match parsed {
                Ok((summary, memories)) => {
                    cx.log(
                        Level::Info,
                        Event::SummaryCreated,
                        "the model wrote the summary",
                        &[("points", summary.points.len().into()), ("memories", memories.len().into())],
                    );
                    (summary, memories, "model")
                }
                Err(error) => {
                    let refused = if reply.refused { "the model refused" } else { "the model's answer was not whole" };
                    cx.log(Level::Warn, Event::SummaryFallback, &format!("{refused}: {error}"), &[]);
                    (facts(work, locale), Vec::new(), "facts")
                }
            };
            Found {
                summary,
                source,
                model: reply.model.or_else(|| Some(name.to_owned())),
                usage: reply.usage.to_value(),
                memories,
                providers: vec![model::outcome(Ok(()))],
            }
        }
        Err(down) => {
            cx.log(
                Level::Warn,
                Event::SummaryFallback,
                &format!("the summary is written from the facts: {}", down.reason),
                &[],
            );
            Found { providers: vec![model::outcome(Err(&down))], ..Found::plain(facts(work, locale), "facts") }
        }
    }
}

fn facts(work: &Notification, locale: Locale) -> CallSummary {
    let of_call = |name: &str| str_at(&work.call, name);
    CallFacts {
        language: locale,
        brand: &work.claim.client.brand,
        started_at: of_call("started_at").and_then(timestamp::parse_rfc3339),
        duration_seconds: u32_at(&work.call, "duration_seconds"),
        intent: None,
        is_ours: of_call("direction") == Some("outbound"),
        heard: Heard::of(of_call("origin"), of_call("status"), !work.transcript.is_empty()),
    }
    .summary()
}
