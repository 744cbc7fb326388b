//! What a dashboard, a list, a bill, a provider's callback and a writer ask of agent_sms, timed at each size, warm and cold, by a
//! client's member under row level security and by the service role, on PostgreSQL's default settings.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::super::Figure;
use super::super::stats::{Dice, percentile};
use super::sms_plans;
use super::sms_rows;
use super::sms_server::SmsServer;
use crate::progress::{self, Step};

/// Of each kind before anything is measured: plans are made, and the pages that everybody needs are read.
const WARM_UP: usize = 50;
/// Deployments among which the questions are, each as often as its share of the messages.
const SUBJECTS: usize = 200;

#[derive(clap::Args)]
pub struct Sms {
    /// Rows of agent_sms in the part `sms`, about 1.1 KB of disk each below target/; may be given several times
    /// [default: 360000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(10_000..=100_000_000))]
    sms_rows: Vec<i64>,
    /// Keep the filled server in this folder, one below it for each size, and use what an earlier run left there: tens of
    /// millions of rows are filled in at one time and asked at another, when the machine does nothing else.
    #[arg(long, value_name = "FOLDER")]
    sms_keep: Option<PathBuf>,
    /// Ask only this kind of question; may be given several times.
    #[arg(long, value_name = "KIND", value_parser = KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>())]
    sms_kind: Vec<String>,
    /// Times that each kind is asked warm.
    #[arg(long, default_value_t = 1_000)]
    sms_asked: usize,
    /// Times that each kind is asked of a server just started with nothing in memory.
    #[arg(long, default_value_t = 5)]
    sms_cold: usize,
}

/// What is asked, and what was promised of it.
pub struct Kind {
    pub name: &'static str,
    /// Of the first documents, in milliseconds.
    promise: Option<f64>,
    aim: f64,
    pub sql: &'static str,
    arguments: fn(&Subject) -> Vec<Option<String>>,
    pub roles: &'static [Role],
    note: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A signed-in user, who is a member of one client.
    Member,
    Service,
}

/// Whom one question is about.
#[derive(Clone, Default)]
pub struct Subject {
    deployment: String,
    client: String,
    user: String,
    type_name: String,
    provider: String,
    /// How far back the period ends.
    days_ago: u32,
    /// Counts the questions.
    number: usize,
    /// A message that is not reported on yet, and its provider.
    sid: String,
    sid_provider: String,
}

const BOTH: &[Role] = &[Role::Member, Role::Service];
const WRITERS: &[Role] = &[Role::Service];
pub const COST: &str = "cost_month";

pub const KINDS: &[Kind] = &[
    Kind {
        name: "kpi_month",
        promise: Some(100.0),
        aim: 15.0,
        sql: "select public.get_sms_metrics(now() - make_interval(days => $1::text::int + 30), now() - make_interval(days => $1::text::int),
                $2::text::uuid, $3::text, $4::text)::text",
        arguments: filters,
        roles: BOTH,
        note: "get_sms_metrics over thirty days and the thirty before: all that one may see, a client, a deployment, a kind of agent in turn",
    },
    Kind {
        name: "kpi_year",
        promise: Some(100.0),
        aim: 15.0,
        sql: "select public.get_sms_metrics(now() - make_interval(days => $1::text::int + 365), now() - make_interval(days => $1::text::int),
                $2::text::uuid, $3::text, $4::text)::text",
        arguments: filters,
        roles: BOTH,
        note: "the same over a year and the year before",
    },
    Kind {
        name: "recent_50",
        promise: Some(10.0),
        aim: 2.0,
        sql: "select * from public.v_agent_sms_enriched
               where deployment_id = $1::text::uuid and sent_at >= now() - interval '30 days' order by sent_at desc limit 50",
        arguments: |subject| vec![Some(subject.deployment.clone())],
        roles: BOTH,
        note: "the newest fifty SMS of a deployment, with client and agent",
    },
    Kind {
        name: COST,
        promise: Some(50.0),
        aim: 10.0,
        sql: "select cost_currency, revenue_currency, count(*), sum(segments), sum(cost), sum(revenue), sum(margin) from public.agent_sms
               where deployment_id = $1::text::uuid and sent_at >= now() - make_interval(days => $2::text::int + 30)
                 and sent_at < now() - make_interval(days => $2::text::int) group by 1, 2",
        arguments: |subject| vec![Some(subject.deployment.clone()), Some(subject.days_ago.to_string())],
        roles: BOTH,
        note: "cost, revenue and margin of a deployment over thirty days, summed over the messages themselves",
    },
    Kind {
        name: "status_update",
        promise: Some(5.0),
        aim: 1.0,
        sql: "update public.agent_sms set provider_status = 'delivered', status = 'delivered', delivered_at = now() where provider_message_sid = $1",
        arguments: |subject| vec![Some(subject.sid.clone())],
        roles: WRITERS,
        note: "a plain UPDATE by sid of a message without a report, half of them of the last week, half of three years",
    },
    Kind {
        name: "insert",
        promise: None,
        aim: 1.0,
        sql: "insert into public.agent_sms (deployment_id, phone_number, message_content, status, provider, provider_message_sid)
              values ($1::text::uuid, $2, 'Your visit is on Saturday at 10:00. Reply YES to confirm.', 'sent', $3, $4)",
        arguments: |subject| {
            let phone = format!("+25078{:07}", subject.number % 300_000);
            let sid = format!("SMnew{:029x}", subject.number);
            vec![Some(subject.deployment.clone()), Some(phone), Some(subject.provider.clone()), Some(sid)]
        },
        roles: WRITERS,
        note: "a plain INSERT that leaves client, segments and prices to the database",
    },
    Kind {
        name: "rpc_status",
        promise: Some(5.0),
        aim: 1.0,
        sql: "select public.update_agent_sms_status(p_provider_message_sid => $1, p_status => 'delivered', p_provider => $2)",
        arguments: |subject| vec![Some(subject.sid.clone()), Some(subject.sid_provider.clone())],
        roles: WRITERS,
        note: "the same news through update_agent_sms_status, as a workflow tells it",
    },
    Kind {
        name: "rpc_log",
        promise: None,
        aim: 1.0,
        sql: "select public.log_agent_sms(p_deployment_id => $1::text::uuid, p_phone_number => $2, p_provider => $3, p_provider_message_sid => $4,
                p_message_content => 'Your visit is on Saturday at 10:00. Reply YES to confirm.', p_status => 'sent')",
        arguments: |subject| {
            let phone = format!("+25078{:07}", subject.number % 300_000);
            let sid = format!("SMnew{:029x}", subject.number);
            vec![Some(subject.deployment.clone()), Some(phone), Some(subject.provider.clone()), Some(sid)]
        },
        roles: WRITERS,
        note: "the same message through log_agent_sms, as a workflow writes it",
    },
];

/// What a dashboard narrows its figures to, in turn: days ago, client, deployment, kind of agent.
fn filters(subject: &Subject) -> Vec<Option<String>> {
    let chosen = |turn: usize, value: &str| (subject.number % 4 == turn).then(|| value.to_owned());
    let kind = chosen(3, &subject.type_name);
    vec![Some(subject.days_ago.to_string()), chosen(1, &subject.client), chosen(2, &subject.deployment), kind]
}

impl Kind {
    pub fn arguments(&self, subject: &Subject) -> Vec<Option<String>> {
        (self.arguments)(subject)
    }

    fn writes(&self) -> bool {
        self.roles == WRITERS
    }
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::Service => "service",
        }
    }

    /// Opens a transaction as PostgREST does.
    pub fn begin(self, subject: &Subject) -> String {
        match self {
            Role::Member => format!(
                r#"begin; set local role authenticated; select set_config('request.jwt.claims', '{{"sub": "{}", "role": "authenticated"}}', true)"#,
                subject.user
            ),
            Role::Service => "begin; set local role service_role".to_owned(),
        }
    }
}

/// Milliseconds until the rows were there, and until all was committed.
#[derive(Clone, Copy)]
struct Took {
    statement: f64,
    committed: f64,
}

pub async fn measure(options: &Sms, seed: u64, faults: &mut Vec<String>) -> Result<Vec<Figure>> {
    let sizes = if options.sms_rows.is_empty() { &[360_000][..] } else { &options.sms_rows };
    let mut figures = Vec::new();
    for rows in sizes {
        progress::headline(&format!("{rows} SMS"));
        figures.extend(Box::pin(at_size(options, *rows, seed, faults)).await?);
    }
    Ok(figures)
}

async fn at_size(options: &Sms, rows: i64, seed: u64, faults: &mut Vec<String>) -> Result<Vec<Figure>> {
    let step = Step::start("a server of its own", None);
    let keep = options.sms_keep.as_ref().map(|folder| folder.join(size(rows)));
    let mut server = SmsServer::start(keep.as_deref()).await?;
    step.finish();
    let owner = server.connect().await?;
    if server.is_loaded() {
        let step = Step::start("vacuum and statistics", None);
        owner.batch_execute("vacuum (analyze)").await?;
        step.finish();
    } else {
        sms_rows::fill(&owner, rows).await?;
        server.set_loaded()?;
    }
    drop(owner);
    server.restart().await?;
    let owner = server.connect().await?;
    let place = place(&owner, rows).await?;
    let mut subjects = Subjects::draw(&owner, seed).await?;

    let mut figures = sms_plans::heap_fetches(&owner, &size(rows), &mut subjects, &place, faults).await?;
    let mut seen = sms_plans::Scans::begin(&owner).await?;
    let wanted = |kind: &&Kind| options.sms_kind.is_empty() || options.sms_kind.iter().any(|name| name == kind.name);
    for kind in KINDS.iter().filter(wanted) {
        for role in kind.roles {
            let step = Step::start(&format!("{} as {}, warm", kind.name, role.name()), None);
            let took = warm(&owner, kind, *role, &mut subjects, options.sms_asked).await?;
            step.finish();
            seen.check(&owner, kind, *role, faults).await?;
            figures.extend(told(kind, *role, rows, "warm", &took, &place));
        }
        sms_plans::check(&owner, kind, &mut subjects, faults).await?;
    }
    // As the sweep does each minute.
    owner.query("select private.fold_sms_changes(1000000)", &[]).await?;
    drop(owner);
    let cold_note = format!(
        "{place}; before each the server is started anew and the kernel drops its files from memory (what the disk below remembers stays)"
    );
    for kind in KINDS.iter().filter(wanted).filter(|_| options.sms_cold > 0) {
        for role in kind.roles {
            let step = Step::start(&format!("{} as {}, cold", kind.name, role.name()), None);
            let took = cold(&mut server, kind, *role, &mut subjects, options.sms_cold).await?;
            step.finish();
            figures.extend(told(kind, *role, rows, "cold", &took, &cold_note));
        }
    }
    Ok(figures)
}

/// As 360k or 36m.
fn size(rows: i64) -> String {
    match rows {
        rows if rows % 1_000_000 == 0 => format!("{}m", rows / 1_000_000),
        rows if rows % 1_000 == 0 => format!("{}k", rows / 1_000),
        rows => rows.to_string(),
    }
}

async fn place(owner: &Client, rows: i64) -> Result<String> {
    let sql = "select pg_table_size('public.agent_sms')::bigint, pg_indexes_size('public.agent_sms')::bigint, current_setting('server_version'),
                      current_setting('shared_buffers'), current_setting('fsync')";
    let row = owner.query_one(sql, &[]).await?;
    let (table, indexes, version, buffers, fsync): (i64, i64, String, String, String) =
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
    Ok(format!(
        "{rows} rows of agent_sms ({} MB and {} MB of indexes), PostgreSQL {version} with default settings (shared_buffers {buffers}, fsync {fsync})",
        table / 1_000_000,
        indexes / 1_000_000
    ))
}

/// The questions of one run, each about another deployment.
pub struct Subjects {
    known: Vec<Subject>,
    sids: Vec<(String, String)>,
    dice: Dice,
    asked: usize,
}

impl Subjects {
    async fn draw(owner: &Client, seed: u64) -> Result<Self> {
        let mut dice = Dice(seed);
        let sql = "select id::text, client_id::text, user_id::text, type_name, provider from bench.slots order by slot";
        let slots = owner.query(sql, &[]).await?;
        let known = (0..SUBJECTS).filter_map(|_| {
            let row = slots.get((dice.roll() * slots.len() as f64) as usize)?;
            let text = |column: usize| row.get::<_, String>(column);
            let (deployment, client, user) = (text(0), text(1), text(2));
            Some(Subject { deployment, client, user, type_name: text(3), provider: text(4), ..Subject::default() })
        });
        let known: Vec<Subject> = known.collect();
        let sql = "(select provider_message_sid, provider from public.agent_sms where client_id in (select client_id from bench.slots)
                      and sent_at > now() - interval '7 days' and status = 'sent' order by sent_at desc limit 10000)
                   union all
                   (select provider_message_sid, provider from public.agent_sms tablesample system (least(100, 100.0 * 400000 / greatest(
                      (select reltuples from pg_class where oid = 'public.agent_sms'::regclass), 1))) repeatable (1) where status = 'sent' limit 10000)";
        let rows = owner.query(sql, &[]).await?;
        let mut sids: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        // In any order.
        for place in (1..sids.len()).rev() {
            sids.swap(place, (dice.roll() * (place + 1) as f64) as usize);
        }
        sids.dedup();
        ensure!(!known.is_empty() && !sids.is_empty(), "there is nobody and nothing to ask about");
        // New messages get ids that no earlier run gave in a database that was kept.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs();
        let asked = usize::try_from(seconds << 20).context("a number for the first question")?;
        Ok(Self { known, sids, dice, asked })
    }

    pub fn next(&mut self) -> Result<Subject> {
        let at = (self.dice.roll() * self.known.len() as f64) as usize;
        let mut subject = self.known.get(at).cloned().context("a deployment to ask about")?;
        subject.days_ago = (self.dice.roll() * 60.0) as u32;
        subject.number = self.asked;
        (subject.sid, subject.sid_provider) = self.sids.get(self.asked % self.sids.len()).cloned().unwrap_or_default();
        self.asked += 1;
        Ok(subject)
    }
}

async fn ask(client: &Client, prepared: &Statement, kind: &Kind, role: Role, subject: &Subject) -> Result<Took> {
    let arguments = kind.arguments(subject);
    let arguments: Vec<&(dyn ToSql + Sync)> = arguments.iter().map(|argument| argument as _).collect();
    client.batch_execute(&role.begin(subject)).await?;
    let begun = Instant::now();
    let changed = if kind.sql.starts_with("select") {
        client.query(prepared, &arguments).await?;
        1
    } else {
        client.execute(prepared, &arguments).await?
    };
    let statement = begun.elapsed().as_secs_f64() * 1e3;
    ensure!(changed == 1, "{} changed {changed} rows", kind.name);
    client.batch_execute("commit").await?;
    Ok(Took { statement, committed: begun.elapsed().as_secs_f64() * 1e3 })
}

async fn warm(client: &Client, kind: &Kind, role: Role, subjects: &mut Subjects, asked: usize) -> Result<Vec<Took>> {
    let prepared = client.prepare(kind.sql).await?;
    let mut took = Vec::with_capacity(asked);
    for number in 0..WARM_UP + asked {
        let one = ask(client, &prepared, kind, role, &subjects.next()?).await?;
        if number >= WARM_UP {
            took.push(one);
        }
    }
    Ok(took)
}

/// The first question after a start: the way to a plan is part of the answer's time.
async fn cold(
    server: &mut SmsServer,
    kind: &Kind,
    role: Role,
    subjects: &mut Subjects,
    times: usize,
) -> Result<Vec<Took>> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        server.restart_cold().await?;
        let client = server.connect().await?;
        let begun = Instant::now();
        let prepared = client.prepare(kind.sql).await?;
        let preparing = begun.elapsed().as_secs_f64() * 1e3;
        let one = ask(&client, &prepared, kind, role, &subjects.next()?).await?;
        took.push(Took { statement: preparing + one.statement, committed: preparing + one.committed });
    }
    Ok(took)
}

fn told(kind: &Kind, role: Role, rows: i64, heat: &str, took: &[Took], place: &str) -> Vec<Figure> {
    let group = format!("sql.sms_{}.{}.{}", size(rows), kind.name, role.name());
    let figure = |what: &str, values: &[f64], percent: f64, more: &str| {
        let name = format!("{group}.{heat}_{what}");
        let note = format!("{}{more}, asked by {}, with the way there and back; {place}", kind.note, role.name());
        let figure = Figure::new(name, percentile(values, percent), "ms", values.len() as u64, &note);
        let figure = figure.at_most(kind.promise, Some(kind.aim));
        match kind.promise {
            Some(promise) => figure.beside("promise of the first documents", promise),
            None => figure,
        }
    };
    let statements: Vec<f64> = took.iter().map(|one| one.statement).collect();
    let committed: Vec<f64> = took.iter().map(|one| one.committed).collect();
    // Of a handful nothing but the middle and the worst can be said.
    let (high, percent) = if heat == "cold" { ("max_ms", 100.0) } else { ("p95_ms", 95.0) };
    let mut figures = vec![figure("p50_ms", &statements, 50.0, ""), figure(high, &statements, percent, "")];
    if kind.writes() {
        figures.push(figure("committed_p50_ms", &committed, 50.0, ", until it is on the disk"));
        figures.push(figure(&format!("committed_{high}"), &committed, percent, ", until it is on the disk"));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_a_person_would_say_them() {
        assert_eq!([360_000, 3_600_000, 36_000_000, 10_001].map(size), ["360k", "3600k", "36m", "10001"]);
    }

    #[test]
    fn a_dashboard_narrows_to_one_thing_at_a_time() {
        for number in 0..4 {
            let subject = Subject { number, ..Subject::default() };
            assert_eq!(filters(&subject).iter().flatten().count(), if number == 0 { 1 } else { 2 });
        }
    }

    #[test]
    fn every_question_has_as_many_arguments_as_its_text_has_places() {
        for kind in KINDS {
            let places = (1..9).filter(|n| kind.sql.contains(&format!("${n}"))).count();
            assert_eq!(kind.arguments(&Subject::default()).len(), places, "{}", kind.name);
        }
    }
}
