//! `cargo xtask export`: what finance books: every SMS and call of a period with cost, revenue and margin, to the last decimal; or
//! all that is held of one person.
//!
//! Read from one moment's view of the database, in portions, so that neither a late report nor the size of a month matters;
//! the file is there whole or not at all.

mod columns;
mod format;
mod person;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use clap::builder::ArgPredicate;
use tokio_postgres::Client;

use crate::migrate::connection;
use crate::progress;

/// Rows that are in memory at a time.
const PORTION: usize = 5_000;

#[derive(clap::Args)]
#[command(after_help = "\
One row an SMS (agent_sms) or call (agent_calls), oldest first: columns and their order stay, new ones come at the end.
Amounts are decimals as the database has them, in the currency beside them; times are UTC. CSV is RFC 4180 with a header
line; text that a spreadsheet would take for a formula (beginning with = + - @, such as a phone number) has an apostrophe
before it, amounts have not. There is no Parquet: JSON lines, where amounts are strings, lose nothing and are read by what reads
Parquet (DuckDB: read_json_auto). The file holds people's numbers: only its owner can read it.")]
pub struct Options {
    #[command(flatten)]
    database: connection::Place,
    /// First day, such as 2026-11-01, or a moment of ISO 8601.
    #[arg(
        long,
        value_name = "TIME",
        required = false,
        required_unless_present = "person",
        default_value_if("person", ArgPredicate::IsPresent, "")
    )]
    from: String,
    /// The day after the last, such as 2026-12-01, or the moment after the last.
    #[arg(
        long,
        value_name = "TIME",
        required = false,
        required_unless_present = "person",
        default_value_if("person", ArgPredicate::IsPresent, "")
    )]
    to: String,
    /// Instead, all that is held of the person with this number, as one JSON object: for them, and for nobody else.
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["from", "to", "client", "texts"])]
    person: Option<String>,
    /// Where days begin.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    time_zone: String,
    /// Of this client alone.
    #[arg(long, value_name = "SLUG")]
    client: Option<String>,
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// With what the messages say.
    #[arg(long)]
    texts: bool,
    /// The file to write; one that is there is replaced when all is read.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    /// One JSON object a line.
    Jsonl,
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(number) = &options.person {
        return options.database.run(async |client| person::write(&client, number, &options.out).await);
    }
    options.database.run(async |client| {
        let mut file = Draft::beside(&options.out)?;
        let rows = write(&client, options, &mut file).await?;
        file.becomes(&options.out)?;
        progress::done(&format!("{rows} rows in {}", options.out.display()));
        Ok(())
    })
}

async fn write(client: &Client, options: &Options, file: &mut Draft) -> Result<u64> {
    let client_id = begin(client, options).await?;
    let (sms, calls) = columns::of_both(options.texts);
    let names: Vec<&str> = columns::all(options.texts).map(|column| column.name).collect();
    let kinds: Vec<columns::Kind> = columns::all(options.texts).map(|column| column.kind).collect();
    let (from, to) = (literal(&options.from), literal(&options.to));
    let whose = client_id.as_ref().map(|id| format!(" and r.client_id = {}", literal(id))).unwrap_or_default();
    let period = |time: &str| format!("r.{time} >= {from}::timestamptz and r.{time} < {to}::timestamptz{whose}");
    let names_of =
        "join public.clients c on c.id = r.client_id join public.agent_deployments d on d.id = r.deployment_id
                    left join public.agent_types t on t.id = d.agent_type_id";
    let (sms_period, calls_period) = (period("sent_at"), period("started_at"));
    client
        .batch_execute(&format!(
            "declare exported no scroll cursor for
             select {sms} from public.agent_sms r {names_of} where {sms_period}
             union all
             select {calls} from public.agent_calls r {names_of} where {calls_period}
             order by {}",
            columns::ORDER
        ))
        .await
        .map_err(told)?;
    if options.format == Format::Csv {
        file.writer.write_all(format::csv_header(&names).as_bytes())?;
    }
    let mut rows = 0;
    loop {
        let portion = client.query(&format!("fetch {PORTION} from exported"), &[]).await.map_err(told)?;
        if portion.is_empty() {
            break;
        }
        for row in &portion {
            let cells = kinds.iter().enumerate().map(|(place, kind)| (*kind, row.get::<_, Option<&str>>(place)));
            let line = match options.format {
                Format::Csv => format::csv_line(cells),
                Format::Jsonl => format::json_line(names.iter().copied().zip(cells)),
            };
            file.writer.write_all(line.as_bytes())?;
            rows += 1;
        }
    }
    totals(client, &sms_period, &calls_period).await?;
    client.batch_execute("commit").await?;
    Ok(rows)
}

/// One view of the database for all that follows, in UTC but for the period; the client's id where one is asked for.
async fn begin(client: &Client, options: &Options) -> Result<Option<String>> {
    client.batch_execute("begin isolation level repeatable read, read only; set local statement_timeout = 0").await?;
    client.query("select set_config('TimeZone', $1, true)", &[&options.time_zone]).await.map_err(told)?;
    let sql = "select $1::text::timestamptz < $2::text::timestamptz";
    let in_order: bool = client.query_one(sql, &[&options.from, &options.to]).await.map_err(told)?.get(0);
    ensure!(in_order, "--from {} is not before --to {}", options.from, options.to);
    let Some(slug) = &options.client else {
        return Ok(None);
    };
    let found = client.query_opt("select id::text from public.clients where slug = $1", &[slug]).await.map_err(told)?;
    match found {
        Some(row) => Ok(Some(row.get(0))),
        None => bail!("there is no client {slug:?}: select slug from clients"),
    }
}

/// What the file comes to, so that whoever books it can compare.
async fn totals(client: &Client, sms: &str, calls: &str) -> Result<()> {
    let sums = "count(*) as count, r.cost_currency, sum(r.cost) as cost, r.revenue_currency, sum(r.revenue) as revenue, sum(r.margin) as margin,
                count(*) filter (where r.margin is null) as without";
    let sql = format!(
        "select 'SMS', {sums} from public.agent_sms r where {sms} group by 3, 5
         union all select 'calls', {sums} from public.agent_calls r where {calls} group by 3, 5 order by 1 desc, 2 desc"
    );
    let amount = |amount: Option<String>, currency: Option<String>| match (amount, currency) {
        (Some(amount), Some(currency)) => format!("{amount} {currency}"),
        _ => "not known".to_owned(),
    };
    let sql = format!(
        "select what, count::text, cost::text, cost_currency::text, revenue::text, revenue_currency::text, margin::text, without::text from ({sql}) x (what, count, cost_currency, cost, revenue_currency, revenue, margin, without)"
    );
    for row in client.query(&sql, &[]).await.map_err(told)? {
        let text = |place: usize| row.get::<_, Option<String>>(place);
        progress::note(&format!(
            "{} {}: cost {}, revenue {}, margin {} ({} of them without one)",
            text(1).unwrap_or_default(),
            text(0).unwrap_or_default(),
            amount(text(2), text(3)),
            amount(text(4), text(5)),
            amount(text(6), text(5)),
            text(7).unwrap_or_default()
        ));
    }
    Ok(())
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Postgres' detail may hold a row: its message is all that is told.
fn told(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(said) => anyhow::anyhow!("{}", said.message()),
        None => error.into(),
    }
}

/// A file that is not there yet: it gets its name when it is whole, and goes with this when it never is.
struct Draft {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl Draft {
    fn beside(out: &Path) -> Result<Self> {
        let name = out.file_name().context("--out names no file")?.to_string_lossy();
        let path = out.with_file_name(format!(".{name}.{}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("could not write {}", path.display()))?;
        Ok(Self { path, writer: BufWriter::new(file) })
    }

    fn becomes(mut self, out: &Path) -> Result<()> {
        self.writer.flush().and_then(|()| self.writer.get_ref().sync_all()).context("could not write all rows")?;
        std::fs::rename(&self.path, out).with_context(|| format!("could not write {}", out.display()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more where it has become the real one.
        let _ = std::fs::remove_file(&self.path);
    }
}
