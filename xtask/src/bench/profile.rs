//! Where the processor time of an accept path goes: a sampled profile of each side while it is busy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

use super::http::Connection;
use super::traffic::MEASURED;
use super::workerd::{Side, Stage, Worker};
use crate::places;

const SECONDS: u64 = 4;
const WARM_UP: usize = 1_000;
/// How long the profiler may take beyond the time it measures.
const PATIENCE: Duration = Duration::from_secs(20);

/// Prints the functions that used most time themselves, each accept path, each side.
pub fn print(stage: &Stage, node: &std::path::Path) -> Result<()> {
    for accept in MEASURED {
        for (side, title) in [(Side::Ours, "ours"), (Side::Peer, "typescript worker")] {
            let worker = Worker::of(side, accept.function());
            let runtime = stage.start(std::slice::from_ref(&worker), true)?;
            let mut connection = Connection::open(runtime.port(&worker.name)?)?;
            for number in 0..WARM_UP {
                connection.send(&accept.request(number))?;
            }
            let port = runtime.inspector.context("the runtime has no inspector")?;
            let mut profiler = Command::new(node)
                .arg(places::project().join("tests/bench/profile.mjs"))
                .args([port.to_string(), worker.name.clone(), SECONDS.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("could not start the profiler")?;
            let begun = Instant::now();
            let mut number = 0;
            while profiler.try_wait().context("could not wait for the profiler")?.is_none() {
                if begun.elapsed() > Duration::from_secs(SECONDS) + PATIENCE {
                    profiler.kill().context("could not end the profiler")?;
                    bail!("the profiler did not come to its end");
                }
                connection.send(&accept.request(number))?;
                number += 1;
            }
            let output = profiler.wait_with_output().context("could not read from the profiler")?;
            if !output.status.success() {
                bail!("the profiler failed ({}); its words are above", output.status);
            }
            println!(
                "\n{}, {title}: {number} requests\n{}",
                accept.function(),
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
    Ok(())
}
