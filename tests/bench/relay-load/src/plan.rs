//! The order of a measurement: at each step the forwarder, the relay, the forwarder again, and rtpengine carry the same
//! streams one after another, so that what disturbs the machine disturbs all of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::clock::{self, MS, Nanos, SECOND};
use crate::generator::{self, Generator};
use crate::observed::Observed;
use crate::peers::{self, Process, RelaySettings};
use crate::{process, tls};

/// New calls a second until a step has its number.
const RAMP: f64 = 40.0;
/// Until every call is in the middle of its turns.
const SETTLE: Nanos = 7 * SECOND;
/// Calls before anything is measured: everything is loaded, and buffers have their size.
const WARM_UP: usize = 20;
/// How long a call of a rate test lasts.
const SHORT_CALL: Nanos = 300 * MS;
/// What a relay needs of a call that is over: transactions of SIP over UDP for 32 s (RFC 3261 §17.2.2), its ports for a
/// minute, in which they are used by nobody else. Some seconds more, for an allocator that gives pages back slowly.
const FORGOTTEN_AFTER: Nanos = 75 * SECOND;
/// A relay that takes so much of its core has no room for another step.
const FULL: f64 = 0.93;
const PATIENCE: Nanos = 60 * SECOND;

/// What is to be measured.
#[derive(Deserialize)]
pub struct Plan {
    relay: PathBuf,
    rtpengine: Option<PathBuf>,
    /// The core of what is measured.
    core: usize,
    /// For settings, journal and log of the relay, and for `observed.json`.
    directory: PathBuf,
    /// Whether the model is spoken to over TLS.
    tls: bool,
    /// Calls at a time, in this order.
    steps: Vec<usize>,
    seconds: u64,
    /// Set-ups a second, each for so many seconds.
    setups: Vec<(f64, u64)>,
}

#[derive(Serialize)]
struct Told {
    steps: Vec<StepTold>,
    setups: Vec<SetupsTold>,
    idle_kib: f64,
    /// After all calls, when the relay may have forgotten them.
    after_kib: f64,
    /// So long nobody had called.
    rest_seconds: f64,
    calls: u64,
    /// Whatever went wrong with a peer.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct StepTold {
    calls: usize,
    /// Calls that were still up at the end.
    up: usize,
    seconds: f64,
    relay_cpu: f64,
    generator_cpu: f64,
    resident_kib: f64,
    /// Before and after the relay.
    forwarder: Vec<PeerTold>,
    rtpengine: Option<PeerTold>,
    observed: Observed,
}

#[derive(Serialize)]
struct PeerTold {
    seconds: f64,
    cpu: f64,
    generator_cpu: f64,
    /// Packets that came back of those that were sent.
    sent: u64,
    received: u64,
}

#[derive(Serialize)]
struct SetupsTold {
    a_second: f64,
    seconds: f64,
    relay_cpu: f64,
    generator_cpu: f64,
    observed: Observed,
}

/// Processor time of somebody and of the generator itself, in seconds.
struct Cpu {
    at: Nanos,
    of: f64,
    own: f64,
}

impl Cpu {
    fn of(pid: u32) -> Result<Cpu> {
        Ok(Cpu { at: clock::now(), of: process::cpu_seconds(pid)?, own: process::cpu_seconds(std::process::id())? })
    }

    /// Since then: seconds, their share of a core, and the generator's share.
    fn since(&self, pid: u32) -> Result<(f64, f64, f64)> {
        let now = Cpu::of(pid)?;
        let seconds = (now.at - self.at) as f64 / SECOND as f64;
        Ok((seconds, (now.of - self.of) / seconds, (now.own - self.own) / seconds))
    }
}

impl Plan {
    /// Measures, and writes what was observed.
    pub fn carry_out(&self) -> Result<()> {
        let told = self.measure()?;
        let file = std::fs::File::create(self.directory.join("observed.json"))?;
        serde_json::to_writer(std::io::BufWriter::new(file), &told).context("cannot write what was observed")
    }

    fn measure(&self) -> Result<Told> {
        generator::check().context("the kernel does not stamp packets")?;
        std::fs::create_dir_all(&self.directory)?;
        let (pem, server) = tls::certificate()?;
        let ca_file = self.directory.join("ca.pem");
        std::fs::write(&ca_file, pem)?;
        let sip = peers::sip_address()?;
        let mut generator = Generator::new(sip, self.tls.then_some(server))?;
        let relay = peers::relay(&RelaySettings {
            program: &self.relay,
            core: self.core,
            directory: &self.directory,
            sip,
            model_url: &generator.model_url()?,
            function_url: &generator.function_url()?,
            ca_file: self.tls.then_some(&*ca_file),
        })?;
        generator.begin(WARM_UP, RAMP, Some(SECOND))?;
        generator.run(clock::now() + PATIENCE, Generator::over)?;
        generator.run(clock::now() + 2 * SECOND, |_| false)?;
        let mut told = Told {
            steps: Vec::new(),
            setups: Vec::new(),
            idle_kib: process::resident_kib(relay.id())?,
            after_kib: 0.0,
            rest_seconds: 0.0,
            calls: WARM_UP as u64,
            notes: Vec::new(),
        };
        for calls in &self.steps {
            let step = self.step(&mut generator, &relay, *calls, &mut told.notes)?;
            told.calls += *calls as u64;
            let full = step.relay_cpu > FULL;
            told.steps.push(step);
            if full {
                break;
            }
        }
        for (a_second, seconds) in &self.setups {
            let setups = setups(&mut generator, &relay, *a_second, *seconds)?;
            told.calls += setups.observed.calls_begun;
            told.setups.push(setups);
        }
        if !self.setups.is_empty() {
            eprintln!("    idle again");
            generator.clear();
            generator.run(clock::now() + FORGOTTEN_AFTER, |_| false)?;
            told.rest_seconds = FORGOTTEN_AFTER as f64 / SECOND as f64;
        }
        told.after_kib = process::resident_kib(relay.id())?;
        Ok(told)
    }

    fn step(
        &self,
        generator: &mut Generator,
        relay: &Process,
        calls: usize,
        notes: &mut Vec<String>,
    ) -> Result<StepTold> {
        let half = self.seconds * SECOND / 2;
        let forwarder = |generator: &mut Generator| -> Result<PeerTold> {
            peer(generator, calls, half, |ports| peers::forwarder(self.core, ports))
        };
        let mut forwarded = vec![forwarder(generator)?];
        generator.clear();
        generator.observed = Observed::default();
        generator.begin(calls, RAMP, None)?;
        generator.run(clock::now() + PATIENCE, |generator| generator.unsettled() == 0)?;
        generator.run(clock::now() + SETTLE, |_| false)?;
        // Of the ramp only the calls count, of the rest only what is measured now.
        let ramp = std::mem::take(&mut generator.observed);
        let before = Cpu::of(relay.id())?;
        generator.run(clock::now() + self.seconds * SECOND, |_| false)?;
        let (seconds, relay_cpu, generator_cpu) = before.since(relay.id())?;
        let (up, resident_kib) = (generator.up(), process::resident_kib(relay.id())?);
        let mut observed = std::mem::take(&mut generator.observed);
        observed.calls_begun += ramp.calls_begun;
        observed.calls_answered += ramp.calls_answered;
        observed.calls_failed += ramp.calls_failed;
        observed.failures.extend(ramp.failures);
        observed.answer = ramp.answer;
        generator.hang_up(RAMP);
        generator.run(clock::now() + PATIENCE, Generator::over)?;
        forwarded.push(forwarder(generator)?);
        let rtpengine = self.rtpengine.as_deref().and_then(|program| self.rtpengine(generator, program, calls, notes));
        eprintln!(
            "    {calls} calls: relay {:.1} %, forwarder {:.1} %, rtpengine {:.1} %, generator {:.1} %",
            relay_cpu * 100.0,
            forwarded.iter().map(|peer| peer.cpu).sum::<f64>() * 50.0,
            rtpengine.as_ref().map_or(0.0, |peer| peer.cpu * 100.0),
            generator_cpu * 100.0
        );
        Ok(StepTold {
            calls,
            up,
            seconds,
            relay_cpu,
            generator_cpu,
            resident_kib,
            forwarder: forwarded,
            rtpengine,
            observed,
        })
    }

    fn rtpengine(
        &self,
        generator: &mut Generator,
        program: &Path,
        calls: usize,
        notes: &mut Vec<String>,
    ) -> Option<PeerTold> {
        let half = self.seconds * SECOND / 2;
        match peer(generator, calls, half, |ports| peers::rtpengine(program, self.core, ports)) {
            Ok(told) => Some(told),
            Err(error) => {
                notes.push(format!("rtpengine was not measured with {calls} calls: {error:#}"));
                None
            }
        }
    }
}

/// Has something else carry as many streams.
fn peer(
    generator: &mut Generator,
    calls: usize,
    lasts: Nanos,
    start: impl Fn(&[(u16, u16)]) -> Result<(Process, Vec<(u16, u16)>)>,
) -> Result<PeerTold> {
    generator.clear();
    let ports = generator.streams(calls)?;
    let (process, to) = start(&ports)?;
    generator.start_streams(&to);
    generator.run(clock::now() + SECOND, |_| false)?;
    generator.observed = Observed::default();
    let before = Cpu::of(process.id())?;
    generator.run(clock::now() + lasts, |_| false)?;
    let (seconds, cpu, generator_cpu) = before.since(process.id())?;
    let observed = std::mem::take(&mut generator.observed);
    generator.clear();
    Ok(PeerTold { seconds, cpu, generator_cpu, sent: observed.rtp_sent, received: observed.rtp_received })
}

fn setups(generator: &mut Generator, relay: &Process, a_second: f64, seconds: u64) -> Result<SetupsTold> {
    generator.clear();
    generator.observed = Observed::default();
    let before = Cpu::of(relay.id())?;
    generator.begin((a_second * seconds as f64) as usize, a_second, Some(SHORT_CALL))?;
    generator.run(clock::now() + seconds * SECOND, |_| false)?;
    let (_, relay_cpu, generator_cpu) = before.since(relay.id())?;
    generator.run(clock::now() + PATIENCE, Generator::over)?;
    let observed = std::mem::take(&mut generator.observed);
    eprintln!(
        "    {a_second} set-ups a second: relay {:.1} %, {} of {} failed",
        relay_cpu * 100.0,
        observed.calls_failed,
        observed.calls_begun
    );
    Ok(SetupsTold { a_second, seconds: seconds as f64, relay_cpu, generator_cpu, observed })
}
