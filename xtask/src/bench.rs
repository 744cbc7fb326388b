//! `cargo xtask bench`: figures for people, written as JSON. No figure fails a benchmark; a query that is not answered as
//! promised (`sql`: by an index) does.
//!
//! A file is an array of figures with dotted names, such as `edge.post-call-notify.gzip_bytes`.

mod accept;
mod http;
mod profile;
mod relay;
mod segments;
mod sizes;
mod sql;
mod stats;
mod traffic;
mod turn;
pub mod wasm;
mod webhooks;
mod workerd;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use crate::build;
use crate::progress;
use crate::setup::{self, Tools};

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The functions: their size, their cost a request, their time from a call's end to the providers.
    Edge(Edge),
    /// The relay: processor time of a call beside a plain forwarder, delays, jitter, set-ups, memory; each beside what it
    /// must be and what we aim at.
    Relay(relay::Relay),
    /// The database: one status update and the fold's throughput among many sent messages; the figures of the SMS and their
    /// costs among hundreds of thousands and tens of millions, warm and cold, and how their queries are answered.
    Sql(sql::Sql),
}

#[derive(clap::Args)]
struct Edge {
    /// Where the figures go.
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
    /// Fewer requests, starts and calls: a minute instead of three, and less to rely on.
    #[arg(long)]
    quick: bool,
    /// Measure only this part; may be given several times.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Calls that end while the way to the providers is timed [default: 500, quick: 50].
    #[arg(long)]
    calls: Option<usize>,
    /// Calls that end a second. The local runtime works one batch of a queue at a time, so that about ten a second are all
    /// that one function can take here; the platform starts an invocation for every batch, 250 at a time.
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    rate: f64,
    /// Seed of the moments at which calls end.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Measure the functions as they are built, current or not.
    #[arg(long)]
    as_built: bool,
    /// Also sample each accept path while it is busy, and print the functions that use most time.
    #[arg(long)]
    profile: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Bytes, and what they consist of.
    Sizes,
    /// The accept paths beside TypeScript: time, processor time, crossings, start-up.
    Accept,
    /// Database calls of one piece of work, and the time from a call's end to the providers.
    World,
    /// How long carriers wait until their webhooks are accepted, signature checked.
    Webhooks,
    /// One SMS turn without the model's time, what a use of a tool adds to it, and the size of the largest context.
    Turn,
    /// How fast segments of an SMS are counted.
    Segments,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "write a number above 0".to_owned())
}

/// One measured value. `peer` is what it is compared with, measured in the same run where it can be measured.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    pub note: String,
}

/// What a figure must be and what we aim at, and by how much it misses them, in its own unit.
#[derive(Serialize, Debug, Clone, PartialEq)]
pub struct Goal {
    pub at: Bound,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub must: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub must_missed_by: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aim_missed_by: Option<f64>,
}

/// On which side of its goal a figure is good.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    Most,
    Least,
}

impl Goal {
    fn new(value: f64, at: Bound, must: Option<f64>, aim: Option<f64>) -> Goal {
        let missed = |goal: Option<f64>| {
            let by = goal.map(|goal| if at == Bound::Most { value - goal } else { goal - value });
            by.filter(|by| *by > 0.0).map(rounded)
        };
        Goal { at, must, aim, must_missed_by: missed(must), aim_missed_by: missed(aim) }
    }

    /// As `must <= 10 met, aim <= 3 missed by 1.2`.
    fn told(&self) -> String {
        let sign = if self.at == Bound::Most { "<=" } else { ">=" };
        let part = |what: &str, goal: Option<f64>, missed: Option<f64>| {
            let verdict = missed.map_or("met".to_owned(), |by| format!("MISSED by {}", readable(by)));
            goal.map(|goal| format!("{what} {sign} {} {verdict}", readable(goal)))
        };
        let parts = [part("must", self.must, self.must_missed_by), part("aim", self.aim, self.aim_missed_by)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Figure {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, n: u64, note: &str) -> Self {
        let (name, note) = (name.into(), note.to_owned());
        Self { name, value: rounded(value), unit, n, peer: None, peer_value: None, ratio: None, goal: None, note }
    }

    /// Names what it is compared with; the ratio is that of the values.
    pub fn beside(mut self, peer: &str, value: f64) -> Self {
        self.peer = Some(peer.to_owned());
        self.peer_value = Some(rounded(value));
        self.ratio = (value != 0.0).then(|| rounded(self.value / value));
        self
    }

    /// What it must be at most, and what we aim at.
    pub fn at_most(mut self, must: Option<f64>, aim: Option<f64>) -> Self {
        self.goal = Some(Goal::new(self.value, Bound::Most, must, aim));
        self
    }

    /// What it must be at least, and what we aim at.
    pub fn at_least(mut self, must: Option<f64>, aim: Option<f64>) -> Self {
        self.goal = Some(Goal::new(self.value, Bound::Least, must, aim));
        self
    }

    /// A ratio that was measured better than by dividing the two values.
    pub fn with_ratio(mut self, ratio: f64) -> Self {
        self.ratio = Some(rounded(ratio));
        self
    }
}

/// Three decimals: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

pub fn run(options: &Options) -> Result<()> {
    let mut faults = Vec::new();
    let (figures, json) = match &options.what {
        What::Edge(edge) => {
            let tools = setup::ensure()?;
            tools.tell_the_world()?;
            if !edge.as_built {
                build::ensure(&tools)?;
            }
            (measure(edge, &tools)?, &edge.json)
        }
        What::Relay(relay) => (relay::measure(relay)?, &relay.json),
        What::Sql(options) => {
            setup::ensure_for_tests()?.tell_the_world()?;
            let before = load();
            let mut figures = sql::measure(options, &mut faults)?;
            figures.extend(machine("sql", before));
            (figures, &options.json)
        }
    };
    print(&figures);
    let text = serde_json::to_string_pretty(&figures).context("could not write the figures as JSON")?;
    std::fs::write(json, text + "\n").with_context(|| format!("could not write {}", json.display()))?;
    ensure!(faults.is_empty(), "not answered as promised:\n  {}", faults.join("\n  "));
    Ok(())
}

fn measure(edge: &Edge, tools: &Tools) -> Result<Vec<Figure>> {
    progress::headline("Measurements");
    let wanted = |part| edge.only.is_empty() || edge.only.contains(&part);
    let mut figures = Vec::new();
    if wanted(Part::Sizes) {
        figures.extend(sizes::measure()?);
    }
    let before = load();
    if wanted(Part::World) {
        let calls = edge.calls.unwrap_or(if edge.quick { 50 } else { 500 });
        figures.extend(world::measure(world::Offer { calls, a_second: edge.rate, seed: edge.seed })?);
    }
    if wanted(Part::Accept) || edge.profile {
        let measured = traffic::MEASURED.map(traffic::Accept::function);
        let stage = |readable| workerd::Stage::set(&tools.npm.esbuild, &measured, &[], vars(), readable);
        if wanted(Part::Accept) {
            let effort = if edge.quick { accept::Effort::QUICK } else { accept::Effort::FULL };
            figures.extend(accept::measure(&stage(false)?, effort)?);
        }
        if edge.profile {
            profile::print(&stage(true)?, &tools.npm.node)?;
        }
    }
    if wanted(Part::Webhooks) {
        let stage = workerd::Stage::set(&tools.npm.esbuild, &[], &webhooks::FUNCTIONS, vars(), false)?;
        figures.extend(webhooks::measure(&stage, if edge.quick { 1_000 } else { 6_000 })?);
    }
    if wanted(Part::Turn) {
        figures.extend(turn::measure(if edge.quick { 30 } else { 200 })?);
    }
    if wanted(Part::Segments) {
        figures.push(segments::measure());
    }
    figures.extend(machine("edge", before));
    Ok(figures)
}

/// What the functions are told where they are measured alone. As many settings as a deployment has.
fn vars() -> BTreeMap<String, String> {
    let told = [
        ("SUPABASE_URL", "http://127.0.0.1:9"),
        ("SUPABASE_SERVICE_ROLE_KEY", traffic::SERVICE_KEY),
        ("INTERNAL_API_KEY", "for-measuring-only-8d0c2f6b"),
        ("MTN_SMS_API_KEY", "for-measuring-only"),
        ("MTN_SMS_API_SECRET", "for-measuring-only"),
        ("MTN_SMS_SENDER_ID", "EasyMO"),
        ("MTN_SMS_SERVICE_CODE", "8080"),
        ("MTN_WEBHOOK_SECRET", traffic::WEBHOOK_SECRET),
        ("WHATSAPP_ACCESS_TOKEN", "for-measuring-only"),
        ("WHATSAPP_PHONE_NUMBER_ID", "118204633907751"),
        ("WHATSAPP_APP_SECRET", traffic::WEBHOOK_SECRET),
        ("WHATSAPP_VERIFY_TOKEN", "for-measuring-only"),
        ("OPENAI_API_KEY", "for-measuring-only"),
    ];
    told.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// How busy the machine was: a figure by a busy machine says little by itself, a ratio says more.
fn machine(of: &str, before: Option<f64>) -> Option<Figure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let note = format!(
        "load average over a minute on {cores} cores at the end; at the beginning {:.1}. Above {cores} others were at work \
         meanwhile: rely on ratios, not on times",
        before.unwrap_or_default()
    );
    load().map(|load| Figure::new(format!("{of}.machine.load_1m"), load, "processes", 1, &note))
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn print(figures: &[Figure]) {
    for line in table(figures) {
        println!("{line}");
    }
}

fn table(figures: &[Figure]) -> Vec<String> {
    let mut lines = vec![format!("{:<58} {:>14} {:>9} {:>7}  {}", "figure", "value", "n", "ratio", "beside")];
    let mut group = "";
    for figure in figures {
        let own_group = figure.name.rsplit_once('.').map_or("", |(group, _)| group);
        if own_group != group {
            lines.push(String::new());
            group = own_group;
        }
        let value = format!("{} {}", readable(figure.value), figure.unit);
        let ratio = figure.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let peer = figure.peer.as_deref().zip(figure.peer_value);
        let peer = peer.map(|(peer, value)| format!("{} {}, {peer}", readable(value), figure.unit)).unwrap_or_default();
        let goal = figure.goal.as_ref().map(Goal::told).unwrap_or_default();
        let beside = if peer.is_empty() || goal.is_empty() { peer + &goal } else { format!("{peer}; {goal}") };
        lines.push(
            format!("{:<58} {value:>14} {:>9} {ratio:>7}  {beside}", figure.name, figure.n).trim_end().to_owned(),
        );
    }
    lines
}

/// Whole numbers as such, others with as many decimals as say something.
fn readable(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else if value.abs() >= 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_peer_fields_only_where_there_is_a_peer() {
        let alone = serde_json::to_string(&Figure::new("edge.a.wasm_bytes", 7.0, "bytes", 1, "x")).unwrap_or_default();
        assert_eq!(alone, r#"{"name":"edge.a.wasm_bytes","value":7.0,"unit":"bytes","n":1,"note":"x"}"#);
        let beside = Figure::new("edge.a.b", 1.0, "us", 2, "x").beside("typescript worker", 3.0);
        assert_eq!((beside.peer_value, beside.ratio), (Some(3.0), Some(0.333)));
        assert_eq!(beside.with_ratio(0.5).ratio, Some(0.5));
        assert_eq!(Figure::new("a", 1.0, "us", 1, "").beside("nothing", 0.0).ratio, None);
    }

    #[test]
    fn a_goal_says_by_how_much_it_is_missed() {
        let late = Figure::new("a", 4.2, "ms", 1, "").at_most(Some(10.0), Some(3.0)).goal.unwrap();
        assert_eq!(late.told(), "must <= 10 met, aim <= 3 MISSED by 1.20");
        let few = Figure::new("a", 310.0, "calls", 1, "").at_least(Some(250.0), Some(400.0)).goal.unwrap();
        assert_eq!((few.must_missed_by, few.aim_missed_by), (None, Some(90.0)));
    }

    #[test]
    fn the_table_keeps_what_belongs_together_together() {
        let figures = [
            Figure::new("edge.a.wasm_bytes", 90_000.0, "bytes", 1, ""),
            Figure::new("edge.a.accept.cpu_us", 123.456, "us", 9, "").beside("peer", 100.0),
        ];
        let lines = table(&figures);
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().any(|line| line.ends_with("123.5 us         9    1.24  100 us, peer")), "{lines:?}");
    }
}
