//! `cargo xtask agents`: the agents of `agents/`, taken into a database.

use std::path::PathBuf;

use anyhow::{Context, Result};
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
    /// Where the database is; better DATABASE_URL in the environment than on the command line.
    #[arg(long, value_name = "URL")]
    db_url: Option<String>,
    /// Certificate authority of the database, in PEM form.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Replace rows that were edited in the database as well.
    #[arg(long)]
    overwrite: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let url = match &options.db_url {
        Some(url) => url.clone(),
        None => places::set("DATABASE_URL").context("say where the database is: --db-url URL, or DATABASE_URL")?,
    };
    let found = agents::read(&places::project().join("agents"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the asynchronous runtime")?;
    runtime.block_on(async {
        let mut client = connection::open(&url, options.ca.as_deref()).await?;
        progress::headline("Agents");
        for (slug, loaded) in agents::load(&mut client, &found, options.overwrite).await? {
            let line = format!("{slug}: {loaded}");
            if loaded == Loaded::Edited { progress::warn(&line) } else { progress::done(&line) }
        }
        Ok(())
    })
}
