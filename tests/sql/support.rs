//! What all tests of the database share: a database of one's own, calls of RPCs, snapshots, and cases with a seed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use ihuza_sim::database::Database;
use ihuza_sim::migrate;
use ihuza_sim::postgres::{self, Data};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

/// The repository.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_path_buf()
}

/// A file beside the tests.
pub fn beside(name: &str) -> PathBuf {
    root().join("tests/sql").join(name)
}

/// A database of its own on the server that all tests of this process share.
pub struct Db {
    url: String,
    /// Its owner.
    pub admin: Client,
    /// The role that the functions have.
    pub service: Client,
}

/// What the database said no with.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub code: String,
    pub message: String,
}

impl Db {
    /// A copy of the migrated database.
    pub async fn new() -> Self {
        server().await;
        let url = start().await.superuser_url();
        if let Some(mutant) = std::env::var_os("IHUZA_SQL_MUTANT") {
            let sql = std::fs::read_to_string(&mutant).unwrap();
            let client = postgres::connect(&url).await.unwrap();
            client.batch_execute(&sql).await.unwrap();
        }
        Self { admin: postgres::connect(&url).await.unwrap(), service: as_service(&url).await, url }
    }

    /// A database as a new Supabase project has it: none of our migrations.
    pub async fn empty() -> Client {
        Self::empty_at().await.0
    }

    /// The same, and where it is.
    pub async fn empty_at() -> (Client, String) {
        let url = server().await;
        let name = format!("empty_{}", Uuid::new_v4().simple());
        let owner = postgres::connect(&url).await.unwrap();
        let create = format!("create database {name} template template0");
        owner.batch_execute(&create).await.unwrap();
        let (address, _) = url.rsplit_once('/').unwrap();
        let url = format!("{address}/{name}");
        let mut client = postgres::connect(&url).await.unwrap();
        migrate::run_file(&mut client, &beside("bootstrap.sql")).await.unwrap();
        (client, url)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// One more connection with the functions' role.
    pub async fn connect(&self) -> Client {
        as_service(&self.url).await
    }

    /// Calls a function of one argument, as the functions do.
    pub async fn rpc(&self, name: &str, p: Value) -> Value {
        rpc(&self.service, name, p).await
    }

    pub async fn try_rpc(&self, name: &str, p: Value) -> Result<Value, Refusal> {
        try_rpc(&self.service, name, p).await
    }

    /// One value, asked for by the owner.
    pub async fn value(&self, sql: &str) -> Value {
        value(&self.admin, sql).await
    }

    /// The number that a query answers with.
    pub async fn count(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    pub async fn run(&self, sql: &str) {
        if let Err(error) = self.admin.batch_execute(sql).await {
            panic!("{}\n  in: {sql}", refusal(&error).message);
        }
    }
}

async fn as_service(url: &str) -> Client {
    let client = postgres::connect(url).await.unwrap();
    client.batch_execute("set role service_role").await.unwrap();
    client
}

async fn start() -> Database {
    Database::start(&root(), &Data::Fresh, 0, &std::env::temp_dir()).await.unwrap()
}

/// Address of a database that stays until the process ends, and keeps the server for all tests.
async fn server() -> String {
    static FIRST: OnceCell<Database> = OnceCell::const_new();
    FIRST.get_or_init(start).await.superuser_url()
}

pub async fn rpc(client: &Client, name: &str, p: Value) -> Value {
    let called = p.clone();
    match try_rpc(client, name, p).await {
        Ok(answer) => answer,
        Err(refusal) => panic!("{name}({called}) was refused: {} {}", refusal.code, refusal.message),
    }
}

pub async fn try_rpc(client: &Client, name: &str, p: Value) -> Result<Value, Refusal> {
    let sql = format!("select public.{name}($1)");
    match client.query_one(&sql, &[&p]).await {
        Ok(row) => Ok(row.get::<_, Option<Value>>(0).unwrap_or(Value::Null)),
        Err(error) => Err(refusal(&error)),
    }
}

pub fn refusal(error: &tokio_postgres::Error) -> Refusal {
    match error.as_db_error() {
        Some(database) => Refusal {
            code: database.code().code().to_owned(),
            message: format!(
                "{}{}{}",
                database.message(),
                database.where_().map(|at| format!(" at {at}")).unwrap_or_default(),
                // Of a deadlock: who waits for whom.
                database
                    .detail()
                    .filter(|_| database.code().code() == "40P01")
                    .map(|detail| format!("\n{detail}"))
                    .unwrap_or_default(),
            ),
        },
        None => Refusal { code: String::new(), message: error.to_string() },
    }
}

/// One value of any type, as JSON.
pub async fn value(client: &Client, sql: &str) -> Value {
    let sql = format!("select to_jsonb(x.v) from ({sql}) as x (v)");
    let row: Option<Row> = client.query_opt(&sql, &[]).await.unwrap();
    row.and_then(|row| row.get::<_, Option<Value>>(0)).unwrap_or(Value::Null)
}

/// The lines of a query with one column of text.
pub async fn lines(client: &Client, sql: &str) -> Vec<String> {
    match client.query(sql, &[]).await {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{}\n  in: {sql}", refusal(&error).message),
    }
}

/// The time that tests begin at, so many milliseconds later.
pub fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_893_484_800, 0).unwrap() + TimeDelta::milliseconds(ms)
}

/// [`at`], as it stands in JSON.
pub fn at_text(ms: i64) -> String {
    at(ms).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A lease token that is the same in every run.
pub fn token(n: u32) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// A number that no earlier case of this process has.
pub fn unique() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// A phone number that no earlier case of this process has.
pub fn phone() -> String {
    format!("+25078{:07}", unique())
}

/// An ended call from `phone`; its id.
pub async fn ended_call(db: &Db, phone: &str, ended_ms: i64) -> String {
    let sql = "insert into public.voice_calls (origin, provider_call_id, from_number, to_number, status, started_at, answered_at, ended_at, locale)
               values ('mtn_sip', 'call-' || gen_random_uuid(), $1, '+250788000000', 'completed', $2, $2, $3, 'en') returning id";
    let row = db.service.query_one(sql, &[&phone, &at(ended_ms - 60_000), &at(ended_ms)]).await.unwrap();
    row.get::<_, Uuid>(0).to_string()
}

/// Compares with the stored snapshot `name`; with `IHUZA_UPDATE=1` stores what was found.
#[track_caller]
pub fn check_snapshot(name: &str, found: &str) {
    let path = beside(name);
    if std::env::var_os("IHUZA_UPDATE").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    if stored != found {
        panic!(
            "{} does not say what is found (- stored, + found):\n{}\nif that is meant, run this test with IHUZA_UPDATE=1 and commit the file",
            path.display(),
            difference(&stored, found)
        );
    }
}

/// The lines that differ; each with the nearest line above it that is not indented, so that one sees where it belongs.
fn difference(stored: &str, found: &str) -> String {
    let mark = |text: &str| -> Vec<String> {
        let mut head = "";
        text.lines()
            .map(|line| {
                if line.starts_with(' ') {
                    format!("{head}: {}", line.trim())
                } else {
                    head = line;
                    line.to_owned()
                }
            })
            .collect()
    };
    let (stored, found) = (mark(stored), mark(found));
    let missing = |from: &[String], other: &[String], sign: &str| {
        let other: std::collections::HashSet<&String> = other.iter().collect();
        let lines = from.iter().filter(|line| !other.contains(line));
        lines.fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{sign} {line}");
            all
        })
    };
    let text = missing(&stored, &found, "-") + &missing(&found, &stored, "+");
    if text.is_empty() { "the same lines in another order".to_owned() } else { text }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The same cases each time; `cargo xtask soak` brings other seeds.
pub fn seed() -> u64 {
    number("IHUZA_SEED").unwrap_or(1)
}

/// Whether large counts run whole: in the first round of `cargo xtask soak`.
pub fn in_full() -> bool {
    std::env::var_os("IHUZA_IN_FULL").is_some()
}

/// Numbers that are the same for the same seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

/// Tries `cases` cases (or `PROPTEST_CASES`) of what `strategy` makes; on failure prints the smallest one and the seed.
pub fn check_cases<S, F>(cases: u32, strategy: S, check: F)
where
    S: Strategy,
    F: AsyncFn(&Db, S::Value) -> Result<(), TestCaseError>,
{
    let seed = seed();
    let config = Config {
        cases: number("PROPTEST_CASES").map_or(cases, |n| u32::try_from(n).unwrap_or(cases)),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let db = runtime.block_on(Db::new());
    let outcome = TestRunner::new(config).run(&strategy, |case| runtime.block_on(check(&db, case)));
    if let Err(error) = outcome {
        panic!("{error}\nrun again with IHUZA_SEED={seed}");
    }
}

/// `p` with the fields of `more`.
pub fn with(mut p: Value, more: Value) -> Value {
    if let (Some(p), Value::Object(more)) = (p.as_object_mut(), more) {
        p.extend(more);
    }
    p
}

/// A member by path, as text; empty when it is not there.
pub fn text(answer: &Value, pointer: &str) -> String {
    match answer.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// An attempt as the functions report it.
pub fn attempt(outcome: &str, ms: i64) -> Value {
    json!({"attempt": 1, "outcome": outcome, "started_at": at_text(ms), "finished_at": at_text(ms), "duration_ms": 0})
}

/// Runs all at the same time and waits for every one; answers in order.
pub async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut waits = false;
        for (future, answer) in &mut pending {
            if answer.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(found) => *answer = Some(found),
                    std::task::Poll::Pending => waits = true,
                }
            }
        }
        if waits { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    pending.into_iter().filter_map(|(_, answer)| answer).collect()
}
