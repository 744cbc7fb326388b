//! `cargo xtask migrate`: the files of `migrations/`, in order, into any database.
//!
//! What was applied is recorded where the Supabase CLI records it, so that both agree. Twice is as good as once.

pub mod connection;
mod indexes;

use anyhow::{Context, Result, bail};
use ihuza_sim::migrate;
use tokio_postgres::Client;

use crate::places;
use crate::progress;

#[derive(clap::Args)]
#[command(after_help = "\
The URL is the one of the project's database settings: postgres://postgres:PASSWORD@HOST:5432/postgres (percent-encode
the password). Anything but this machine is spoken to over TLS: Supabase's certificate is signed by an authority of
its own, so download it there and name it with --ca.
On a big table run --indexes first: it builds new indexes without blocking writers, and the migration finds them.")]
pub struct Options {
    #[command(flatten)]
    database: connection::Place,
    /// Say what would be applied; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Only build the indexes of pending migrations, one by one, without blocking writers.
    #[arg(long)]
    indexes: bool,
}

pub fn run(options: &Options) -> Result<()> {
    options.database.run(async |client| migrate(client, options).await)
}

async fn migrate(mut client: Client, options: &Options) -> Result<()> {
    let migrations = migrate::read(&places::project().join("migrations"))?;
    progress::headline("Migrations");
    if options.indexes {
        return indexes::build(&mut client, &migrations, options.dry_run).await;
    }
    let report = migrate::apply(&mut client, &migrations, options.dry_run).await?;
    for version in &report.applied {
        let name = migrations.iter().find(|migration| migration.version == *version).map(|found| found.name.as_str());
        let word = if options.dry_run { "would apply" } else { "applied" };
        progress::done(&format!("{word} {version} {}", name.unwrap_or_default()));
    }
    for version in &report.unknown {
        progress::warn(&format!("{version} is in the database but not in migrations/: is this clone up to date?"));
    }
    let word = if options.dry_run { "to apply" } else { "applied" };
    println!("{} {word}, {} already there", report.applied.len(), report.skipped.len());
    if !options.dry_run && !report.applied.is_empty() {
        client
            .batch_execute("notify pgrst, 'reload schema'")
            .await
            .context("could not tell PostgREST of the change")?;
    }
    if !report.changed.is_empty() {
        bail!(
            "edited after they were applied: {}. The database has the old text; a shipped file is never edited: put it \
             back and write a new one",
            report.changed.join(", ")
        );
    }
    Ok(())
}
