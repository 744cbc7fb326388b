//! `relay-load`: makes calls for a relay, is the model and the session function for it, and tells what it saw.
//!
//! `cargo xtask bench relay` runs it on one core while what is measured runs on the other:
//! `relay-load measure PLAN` takes a plan as JSON and writes what it observed into its folder; `relay-load forward` is the
//! forwarder that the relay is compared with.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

mod clock;
mod forward;
mod generator;
mod model;
mod observed;
mod peers;
mod plan;
mod process;
mod sip;
mod stamped;
mod tag;
mod tls;
mod websocket;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["forward"] => forward::run(),
        ["measure", plan] => {
            let plan: plan::Plan = serde_json::from_str(plan).context("cannot read the plan")?;
            plan.carry_out()
        }
        _ => bail!("usage: relay-load measure PLAN | relay-load forward"),
    }
}
