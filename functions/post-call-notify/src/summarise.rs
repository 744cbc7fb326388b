//! Where the summary comes from: the database, else the model and the transcript, else the bare facts of the call.

use ihuza_core::{
    locale::Locale,
    log::{Event, Level},
    openai::{self, SummaryRequest, TranscriptTurn},
    summary::{self, CallFacts, CallSummary},
    timestamp,
};
use ihuza_edge::{context::Cx, model};
use serde_json::{Value, json};

use crate::work::Claim;

/// A summary and how it was come by.
pub struct Found {
    pub summary: CallSummary,
    /// `database`, `model` or `facts`.
    pub source: &'static str,
    model: Option<String>,
    usage: Value,
    /// Model calls, for the breaker.
    pub providers: Vec<Value>,
}

impl Found {
    fn plain(summary: CallSummary, source: &'static str) -> Found {
        Found {
            summary,
            source,
            model: None,
            usage: Value::Null,
            providers: Vec::new(),
        }
    }

    /// The `summary` of `finish_call_notification`.
    pub fn row(&self) -> Value {
        json!({
            "language": self.summary.language,
            "headline": self.summary.headline,
            "points": self.summary.points,
            "next_step": self.summary.next_step,
            "intent": self.summary.intent,
            "source": self.source,
            "model": self.model,
            "usage": self.usage,
        })
    }
}

pub async fn summarise(cx: &Cx, claim: &Claim, locale: Locale) -> Found {
    if let Some(stored) = claim.summary.as_ref().and_then(|row| summary::from_value(row, locale)) {
        return Found::plain(stored, "database");
    }
    let transcript: Vec<TranscriptTurn> = claim
        .transcript
        .iter()
        .filter_map(|turn| serde_json::from_value(turn.clone()).ok())
        .collect();
    let why = if transcript.is_empty() {
        "the call has no transcript"
    } else if claim.providers.is_open("openai") {
        "the breaker of the model is open"
    } else if cx.config.find("OPENAI_API_KEY").is_none() {
        "OPENAI_API_KEY is not set"
    } else {
        return from_model(cx, claim, locale, &transcript).await;
    };
    cx.log(
        Level::Info,
        Event::SummaryFallback,
        &format!("the summary is written from the facts: {why}"),
        &[],
    );
    Found::plain(facts(claim, locale), "facts")
}

async fn from_model(cx: &Cx, claim: &Claim, locale: Locale, transcript: &[TranscriptTurn]) -> Found {
    let name = cx.config.text("OPENAI_SUMMARY_MODEL");
    let safety_identifier = model::safety_identifier(&claim.profile.id);
    let request = openai::summary_request(&SummaryRequest {
        model: name,
        brand: &claim.client.brand,
        locale: Some(locale),
        transcript,
        safety_identifier: &safety_identifier,
    });
    match model::respond(cx, &request, cx.config.number("SUMMARY_TIMEOUT_MS")).await {
        Ok(reply) => {
            let parsed = reply
                .answer()
                .ok_or(summary::SummaryError::Empty)
                .and_then(|text| summary::parse_answer(text, locale));
            let (summary, source) = match parsed {
                Ok(summary) => {
                    cx.log(
                        Level::Info,
                        Event::SummaryCreated,
                        "the model wrote the summary",
                        &[("points", json!(summary.points.len()))],
                    );
                    (summary, "model")
                }
                Err(error) => {
                    let refused = if reply.refused {
                        "the model refused"
                    } else {
                        "the model's answer was not whole"
                    };
                    cx.log(Level::Warn, Event::SummaryFallback, &format!("{refused}: {error}"), &[]);
                    (facts(claim, locale), "facts")
                }
            };
            Found {
                summary,
                source,
                model: reply.model.or_else(|| Some(name.to_owned())),
                usage: json!(reply.usage),
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
            Found {
                providers: vec![model::outcome(Err(&down))],
                ..Found::plain(facts(claim, locale), "facts")
            }
        }
    }
}

fn facts(claim: &Claim, locale: Locale) -> CallSummary {
    summary::from_facts(&CallFacts {
        language: locale,
        brand: &claim.client.brand,
        started_at: claim.call.started_at.as_deref().and_then(timestamp::parse_rfc3339),
        duration_seconds: claim.call.duration_seconds.and_then(|s| u32::try_from(s).ok()),
        intent: None,
    })
}
