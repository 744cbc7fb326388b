//! `cargo xtask export --person`: all that is held of one person, for them to have.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio_postgres::Client;

use super::{Draft, told};
use crate::progress;

pub async fn write(client: &Client, number: &str, out: &Path) -> Result<()> {
    let sql =
        "select public.export_person(p)::text from private.profile_of_phone(private.e164_of($1)) p where p is not null";
    let held: Vec<String> =
        client.query(sql, &[&number]).await.map_err(told)?.iter().map(|row| row.get::<_, String>(0)).collect();
    ensure!(held.len() == 1, "nobody is known by this number: write it as +250…");
    let held: Value = serde_json::from_str(&held.concat()).context("the database answered with no JSON")?;
    let mut file = Draft::beside(out)?;
    serde_json::to_writer_pretty(&mut file.writer, &held)?;
    file.writer.write_all(b"\n")?;
    file.becomes(out)?;
    for (table, rows) in held.as_object().into_iter().flatten() {
        if let Some(rows) = rows.as_array() {
            progress::note(&format!("{table}: {}", rows.len()));
        }
    }
    progress::done(&format!(
        "all that is held of them is in {}: hand it to nobody else, then delete it",
        out.display()
    ));
    Ok(())
}
