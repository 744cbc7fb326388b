//! `cargo xtask setup`: everything the other chores need, fetched or built once.
//!
//! Order: the wasm compiler, the cargo tools, the npm packages, Postgres and PostgREST, callers for the relay. Each part first looks whether it
//! is already there; nothing outside the project folder and the cache is touched without being named at the end.

mod apt;
mod callers;
mod cargo_tools;
mod npm;
mod postgres;
mod sysroot;
mod wasm_target;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::call::{self, Call};
use crate::places;
use crate::progress;
use crate::wasm_toolchain::{Policy, WasmToolchain};

#[derive(clap::Args)]
#[command(after_help = "\
Set IHUZA_WASM_TOOLCHAIN=distro where rustup must download nothing: the distribution's compiler is used for wasm and its
standard library is built once. Otherwise rustup adds the target, and the distribution is the fallback.
POSTGREST_BIN and SIPP_BIN (files), POSTGRES_BIN and PJSIP_PYTHON (folders) name programs of your own choice.
A bare machine takes about 10 minutes, a second run a few seconds.")]
pub struct Options {}

/// Where everything that was set up is.
pub struct Tools {
    pub toolchain: WasmToolchain,
    pub wasm_bindgen: PathBuf,
    pub worker_build: PathBuf,
    pub cargo_deny: PathBuf,
    pub npm: npm::Npm,
    pub postgres_bin_dir: PathBuf,
    pub postgrest: PathBuf,
    /// SIPp, for tests and where it could be had.
    pub sipp: Option<PathBuf>,
    /// The folder with PJSIP's Python package, for tests and where it could be had.
    pub pjsip: Option<PathBuf>,
}

impl Tools {
    /// Tests find the servers of the local world, and the relay's callers, where the set-up found or put them.
    pub fn for_tests(&self, call: Call) -> Call {
        let call = call.env("POSTGRES_BIN", &self.postgres_bin_dir).env("POSTGREST_BIN", &self.postgrest);
        let callers = [("SIPP_BIN", &self.sipp), ("PJSIP_PYTHON", &self.pjsip)];
        callers.into_iter().fold(call, |call, (name, place)| match place {
            Some(place) => call.env(name, place),
            None => call,
        })
    }

    /// The same for a local world in this very process: it reads the environment, which a process can only change by
    /// beginning again. Nothing happens where the environment says it already, or the world looks there by itself.
    pub fn tell_the_world(&self) -> Result<()> {
        let found_by_itself = self.postgres_bin_dir.starts_with("/usr/lib/postgresql");
        if found_by_itself || places::set("POSTGRES_BIN").is_some() {
            return Ok(());
        }
        let this = std::env::current_exe().context("could not find out where this program is")?;
        let error = std::process::Command::new(this)
            .args(std::env::args_os().skip(1))
            .env("POSTGRES_BIN", &self.postgres_bin_dir)
            .exec();
        Err(error).context("could not begin again with the Postgres that was set up")
    }
}

/// What was changed outside the project folder, told at the end.
#[derive(Default)]
pub struct Ledger(Vec<String>);

impl Ledger {
    pub fn add(&mut self, change: impl Into<String>) {
        self.0.push(change.into());
    }
}

pub fn run(_: &Options) -> Result<()> {
    ensure_for_tests().map(drop)
}

/// Make sure that everything is there, telling what is done. Every chore that needs tools begins with this.
pub fn ensure() -> Result<Tools> {
    prepare(false)
}

/// The same with what only tests need: callers that are not ours.
pub fn ensure_for_tests() -> Result<Tools> {
    prepare(true)
}

fn prepare(with_callers: bool) -> Result<Tools> {
    Policy::read()?;
    let started = std::time::Instant::now();
    let _one_at_a_time = call::lock(&places::cache()?.join("setup.lock"))?;
    progress::headline("Set-up");
    let mut ledger = Ledger::default();
    let toolchain = wasm_target::ensure(&mut ledger)?;
    let [wasm_bindgen, worker_build, cargo_deny] = cargo_tools::ensure(&mut ledger)?;
    let npm = npm::ensure()?;
    let postgrest = postgres::ensure_postgrest()?;
    let postgres_bin_dir = postgres::ensure_server(&npm, &mut ledger)?;
    let (sipp, pjsip) = match with_callers {
        true => (callers::ensure_sipp(&mut ledger), callers::ensure_pjsip()),
        false => (None, None),
    };
    if ledger.0.is_empty() {
        progress::done(&format!("nothing to do ({})", progress::seconds(started.elapsed())));
    } else {
        progress::headline("Changed outside the project folder");
        for change in &ledger.0 {
            progress::note(change);
        }
    }
    Ok(Tools { toolchain, wasm_bindgen, worker_build, cargo_deny, npm, postgres_bin_dir, postgrest, sipp, pjsip })
}
