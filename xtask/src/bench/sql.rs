//! What the database is asked, among many rows, on servers of their own that are gone afterwards.

mod deliveries;
mod sms;
mod sms_plans;
mod sms_rows;
mod sms_server;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::Figure;

#[derive(clap::Args)]
pub struct Sql {
    /// Where the figures go.
    #[arg(long, value_name = "FILE")]
    pub json: PathBuf,
    /// Measure only this part; may be given several times.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    #[command(flatten)]
    deliveries: deliveries::Deliveries,
    #[command(flatten)]
    sms: sms::Sms,
    /// Seed of what is asked for, and in which order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Status updates and folds of the delivery log.
    Deliveries,
    /// Figures, costs, lists and writes of agent_sms, with PostgreSQL's default settings.
    Sms,
}

/// The figures; what was not answered as promised goes to `faults`.
pub fn measure(options: &Sql, faults: &mut Vec<String>) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the asynchronous runtime")?;
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    runtime.block_on(async {
        let mut figures = Vec::new();
        if wanted(Part::Deliveries) {
            figures.extend(Box::pin(deliveries::measure(&options.deliveries, options.seed)).await?);
        }
        if wanted(Part::Sms) {
            figures.extend(Box::pin(sms::measure(&options.sms, options.seed, faults)).await?);
        }
        Ok(figures)
    })
}
