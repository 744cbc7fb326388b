//! `cargo xtask bench`: figures for people, written as JSON; a benchmark never fails a build.
//!
//! A file is an array of figures with dotted names, such as `edge.post-call-notify.gzip_bytes`.

mod sizes;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;

use crate::build;
use crate::setup;

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The functions: their size, their cost a request, their time from a call's end to the providers.
    Edge {
        /// Where the figures go.
        #[arg(long, value_name = "FILE")]
        json: PathBuf,
    },
}

/// One measured value. `peer` is what it is compared with, measured in the same run.
#[derive(Serialize, Debug, PartialEq)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// How many measurements stand behind the value.
    pub n: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    pub note: String,
}

pub fn run(options: &Options) -> Result<()> {
    let What::Edge { json } = &options.what;
    let tools = setup::ensure()?;
    build::ensure(&tools)?;
    let figures = sizes::measure()?;
    for figure in &figures {
        let peer = figure.peer.as_deref().zip(figure.ratio).map(|(peer, ratio)| format!("  {ratio:.2} x {peer}"));
        println!("{:<50} {:>12} {}{}", figure.name, figure.value, figure.unit, peer.unwrap_or_default());
    }
    let text = serde_json::to_string_pretty(&figures).context("could not write the figures as JSON")?;
    std::fs::write(json, text + "\n").with_context(|| format!("could not write {}", json.display()))
}
