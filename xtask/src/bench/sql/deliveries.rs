//! Status updates in a database as large as one day may make it: a temporary server, filled with so many sent messages, each
//! with the event that says so; gone afterwards, also its disk space.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Result, bail};
use ihuza_sim::database::Database;
use ihuza_sim::postgres::{self, Data};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::super::Figure;
use super::super::stats::{Dice, percentile};
use crate::places;
use crate::progress::{self, Step};

/// What one status update may take in the database.
const AIM_MS: f64 = 2.0;
/// Of ten million rows, as measured: tables, indexes and what is sorted while they are made.
const BYTES_A_ROW: u64 = 1_500;
/// Updates before anything is measured: plans are made, and the pages that everybody needs are read.
const WARM_UP: usize = 500;
/// So many reports come in one webhook at most.
const BATCH: usize = 1_000;
/// Rows of one statement while the tables are filled.
const PORTION: u64 = 500_000;
/// Profiles among whom the messages are.
const PEOPLE: u64 = 100_000;

#[derive(clap::Args)]
pub struct Deliveries {
    /// Sent messages in the database of the part `deliveries`; about 1.5 KB of disk each below the temporary folder.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(20_000..))]
    rows: u64,
    /// Single status updates that are timed there.
    #[arg(long, default_value_t = 5_000)]
    updates: usize,
    /// Reports that come there in batches of a thousand.
    #[arg(long, default_value_t = 20_000)]
    reports: usize,
}

pub async fn measure(options: &Deliveries, seed: u64) -> Result<Vec<Figure>> {
    progress::headline("Status updates");
    println!(
        "{} messages take about {} MB of {}",
        options.rows,
        options.rows * BYTES_A_ROW / 1_000_000,
        std::env::temp_dir().display()
    );
    let step = Step::start("a server of its own", None);
    let database = Database::start(&places::project(), &Data::Fresh, 0, &std::env::temp_dir()).await?;
    let owner = postgres::connect(&database.superuser_url()).await?;
    let service = postgres::connect(&database.superuser_url()).await?;
    service.batch_execute(TIMED).await?;
    service.batch_execute("set role service_role").await?;
    step.finish();
    fill(&owner, options.rows).await?;
    figures(&owner, &service, options, seed).await
}

/// In the database: from the function's begin to its end, without the way there and back and without the commit.
const TIMED: &str = "
create function pg_temp.timed(p jsonb) returns jsonb language plpgsql as $$
declare
  v_begin timestamptz := clock_timestamp();
  v_answer jsonb := public.record_delivery_events(p);
begin
  return jsonb_build_object('ms', extract(epoch from clock_timestamp() - v_begin) * 1000, 'answer', v_answer);
end
$$;
create function pg_temp.refolded(p_id uuid) returns double precision language plpgsql as $$
declare
  v_begin timestamptz := clock_timestamp();
begin
  perform private.refold_delivery(p_id);
  return extract(epoch from clock_timestamp() - v_begin) * 1000;
end
$$;";

/// The id of row n, as in [`id`].
const ID: &str = "(lpad(to_hex(n % 65536), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid";

/// Scattered over the index, as random ids are, and known without asking.
fn id(n: u64) -> String {
    format!("{:08x}-0000-4000-8000-{n:012x}", n % 65536)
}

fn provider_message_id(n: u64) -> String {
    format!("wamid.{:08x}{n:012x}", n.wrapping_mul(2_654_435_761) % 0xffff_ffff)
}

/// Rows as the functions leave them behind: sent, and nothing heard of them since. Indexes are made afterwards, which takes a
/// fraction of the time.
async fn fill(owner: &Client, rows: u64) -> Result<()> {
    let step = Step::start(&format!("{rows} sent messages, each with its event"), None);
    let sql = "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index
                where indrelid in ('public.message_delivery_log'::regclass, 'public.message_status_events'::regclass)
                  and not exists (select from pg_constraint where conindid = indexrelid)";
    let (mut drop, mut create) = (String::new(), Vec::new());
    for row in owner.query(sql, &[]).await? {
        let _ = write!(drop, "drop index {};", row.get::<_, String>(0));
        create.push(row.get::<_, String>(1));
    }
    // The generated column calls a function for each row. For the ids here a plain one says the same, in a tenth of the time.
    let key = "private.provider_message_key(text)";
    let sql = format!("select pg_get_functiondef('{key}'::regprocedure)");
    let as_migrated: String = owner.query_one(&sql, &[]).await?.get(0);
    owner
        .batch_execute(
            "create or replace function private.provider_message_key(p_id text) returns text language sql immutable parallel safe as $$ select lower(p_id) $$",
        )
        .await?;
    // Replica: no foreign key is looked up and no trigger runs while the rows come in.
    owner.batch_execute(&drop).await?;
    owner
        .batch_execute(
            "set session_replication_role = replica; set maintenance_work_mem = '512MB'; set max_parallel_maintenance_workers = 2",
        )
        .await?;
    owner
        .batch_execute(&format!(
            "insert into public.profiles (id, phone_number)
             select (lpad(to_hex(n), 8, '0') || '-0000-4000-9000-000000000000')::uuid, '+25078' || lpad(n::text, 7, '0') from generate_series(0, {}) n",
            PEOPLE - 1
        ))
        .await?;
    let mut first = 1;
    while first <= rows {
        let last = (first + PORTION - 1).min(rows);
        let series = format!(
            "(select n, now() - ({rows} - n) * interval '1 second' / 10 as at from generate_series({first}::bigint, {last}) n) x"
        );
        let wamid = "'wamid.' || lpad(to_hex(n * 2654435761 % 4294967295), 8, '0') || lpad(to_hex(n), 12, '0')";
        let log = format!(
            "insert into public.message_delivery_log (id, profile_id, channel, purpose, status, status_at, provider, provider_message_id, correlation_id,
               recipient, content, attempts, last_outcome, idempotency_key, queued_at, sending_at, sent_at, created_at, updated_at, deadline_at)
             select {ID}, (lpad(to_hex(n % {PEOPLE}), 8, '0') || '-0000-4000-9000-000000000000')::uuid, 'whatsapp', 'call_summary', 'sent', at, 'whatsapp',
               {wamid}, 'work-' || n, '+25078' || lpad((n % {PEOPLE})::text, 7, '0'), 'Your call in two words.', 1, 'accepted', 'call:' || n || ':whatsapp',
               at, at, at, at, at, at + interval '1 day' from {series}"
        );
        let events = format!(
            "insert into public.message_status_events (delivery_id, delivery_ref, source, status, occurred_at, correlation_id, dedupe_key, created_at)
             select {ID}, {ID}::text, 'own', 'sent', at, 'work-' || n, 'own:' || {ID} || ':sent', at from {series}"
        );
        owner.batch_execute(&log).await?;
        owner.batch_execute(&events).await?;
        first = last + 1;
    }
    owner.batch_execute(&as_migrated).await?;
    step.finish();
    let step = Step::start(&format!("{} indexes", create.len()), None);
    for index in create {
        owner.batch_execute(&index).await?;
    }
    for sql in [
        "reset session_replication_role",
        "vacuum (analyze) public.message_delivery_log",
        "vacuum (analyze) public.message_status_events",
        "analyze public.profiles",
        "checkpoint",
    ] {
        owner.batch_execute(sql).await?;
    }
    step.finish();
    Ok(())
}

/// A report on message n: by the provider's id, as WhatsApp's come, and every other one with our own id as well.
fn report(n: u64, status: &str) -> Value {
    let mut event = json!({"provider": "whatsapp", "provider_message_id": provider_message_id(n), "status": status,
                           "occurred_at": "2026-11-21T12:00:00Z", "raw_status": status});
    if let Some(event) = event.as_object_mut().filter(|_| n.is_multiple_of(2)) {
        event.insert("delivery_ref".to_owned(), json!(id(n)));
    }
    event
}

/// Full reads of the two big tables, and rows found by an index, since the server began.
async fn scans(owner: &Client) -> Result<(i64, i64)> {
    // What other connections did is told when they are idle for a second.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    owner.batch_execute("select pg_stat_clear_snapshot()").await?;
    let sql = "select coalesce(sum(seq_scan), 0)::bigint, coalesce(sum(idx_scan), 0)::bigint from pg_stat_user_tables
                where relname in ('message_delivery_log', 'message_status_events')";
    let row = owner.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

async fn figures(owner: &Client, service: &Client, options: &Deliveries, seed: u64) -> Result<Vec<Figure>> {
    let rows = options.rows;
    let mut dice = Dice(seed);
    let mut draw = || 1 + (dice.roll() * rows as f64) as u64 % rows;
    let before = scans(owner).await?;
    let one = |event: Value| json!({"correlation_id": "bench", "events": [event]});

    let step = Step::start(&format!("{} single updates", options.updates), None);
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for n in 0..WARM_UP + options.updates {
        let p = one(report(draw(), if n % 2 == 0 { "delivered" } else { "read" }));
        let sent = Instant::now();
        let answer: Value = service.query_one("select pg_temp.timed($1)", &[&p]).await?.get(0);
        let whole = sent.elapsed().as_secs_f64() * 1e3;
        let known = |name: &str| answer.pointer(&format!("/answer/{name}")).and_then(Value::as_i64);
        if known("applied") != Some(1) && known("duplicate") != Some(1) {
            bail!("a report found no message: {answer}");
        }
        if n >= WARM_UP {
            inside.push(answer.get("ms").and_then(Value::as_f64).unwrap_or_default());
            outside.push(whole);
        }
    }
    step.finish();

    let step = Step::start("folds by themselves", None);
    let mut folds = Vec::new();
    for _ in 0..options.updates {
        let row = service.query_one("select pg_temp.refolded($1::text::uuid)", &[&id(draw())]).await?;
        folds.push(row.get::<_, f64>(0));
    }
    step.finish();

    let step = Step::start(&format!("{} reports in batches of {BATCH}", options.reports), None);
    let begun = Instant::now();
    let mut done = 0;
    while done < options.reports {
        let events: Vec<Value> = (0..BATCH.min(options.reports - done)).map(|_| report(draw(), "delivered")).collect();
        done += events.len();
        let p = json!({"correlation_id": "bench", "events": events});
        service.query_one("select public.record_delivery_events($1)", &[&p]).await?;
    }
    let a_second = done as f64 / begun.elapsed().as_secs_f64();
    step.finish();
    let after = scans(owner).await?;

    let sql = "select pg_database_size(current_database())::bigint, pg_total_relation_size('public.message_delivery_log')::bigint,
                      pg_total_relation_size('public.message_status_events')::bigint, current_setting('server_version')";
    let sizes = owner.query_one(sql, &[]).await?;
    let (whole, log, events, version): (i64, i64, i64, String) =
        (sizes.get(0), sizes.get(1), sizes.get(2), sizes.get(3));
    let place = format!(
        "{rows} deliveries ({} MB with indexes) and their events ({} MB), PostgreSQL {version} with 64 MB of shared buffers and without fsync",
        log / 1_000_000,
        events / 1_000_000
    );
    let updates = options.updates as u64;
    let name = |what: &str| format!("sql.status_update.{what}");
    let time = |what: &str, values: &[f64], percent: f64, note: &str| {
        Figure::new(name(what), percentile(values, percent), "ms", updates, &format!("{note}; {place}"))
    };
    let within = "record_delivery_events with one report, in the database";
    let all = "the same with the way there and back and the commit, one after another";
    Ok(vec![
        time("p50_ms", &inside, 50.0, within),
        time("p95_ms", &inside, 95.0, within).at_most(None, Some(AIM_MS)),
        time("p99_ms", &inside, 99.0, within),
        time("round_trip_p50_ms", &outside, 50.0, all),
        time("round_trip_p95_ms", &outside, 95.0, all),
        time("fold_p50_ms", &folds, 50.0, "refold_delivery alone"),
        time("fold_p95_ms", &folds, 95.0, "refold_delivery alone"),
        Figure::new(
            "sql.status_fold.reports_per_second",
            a_second,
            "1/s",
            done as u64,
            &format!("one connection, {BATCH} reports a call; {place}"),
        ),
        Figure::new(
            "sql.status_update.full_reads",
            (after.0 - before.0) as f64,
            "scans",
            updates + done as u64,
            "times that one of the two tables was read as a whole meanwhile",
        )
        .at_most(Some(0.0), None),
        Figure::new(
            "sql.status_update.index_reads",
            (after.1 - before.1) as f64,
            "scans",
            updates + done as u64,
            "reads by an index of the two tables meanwhile",
        ),
        Figure::new("sql.database.megabytes", whole as f64 / 1e6, "MB", 1, &place),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_the_database_makes() {
        assert_eq!(id(65_537), "00000001-0000-4000-8000-000000010001");
        assert_eq!(provider_message_id(3), "wamid.daa66d14000000000003");
        assert!(report(2, "read").get("delivery_ref").is_some());
    }
}
