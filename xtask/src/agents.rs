//! `cargo xtask agents`: the agents of `agents/`, taken into a database.

use anyhow::Result;
use ihuza_sim::agents::{self, Loaded};

use crate::migrate::connection;
use crate::places;
use crate::progress;

#[derive(clap::Args)]
#[command(after_help = "\
Each folder of agents/ is one agent, shared by all clients: agent.json, and text.<locale>.md and voice.<locale>.md with
what it is told in messages and in calls. A client's own agent of the same slug is a row that operators write; it wins.
A row that was changed in the database since it was loaded is left alone and named, unless --overwrite says otherwise.")]
pub struct Options {
    #[command(flatten)]
    database: connection::Place,
    /// Replace rows that were edited in the database as well.
    #[arg(long)]
    overwrite: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let found = agents::read(&places::project().join("agents"))?;
    options.database.run(async |mut client| {
        progress::headline("Agents");
        for (slug, loaded) in agents::load(&mut client, &found, options.overwrite).await? {
            let line = format!("{slug}: {loaded}");
            if loaded == Loaded::Edited { progress::warn(&line) } else { progress::done(&line) }
        }
        Ok(())
    })
}
