//! `cargo xtask dev`: the whole local world, kept up until Ctrl-C.

use anyhow::Result;
use ihuza_sim::postgres::Data;

use crate::local_world;
use crate::places;

#[derive(clap::Args)]
#[command(after_help = "\
Functions on the real edge runtime, a real Postgres with PostgREST, and simulated MTN, WhatsApp and OpenAI. Keys in
.dev.vars are used instead of a simulator's: real services are then spoken to.
The database is kept in .local/postgres from one run to the next: remove that folder to begin anew.")]
pub struct Options {
    #[command(flatten)]
    world: local_world::WorldOptions,
}

pub fn run(options: &Options) -> Result<()> {
    let data = Data::Keep(places::local().join("postgres"));
    local_world::run(&options.world, data, async |world, _| {
        local_world::tell_addresses(world)?;
        std::future::pending().await
    })
    .map(drop)
}
