//! `cargo xtask demo`: the local world, and in it the story of three people, told as it happens. It begins with a phone call, in
//! which a ride is booked, and ends with the bill.
//!
//! Every step is believed only when the database and the carriers' simulators show it.

mod bill;
mod handover;
mod phone_call;
mod report;
mod ride;
mod story;

use std::path::PathBuf;

use anyhow::{Result, bail};
use ihuza_sim::postgres::Data;
use ihuza_sim::world::Provider;

use crate::deploy;
use crate::local_world::{self, End};
use crate::progress;

#[derive(clap::Args)]
#[command(after_help = "\
Each run begins with a fresh database. The first person phones: SIP and RTP over UDP into the relay, which speaks with the
simulated model; with OpenAI's key in .dev.vars the call is written into the database instead, without ride and hand-over, for
nobody knows what the real one would say. With real carriers' keys in .dev.vars the people of the story would be strangers:
give --to with a number of your own, which then gets the messages.")]
pub struct Options {
    /// Tell the story and end; fails when any part of it did not happen.
    #[arg(long)]
    once: bool,
    /// Write what the database and the simulators hold after the story, as JSON; and beside it what the caller heard, as
    /// a WAV file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Your own number: the story is told of one person, with this number.
    #[arg(long, value_name = "NUMBER", value_parser = deploy::e164)]
    to: Option<String>,
    #[command(flatten)]
    world: local_world::WorldOptions,
}

pub fn run(options: &Options) -> Result<()> {
    let end = local_world::run(&options.world, Data::Fresh, async |world, keys| {
        let carriers = [Provider::Mtn, Provider::WhatsApp];
        if let Some(real) = carriers.into_iter().find(|carrier| keys.is_real(*carrier))
            && options.to.is_none()
        {
            bail!(
                "{} is the real one (.dev.vars), and the numbers of the story are strangers': say --to NUMBER with your own",
                local_world::name_of(real)
            );
        }
        let mut story = story::Story::new(world, keys);
        let outcome = story.tell(options.to.as_deref()).await;
        if let Some(file) = &options.report {
            match (report::write(file, world, &story).await, &outcome) {
                (Ok(()), _) => progress::note(&format!("report: {}", file.display())),
                (Err(error), Ok(())) => return Err(error),
                // What the story broke off at matters more.
                (Err(error), Err(_)) => progress::failure(&error),
            }
        }
        if options.once {
            return outcome;
        }
        if let Err(error) = outcome {
            progress::failure(&error);
        }
        local_world::tell_addresses(world)?;
        std::future::pending().await
    })?;
    if options.once && end == End::Interrupted {
        bail!("interrupted before the end of the story");
    }
    Ok(())
}
