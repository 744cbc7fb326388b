//! The wasm target, by the first way that works: it is there already, the private sysroot is there, rustup adds it, the
//! distribution's compiler gets a standard library of its own.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Ledger, sysroot};
use crate::call::Call;
use crate::places;
use crate::progress;
use crate::wasm_toolchain::{Policy, TARGET, WasmToolchain, is_linked, linked_name, private_dir};

/// A network that swallows packets must not hold the set-up for longer than this.
const RUSTUP_LIMIT: Duration = Duration::from_secs(300);

pub fn ensure(ledger: &mut Ledger) -> Result<WasmToolchain> {
    if let Some(found) = ready(ledger)? {
        progress::done(&format!("wasm: {}", found.describe()));
        return Ok(found);
    }
    if Policy::read()? == Policy::Auto && places::on_path("rustup").is_some() {
        match add_by_rustup() {
            Ok(()) => {
                ledger.add(format!("rustup: target {TARGET} added to the project's toolchain"));
            }
            Err(error) => progress::warn(&format!("{error}; trying the distribution's compiler")),
        }
        if let Some(found) = ready(ledger)? {
            return Ok(found);
        }
    }
    sysroot::build(ledger)?;
    ready(ledger)?.context("the wasm sysroot was built but its compiler does not accept it: remove the folder wasm-sysroot-… from the cache and set up again")
}

/// What is ready now, with the private sysroot linked by name where rustup is in charge of `cargo`.
fn ready(ledger: &mut Ledger) -> Result<Option<WasmToolchain>> {
    match WasmToolchain::find()? {
        Some(WasmToolchain::Private { dir, rustup: false }) if places::on_path("rustup").is_some() => {
            Call::new("rustup", "link the wasm sysroot as a toolchain")
                .args(["toolchain", "link", linked_name().as_str()])
                .arg(&dir)
                .read()?;
            ledger.add(format!("rustup: toolchain {} linked to {}", linked_name(), dir.display()));
            let rustup = is_linked(&private_dir()?);
            Ok(Some(WasmToolchain::Private { dir, rustup }))
        }
        other => Ok(other),
    }
}

fn add_by_rustup() -> Result<()> {
    let limit = RUSTUP_LIMIT.as_secs().to_string();
    let call = match places::on_path("timeout") {
        Some(timeout) => Call::new(timeout, "add the wasm target with rustup").args([limit.as_str(), "rustup"]),
        None => Call::new("rustup", "add the wasm target with rustup"),
    };
    call.args(["target", "add", TARGET])
        .env("RUSTUP_MAX_RETRIES", "0")
        .env("RUST_BACKTRACE", "0")
        .usual("about 10 s")
        .run()
}
