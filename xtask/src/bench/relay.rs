//! The relay under load: the relay's process on one core, all telephones and the model (`relay-load`) on another.
//!
//! What is printed is what issue "The voice" asks for; each figure stands beside what it must be and what we aim at.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;

use super::stats::percentile;
use super::{Figure, load, machine};
use crate::call::Call;
use crate::places;
use crate::progress;

/// A generator that is busier than this measures itself.
const GENERATOR_BUSY: f64 = 0.9;
/// Up to here a core is to be filled.
const FILLED: f64 = 0.8;
/// What would make a call cheaper, as profiles of the relay show it.
const TO_MOVE_COST: &str = "what would move it: of a call's processor time a quarter is the TCP write of each frame to the \
                            model and a sixth the UDP send; frames of 40 ms would halve the first for 20 ms of delay";
/// Memory is to be back after so many calls.
const MANY_CALLS: u64 = 10_000;
/// The step at which the jitter is looked at.
const JITTER_CALLS: usize = 150;

#[derive(clap::Args)]
pub struct Relay {
    /// Where the figures go.
    #[arg(long, value_name = "FILE")]
    pub json: PathBuf,
    /// Two minutes instead of ten: fewer steps, each shorter, fewer set-ups, and less to rely on.
    #[arg(long)]
    quick: bool,
    /// Calls at a time, step by step [default: 10,50,100,150,250,400,600, quick: 10,50,150].
    #[arg(long, value_delimiter = ',')]
    steps: Option<Vec<usize>>,
    /// Seconds that a step is measured [default: 20, quick: 6].
    #[arg(long)]
    seconds: Option<u64>,
    /// Give all that is measured real-time priority, where this user may: what else runs on the machine then hardly delays it.
    #[arg(long)]
    undisturbed: bool,
    /// Measure this relay instead of building the one that is here.
    #[arg(long, value_name = "PROGRAM")]
    relay: Option<PathBuf>,
}

/// What `relay-load` observed; see its `plan.rs` and `observed.rs`.
#[derive(Deserialize)]
struct Told {
    steps: Vec<Step>,
    setups: Vec<Setups>,
    idle_kib: f64,
    after_kib: f64,
    rest_seconds: f64,
    calls: u64,
    notes: Vec<String>,
}

#[derive(Deserialize)]
struct Step {
    calls: usize,
    up: usize,
    relay_cpu: f64,
    generator_cpu: f64,
    resident_kib: f64,
    forwarder: Vec<Peer>,
    rtpengine: Option<Peer>,
    observed: Observed,
}

#[derive(Deserialize)]
struct Peer {
    cpu: f64,
    generator_cpu: f64,
    sent: u64,
    received: u64,
}

#[derive(Deserialize)]
struct Setups {
    a_second: f64,
    seconds: f64,
    relay_cpu: f64,
    generator_cpu: f64,
    observed: Observed,
}

/// Delays in milliseconds.
#[derive(Deserialize)]
struct Observed {
    rtp_to_websocket: Vec<f64>,
    rtp_to_websocket_interrupting: Vec<f64>,
    delta_to_rtp: Vec<f64>,
    media_path: Vec<f64>,
    interruption: Vec<f64>,
    jitter: Vec<f64>,
    jitter_with_starts: Vec<f64>,
    answer: Vec<f64>,
    calls_begun: u64,
    calls_answered: u64,
    calls_failed: u64,
    failures: Vec<String>,
    sip_again: u64,
    rtp_received: u64,
    marked_sent: u64,
    marked_heard: u64,
    late_ticks: u64,
    longest_late_ms: f64,
}

impl Step {
    /// Percent of a core a call.
    fn cost(&self, cpu: f64) -> f64 {
        cpu * 100.0 / self.calls as f64
    }

    /// The forwarder's share of the core, before and after the relay.
    fn forwarder_cpu(&self) -> f64 {
        self.forwarder.iter().map(|peer| peer.cpu).sum::<f64>() / self.forwarder.len().max(1) as f64
    }

    fn busiest_generator(&self) -> f64 {
        let peers = self.forwarder.iter().chain(&self.rtpengine).map(|peer| peer.generator_cpu);
        peers.fold(self.generator_cpu, f64::max)
    }

    fn is_valid(&self) -> bool {
        self.busiest_generator() <= GENERATOR_BUSY
    }

    /// Every call went through, and the streams of everybody came back.
    fn was_carried(&self) -> bool {
        let peers = self.forwarder.iter().chain(&self.rtpengine);
        self.is_valid()
            && self.up == self.calls
            && self.observed.calls_failed == 0
            && peers.into_iter().all(|peer| peer.received * 100 >= peer.sent * 99)
    }
}

pub fn measure(options: &Relay) -> Result<Vec<Figure>> {
    let cores = cores()?;
    let (Some(first), Some(last)) = (cores.first(), cores.last().filter(|_| cores.len() > 1)) else {
        bail!("two cores are needed: one for the relay, one for the load");
    };
    progress::headline("Measurements");
    let build = Call::cargo("build the relay and the load").args(["build", "--profile", "relay", "-p", "relay-load"]);
    let build = if options.relay.is_none() { build.args(["-p", "ihuza-relay"]) } else { build };
    build.usual("five minutes the first time").run()?;
    let rtpengine = places::on_path("rtpengine");
    if rtpengine.is_none() {
        progress::note("rtpengine is not installed (Debian: rtpengine-daemon): measured without it");
    }
    let built = places::native_target().join("relay");
    let relay = options.relay.clone().unwrap_or_else(|| built.join("ihuza-relay"));
    let steps = options.steps.clone().unwrap_or_else(|| match options.quick {
        true => vec![10, 50, JITTER_CALLS],
        false => vec![10, 50, 100, JITTER_CALLS, 250, 400, 600],
    });
    let seconds = options.seconds.unwrap_or(if options.quick { 6 } else { 20 });
    let setups: &[(f64, u64)] =
        if options.quick { &[(50.0, 8), (200.0, 8)] } else { &[(50.0, 60), (100.0, 60), (200.0, 60)] };
    let carry_out = |tls: bool, steps: &[usize], setups: &[(f64, u64)]| -> Result<Told> {
        let what = if tls { "calls, the model over TLS" } else { "calls, the model without TLS" };
        let directory = places::local().join("bench-relay");
        let plan = json!({
            "relay": relay, "rtpengine": rtpengine, "core": last, "directory": directory, "tls": tls, "steps": steps,
            "seconds": seconds, "setups": setups,
        });
        let _ = std::fs::remove_dir_all(&directory);
        let what = format!("measure {what}");
        let call = match options.undisturbed {
            true => Call::new("chrt", &what).args(["-r", "1", "taskset"]),
            false => Call::new("taskset", &what),
        };
        let call = call.args(["-c", &first.to_string()]);
        call.arg(built.join("relay-load")).arg("measure").arg(plan.to_string()).run()?;
        let text = std::fs::read_to_string(directory.join("observed.json"))?;
        let _ = std::fs::remove_dir_all(&directory);
        serde_json::from_str(&text).context("could not read what relay-load observed")
    };
    let before = load();
    let told = carry_out(true, &steps, setups)?;
    let middle = steps.iter().copied().filter(|calls| *calls <= JITTER_CALLS).max().unwrap_or(JITTER_CALLS);
    let plain = carry_out(false, &[middle], &[])?;
    for note in told.notes.iter().chain(&plain.notes) {
        progress::warn(note);
    }
    let mut figures = figures(&told, &plain);
    figures.extend(machine("relay", before));
    Ok(figures)
}

fn figures(told: &Told, plain: &Told) -> Vec<Figure> {
    let mut figures: Vec<Figure> = told.steps.iter().flat_map(|step| of_step(step, "tls")).collect();
    figures.extend(plain.steps.iter().flat_map(|step| of_step(step, "plain")));
    // The most calls that all could carry say most; a core that is full says nothing about the cost of a call.
    let carried: Vec<&Step> = told.steps.iter().filter(|step| step.was_carried()).collect();
    let best = carried.iter().rev().find(|step| step.relay_cpu <= 0.9 && step.forwarder_cpu() <= 0.9);
    if let Some(step) = best {
        figures.extend(of_best(step, &carried, told));
    }
    let jitter = told.steps.iter().rev().find(|step| step.calls <= JITTER_CALLS && step.is_valid());
    if let Some(step) = jitter.or(told.steps.first()) {
        figures.extend(of_delays(step));
    }
    figures.extend(of_setups(told));
    figures
}

/// How each step went.
fn of_step(step: &Step, leg: &str) -> Vec<Figure> {
    let name = |what: &str| format!("relay.{leg}.{}_calls.{what}", step.calls);
    let observed = &step.observed;
    let validity = if step.is_valid() { "" } else { "INVALID: the generator was too busy; " };
    let note = format!(
        "{validity}{} of {} calls up at the end, {} failed {:?}; generator {:.0} % of its core, {} of its sends more than 5 ms late \
         (longest {:.1} ms); {} packets came back, of {} marked frames of the callers' the model heard {}; the forwarder \
         twice, before and after: {:?}",
        step.up,
        step.calls,
        observed.calls_failed,
        observed.failures,
        step.busiest_generator() * 100.0,
        observed.late_ticks,
        observed.longest_late_ms,
        observed.rtp_received,
        observed.marked_sent,
        observed.marked_heard,
        step.forwarder.iter().map(|peer| format!("{:.1} %", peer.cpu * 100.0)).collect::<Vec<_>>(),
    );
    let calls = step.calls as u64;
    let relay = Figure::new(name("cpu_per_call"), step.cost(step.relay_cpu), "% of a core", calls, &note)
        .beside("plain tokio forwarder", step.cost(step.forwarder_cpu()));
    let rtpengine = step.rtpengine.as_ref().map(|peer| {
        Figure::new(name("cpu_per_call_beside_rtpengine"), step.cost(step.relay_cpu), "% of a core", calls, &note)
            .beside("rtpengine in user space", step.cost(peer.cpu))
    });
    let share = Figure::new(name("cpu"), step.relay_cpu * 100.0, "% of a core", calls, &note);
    let generator = Figure::new(name("generator_cpu"), step.busiest_generator() * 100.0, "% of a core", calls, &note);
    let late = Figure::new(name("generator_late_ticks"), observed.late_ticks as f64, "sends", calls, &note);
    [relay].into_iter().chain(rtpengine).chain([share, generator, late]).collect()
}

fn of_best(step: &Step, carried: &[&Step], told: &Told) -> Vec<Figure> {
    let n = step.calls as u64;
    let note = format!("with {n} calls, the model over TLS; the same streams through both, one after another");
    let ratio = step.relay_cpu / step.forwarder_cpu();
    let mut figures =
        vec![Figure::new("relay.cpu.beside_the_forwarder", ratio, "times", n, &note).at_most(Some(2.0), None)];
    if let Some(rtpengine) = &step.rtpengine {
        let ratio = step.relay_cpu / rtpengine.cpu;
        let note = format!("{note}; {TO_MOVE_COST}");
        figures.push(Figure::new("relay.cpu.beside_rtpengine", ratio, "times", n, &note).at_most(None, Some(1.0)));
    }
    let derived = (FILLED / (step.relay_cpu / step.calls as f64)).floor();
    let note = format!("DERIVED from the processor time of a call with {n} calls; aims 400, then 600; {TO_MOVE_COST}");
    figures
        .push(Figure::new("relay.calls.at_80_percent", derived, "calls", n, &note).at_least(Some(250.0), Some(400.0)));
    let largest = carried.last().map_or(0, |step| step.calls);
    let invalid = told.steps.iter().any(|step| !step.is_valid());
    let note = if invalid { "at least: the generator was too busy for more" } else { "none failed, nothing was lost" };
    let figure = Figure::new("relay.calls.really_run", largest as f64, "calls", n, note);
    figures.push(figure.at_least(Some(250.0), Some(400.0)));
    let memory = (step.resident_kib - told.idle_kib) / step.calls as f64;
    let note = format!("resident, {:.0} KiB when idle and {:.0} KiB with {n} calls", told.idle_kib, step.resident_kib);
    figures.push(Figure::new("relay.memory.per_call", memory, "KiB", n, &note).at_most(Some(200.0), Some(130.0)));
    figures
}

fn of_delays(step: &Step) -> Vec<Figure> {
    let observed = &step.observed;
    let with = format!("with {} calls, the model over TLS; times of arrival by the kernel", step.calls);
    let delay = |name: &str, values: &[f64], percent: f64, note: &str| {
        let name = format!("relay.{name}.p{percent:.0}_ms");
        Figure::new(name, percentile(values, percent), "ms", values.len() as u64, &format!("{with}; {note}"))
    };
    let held = "the first 60 ms of an interruption, which the echo guard holds until it knows that it is a voice";
    let uplink =
        "the caller's frame sent, until its WebSocket message arrived; without the first 60 ms of interruptions";
    let starts = "gaps within talk and within silence; a talk spurt begins when it comes, off the grid";
    let path = "of one turn: the caller's last frame to the model, and the agent's first to the caller";
    vec![
        delay("rtp_to_websocket", &observed.rtp_to_websocket, 50.0, uplink),
        delay("rtp_to_websocket", &observed.rtp_to_websocket, 99.0, uplink).at_most(Some(10.0), Some(3.0)),
        delay("rtp_to_websocket_while_interrupting", &observed.rtp_to_websocket_interrupting, 50.0, held),
        delay("rtp_to_websocket_while_interrupting", &observed.rtp_to_websocket_interrupting, 99.0, held),
        delay("first_delta_to_rtp", &observed.delta_to_rtp, 50.0, "").at_most(None, Some(1.0)),
        delay("first_delta_to_rtp", &observed.delta_to_rtp, 99.0, "").at_most(Some(25.0), None),
        delay("media_path_of_a_turn", &observed.media_path, 50.0, path).at_most(Some(20.0), Some(9.0)),
        delay("media_path_of_a_turn", &observed.media_path, 99.0, path),
        delay("interruption_to_silence", &observed.interruption, 50.0, "the last packet with the agent's voice"),
        delay("interruption_to_silence", &observed.interruption, 99.0, "the last packet with the agent's voice")
            .at_most(Some(40.0), Some(20.0)),
        delay("departure_jitter", &observed.jitter, 50.0, starts),
        delay("departure_jitter", &observed.jitter, 99.0, starts).at_most(Some(5.0), Some(2.0)),
        delay("departure_jitter_with_starts", &observed.jitter_with_starts, 99.0, "all gaps"),
        delay("invite_to_200", &observed.answer, 50.0, "the session function answers after 50 ms"),
        delay("invite_to_200", &observed.answer, 95.0, "the session function answers after 50 ms")
            .at_most(None, Some(60.0)),
    ]
}

fn of_setups(told: &Told) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut sustained = (0.0, 0);
    for setups in &told.setups {
        let observed = &setups.observed;
        let clean = observed.calls_failed == 0 && observed.calls_answered == observed.calls_begun;
        if clean && setups.generator_cpu <= GENERATOR_BUSY {
            sustained = (setups.a_second, observed.calls_begun);
        }
        let note = format!(
            "for {} s, each call 0.3 s with media; {} answered, {} failed {:?}, {} SIP requests sent again; relay {:.0} %, \
             generator {:.0} % of a core; INVITE to 200 p50 {:.1}, p95 {:.1} ms",
            setups.seconds,
            observed.calls_answered,
            observed.calls_failed,
            observed.failures,
            observed.sip_again,
            setups.relay_cpu * 100.0,
            setups.generator_cpu * 100.0,
            percentile(&observed.answer, 50.0),
            percentile(&observed.answer, 95.0),
        );
        let name = format!("relay.setups.{:.0}_a_second.failed", setups.a_second);
        figures.push(Figure::new(name, observed.calls_failed as f64, "calls", observed.calls_begun, &note));
    }
    if let Some(last) = told.setups.last() {
        let note =
            format!("the most that was tried without a failure, for {} s; tried up to {}", last.seconds, last.a_second);
        let figure = Figure::new("relay.setups.none_failed", sustained.0, "a second", sustained.1, &note);
        figures.push(figure.at_least(Some(50.0), Some(200.0)));
        let idle = "resident, of a relay that has started, had 20 calls, and has none";
        let enough = if told.calls < MANY_CALLS { "; TOO FEW: asked for is after 10,000" } else { "" };
        let after = format!("resident, after {} calls and {:.0} s without one{enough}", told.calls, told.rest_seconds);
        let note = format!("{:.0} KiB when idle, {:.0} KiB {after}", told.idle_kib, told.after_kib);
        let growth = (told.after_kib / told.idle_kib - 1.0) * 100.0;
        figures.push(Figure::new("relay.memory.idle", told.idle_kib, "KiB", told.calls, idle));
        figures.push(Figure::new("relay.memory.after_calls", told.after_kib, "KiB", told.calls, &after));
        figures.push(Figure::new("relay.memory.growth", growth, "%", told.calls, &note).at_most(Some(10.0), None));
    }
    figures
}

/// The cores that this process may use.
fn cores() -> Result<Vec<usize>> {
    let status = std::fs::read_to_string("/proc/self/status").context("could not read /proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let range = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        Some(low.parse().ok()?..=high.parse().ok()?)
    };
    Ok(list.trim().split(',').filter_map(range).flatten().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn observed(failed: u64) -> serde_json::Value {
        json!({
            "rtp_to_websocket": [1.0, 2.0], "rtp_to_websocket_interrupting": [40.0], "delta_to_rtp": [0.5],
            "media_path": [2.5], "interruption": [0.0], "jitter": [0.1], "jitter_with_starts": [0.1], "answer": [55.0],
            "calls_begun": 100, "calls_answered": 100 - failed, "calls_failed": failed, "failures": [], "sip_again": 0,
            "rtp_received": 1, "marked_sent": 1, "marked_heard": 1, "late_ticks": 0, "longest_late_ms": 0.0,
        })
    }

    fn told(generator_cpu: f64, failed: u64) -> Told {
        let peer = json!({ "cpu": 0.1, "generator_cpu": 0.1, "sent": 1000, "received": 1000 });
        let step = |calls: usize, relay_cpu: f64, generator_cpu: f64| {
            json!({
                "calls": calls, "up": calls, "relay_cpu": relay_cpu, "generator_cpu": generator_cpu,
                "resident_kib": 10_000 + calls * 100, "forwarder": [peer, peer], "rtpengine": peer, "observed": observed(0),
            })
        };
        let setups = json!({
            "a_second": 50.0, "seconds": 60.0, "relay_cpu": 0.1, "generator_cpu": 0.1, "observed": observed(failed),
        });
        let told = json!({
            "steps": [step(100, 0.2, 0.2), step(400, 0.8, generator_cpu)], "setups": [setups], "idle_kib": 10_000.0,
            "after_kib": 10_500.0, "rest_seconds": 75.0, "calls": 10_000, "notes": [],
        });
        serde_json::from_value(told).unwrap()
    }

    fn value(figures: &[Figure], name: &str) -> f64 {
        figures.iter().find(|figure| figure.name == name).map(|figure| figure.value).unwrap()
    }

    #[test]
    fn a_step_counts_unless_the_generator_was_too_busy() {
        let (sound, busy) = (figures(&told(0.5, 0), &told(0.5, 0)), figures(&told(0.95, 0), &told(0.5, 0)));
        assert_eq!(value(&sound, "relay.calls.really_run"), 400.0);
        assert_eq!(value(&busy, "relay.calls.really_run"), 100.0);
        let note = busy.iter().find(|figure| figure.name == "relay.calls.really_run").unwrap().note.clone();
        assert!(note.starts_with("at least"), "{note}");
        assert_eq!(value(&busy, "relay.cpu.beside_the_forwarder"), 2.0);
        assert_eq!(value(&busy, "relay.calls.at_80_percent"), 400.0);
        assert_eq!(value(&busy, "relay.memory.per_call"), 100.0);
        assert_eq!(value(&busy, "relay.memory.growth"), 5.0);
        assert_eq!((value(&busy, "relay.memory.idle"), value(&busy, "relay.memory.after_calls")), (10_000.0, 10_500.0));
    }

    #[test]
    fn a_rate_with_a_failed_call_is_not_sustained() {
        assert_eq!(value(&figures(&told(0.5, 0), &told(0.5, 0)), "relay.setups.none_failed"), 50.0);
        assert_eq!(value(&figures(&told(0.5, 1), &told(0.5, 0)), "relay.setups.none_failed"), 0.0);
    }
}
