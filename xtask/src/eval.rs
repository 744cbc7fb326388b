//! `cargo xtask eval`: every scenario of `scenarios/`, played in the local world and judged by what is then in the database and
//! on the phones.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ihuza_sim::evaluation::{self, Scenario};
use ihuza_sim::postgres::Data;
use ihuza_sim::world::Provider;
use serde_json::{Value, json};

use crate::local_world;
use crate::places;
use crate::progress;

#[derive(clap::Args)]
#[command(after_help = "\
With the simulated model each scenario says what the model does, so everything but the model is judged; that is also a test
(`cargo xtask test`). With --real the model is OpenAI's, with OPENAI_API_KEY of .dev.vars, which costs money; carriers stay
simulated, and nobody gets a message.")]
pub struct Options {
    /// OpenAI's own model in place of the simulator.
    #[arg(long)]
    real: bool,
    /// Only scenarios with this in their name, title or what they cover.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write how each went, and what the person received, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    world: local_world::WorldOptions,
}

pub fn run(options: &Options) -> Result<()> {
    let scenarios = chosen(options)?;
    let mut failed = 0;
    let choose = |keys: &mut local_world::Keys| {
        if !options.real {
            keys.simulated();
            return Ok(());
        }
        keys.model_alone();
        if !keys.is_real(Provider::OpenAi) {
            bail!("--real needs OPENAI_API_KEY in .dev.vars");
        }
        Ok(())
    };
    let end = local_world::run_with(&options.world, Data::Fresh, choose, async |world, _| {
        // A real model takes its time.
        let patience = Duration::from_secs(if options.real { 120 } else { 30 });
        progress::headline("Scenarios");
        let mut rows = Vec::new();
        for (place, scenario) in scenarios.iter().enumerate() {
            let phone = evaluation::phone_of(place)?;
            let outcome = evaluation::play(world, scenario, &phone, !options.real, patience).await;
            let line = format!(
                "{} [{}] {} ({})",
                scenario.file,
                scenario.language,
                outcome.title,
                progress::seconds(outcome.duration)
            );
            if outcome.passed() {
                progress::done(&line);
            } else {
                failed += 1;
                progress::warn(&line);
                for fault in &outcome.faults {
                    println!("      {fault}");
                }
            }
            rows.push(outcome.to_value(scenario));
        }
        println!("{} of {} scenarios passed", rows.len() - failed, rows.len());
        match &options.report {
            Some(file) => {
                write(file, &json!({"model": if options.real { "openai" } else { "simulated" }, "scenarios": rows}))
            }
            None => Ok(()),
        }
    })?;
    if end == local_world::End::Interrupted {
        bail!("interrupted before the last scenario");
    }
    if failed > 0 {
        bail!("{failed} scenarios failed");
    }
    Ok(())
}

fn chosen(options: &Options) -> Result<Vec<Scenario>> {
    let mut scenarios = evaluation::read(&places::project().join("scenarios"))?;
    if let Some(only) = &options.only {
        let fits = |scenario: &Scenario| {
            scenario.file.contains(only)
                || scenario.title.contains(only)
                || scenario.covers.iter().any(|what| what.contains(only))
        };
        scenarios.retain(fits);
    }
    if scenarios.is_empty() {
        bail!("no scenario has that in its name, title or what it covers");
    }
    Ok(scenarios)
}

fn write(file: &PathBuf, report: &Value) -> Result<()> {
    std::fs::write(file, format!("{report:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    progress::note(&format!("report: {}", file.display()));
    Ok(())
}
