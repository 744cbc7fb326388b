//! What remains of the story: rows as the database has them, requests as the providers received them, and what the caller
//! heard.

use std::path::Path;

use anyhow::{Context, Result};
use ihuza_sim::control::Recorded;
use ihuza_sim::world::World;
use serde_json::{Value, json};

use super::story::Story;

pub async fn write(file: &Path, world: &World, story: &Story<'_>) -> Result<()> {
    let mut report = world.report().await?;
    if let Some(report) = report.as_object_mut() {
        if let Some(call) = story.phone_call() {
            let heard = file.with_extension("wav");
            call.save(&heard)?;
            let name = heard.file_name().unwrap_or_default().to_string_lossy();
            report.insert("caller_heard".to_owned(), json!(name));
        }
        if let Some(bill) = story.bill() {
            report.insert("bill".to_owned(), json!(bill));
        }
        report.insert("provider_received".to_owned(), json!(received(world)));
        report.insert("timings_ms".to_owned(), json!(story.timings()));
    }
    let text = serde_json::to_string_pretty(&report).context("could not write the report as JSON")?;
    std::fs::write(file, text + "\n").with_context(|| format!("could not write {}", file.display()))
}

/// Every request, word for word, oldest first.
fn received(world: &World) -> Vec<Value> {
    let of = |provider: &'static str, requests: Vec<Recorded>| {
        requests.into_iter().map(move |request| {
            json!({
                "provider": provider,
                "at": request.at,
                "method": request.method,
                "path": request.path,
                "status": request.status,
                "body": request.body,
            })
        })
    };
    let mut all: Vec<Value> = of("mtn", world.mtn().control().requests())
        .chain(of("whatsapp", world.whatsapp().control().requests()))
        .chain(of("openai", world.openai().control().requests()))
        .collect();
    all.sort_by_key(|request| request.get("at").map(Value::to_string));
    all
}
