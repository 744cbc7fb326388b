//! The migration files: once, twice, each again, and on a database that had tables of these names before.

use std::collections::BTreeSet;

use ihuza_sim::migrate::{self, Migration};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::schema::dump;
use crate::support::{Db, at_text, lines, root, rpc, token, value};

fn files() -> Vec<Migration> {
    migrate::read(&root().join("migrations")).unwrap()
}

/// Every row that migrations wrote, table by table.
async fn contents(client: &Client) -> Vec<String> {
    let tables = lines(
        client,
        "select format('%I.%I', schemaname, tablename) from pg_catalog.pg_tables where schemaname in ('public', 'private') order by 1",
    )
    .await;
    let mut all = Vec::new();
    for table in tables {
        let sql = format!("select '{table}: ' || to_jsonb(t)::text from {table} t order by 1");
        all.extend(lines(client, &sql).await);
    }
    all
}

#[tokio::test]
async fn all_files_apply_to_an_empty_database_and_a_second_time_nothing_happens() {
    let mut client = Db::empty().await;
    let files = files();
    let versions: Vec<String> = files.iter().map(|file| file.version.clone()).collect();

    let foreseen = migrate::apply(&mut client, &files, true).await.unwrap();
    assert_eq!(foreseen.applied, versions);
    assert_eq!(
        dump(&client).await.lines().filter(|line| line.starts_with("table")).count(),
        0,
        "a dry run writes nothing"
    );

    let first = migrate::apply(&mut client, &files, false).await.unwrap();
    assert_eq!(first.applied, versions);
    let (schema, rows) = (dump(&client).await, contents(&client).await);
    assert!(schema.contains("table public.message_delivery_log"));

    let second = migrate::apply(&mut client, &files, false).await.unwrap();
    assert_eq!((second.applied, second.changed, second.unknown), (vec![], vec![], vec![]));
    assert_eq!(second.skipped, versions);
    assert_eq!(dump(&client).await, schema);
    assert_eq!(contents(&client).await, rows);
}

#[tokio::test]
async fn what_was_applied_is_recorded_as_the_supabase_cli_reads_it() {
    let mut client = Db::empty().await;
    let files = files();
    migrate::apply(&mut client, &files, false).await.unwrap();

    let columns = lines(
        &client,
        "select concat_ws(' ', column_name, data_type, is_nullable) from information_schema.columns
          where table_schema = 'supabase_migrations' and table_name = 'schema_migrations' order by 1",
    )
    .await;
    assert_eq!(columns, ["name text YES", "statements ARRAY YES", "version text NO"]);
    let key = value(
        &client,
        "select pg_get_constraintdef(oid) from pg_constraint where conrelid = 'supabase_migrations.schema_migrations'::regclass and contype = 'p'",
    )
    .await;
    assert_eq!(key, "PRIMARY KEY (version)");

    for file in &files {
        assert!(
            file.version.len() == 14 && file.version.bytes().all(|byte| byte.is_ascii_digit()),
            "{}: a version is YYYYMMDDHHMMSS",
            file.path.display()
        );
        let sql = "select name, statements from supabase_migrations.schema_migrations where version = $1";
        let row = client.query_one(sql, &[&file.version]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), file.name);
        let statements: Vec<String> = row.get(1);
        assert_eq!(statements, migrate::split(&file.sql).into_iter().map(|s| s.sql).collect::<Vec<_>>());
        for statement in statements {
            let word = statement.lines().find(|line| !line.starts_with("--")).unwrap_or_default().to_lowercase();
            assert!(
                !word.starts_with("begin") && !word.starts_with("commit") && !word.contains("concurrently"),
                "{}: a file is one transaction: {word}",
                file.path.display()
            );
        }
    }
}

/// Each while it is the newest; what later ones replace comes back when all run once more, in order.
#[tokio::test]
async fn every_file_may_run_again() {
    let mut client = Db::empty().await;
    let files = files();
    for file in &files {
        migrate::run_file(&mut client, &file.path).await.unwrap();
        let schema = dump(&client).await;
        migrate::run_file(&mut client, &file.path).await.unwrap();
        let now = dump(&client).await;
        let lost: Vec<&str> = schema.lines().filter(|line| !now.lines().any(|other| other == *line)).collect();
        assert_eq!(now, schema, "{} run again changes\n    {}", file.path.display(), lost.join("\n    "));
    }
    let (schema, rows) = (dump(&client).await, contents(&client).await);
    for file in &files {
        migrate::run_file(&mut client, &file.path).await.unwrap();
    }
    assert_eq!(dump(&client).await, schema);
    assert_eq!(contents(&client).await, rows);
}

/// What a project that followed the first documents has: profiles by account, calls by the old trunk's id.
const EARLIER: &str = "
create table public.profiles (
  user_id uuid primary key default gen_random_uuid(),
  phone_number text unique,
  full_name text,
  whatsapp_jid text,
  has_whatsapp boolean default false,
  allows_sms boolean default true,
  last_active_channel text,
  notification_preferences jsonb default '{}',
  created_at timestamptz default now()
);
insert into public.profiles (user_id, phone_number, full_name, has_whatsapp) values
  ('11111111-1111-4111-8111-111111111111', '+250788123456', 'Keza', true),
  ('22222222-2222-4222-8222-222222222222', '0788000002', 'Mugisha', false),
  ('33333333-3333-4333-8333-333333333333', null, 'Uwase', null);
create table public.voice_calls (
  id uuid primary key default gen_random_uuid(),
  twilio_call_sid text unique,
  from_number text,
  to_number text,
  locale text,
  status text default 'completed',
  started_at timestamptz default now(),
  ended_at timestamptz,
  duration_seconds integer,
  created_at timestamptz default now()
);
create index idx_voice_calls_twilio_sid on public.voice_calls (twilio_call_sid);
insert into public.voice_calls (id, twilio_call_sid, from_number, to_number, status, started_at, ended_at) values
  ('44444444-4444-4444-8444-444444444444', 'CA-1', '+250788123456', '+250788000000', 'completed', '2029-12-31 07:00Z', '2029-12-31 07:03Z'),
  ('55555555-5555-4555-8555-555555555555', null, 'anonymous', '+250788000000', 'completed', '2029-12-31 07:00Z', '2029-12-31 07:03Z');
";

#[tokio::test]
async fn profiles_and_calls_that_were_there_before_are_kept_and_usable() {
    let mut client = Db::empty().await;
    client.batch_execute(EARLIER).await.unwrap();
    migrate::apply(&mut client, &files(), false).await.unwrap();

    let people = "select jsonb_agg(jsonb_build_array(full_name, phone_number, has_whatsapp, user_id) order by full_name) from public.profiles";
    assert_eq!(
        value(&client, people).await,
        json!([
            ["Keza", "+250788123456", true, "11111111-1111-4111-8111-111111111111"],
            ["Mugisha", "0788000002", false, "22222222-2222-4222-8222-222222222222"],
            ["Uwase", null, null, "33333333-3333-4333-8333-333333333333"]
        ])
    );
    let calls = "select jsonb_agg(jsonb_build_array(mtn_call_sid, from_number, client_id is not null) order by mtn_call_sid) from public.voice_calls";
    assert_eq!(value(&client, calls).await, json!([["CA-1", "+250788123456", true], [null, "anonymous", true]]));
    let old = "select count(*) from information_schema.columns where table_schema = 'public' and column_name = 'twilio_call_sid'";
    assert_eq!(value(&client, old).await, 0);

    let open = "select jsonb_agg(conname order by conname) from pg_constraint where connamespace = 'public'::regnamespace and not convalidated";
    assert_eq!(
        value(&client, open).await,
        json!(["profiles_phone_number_is_e164"]),
        "only what rows of before break stays open"
    );

    client.batch_execute("set role service_role").await.unwrap();
    let claim = json!({"correlation_id": "earlier", "call_ref": "CA-1", "profile_ref": "11111111-1111-4111-8111-111111111111",
                       "lease_token": token(1), "now": at_text(0)});
    let answer = rpc(&client, "begin_call_notification", claim).await;
    assert_eq!(answer["decision"], "go", "{answer}");
    assert_eq!(answer["profile"]["phone_number"], "+250788123456");
    assert_eq!(answer["profile"]["whatsapp"], "yes");
    let people: Value = value(&client, "select count(*) from public.profiles").await;
    assert_eq!(people, 3, "nobody is there twice");
    let message = json!({"correlation_id": "new", "provider": "mtn", "provider_message_id": "m-1", "from": "+250788123456", "to": "8080",
                         "text": "yes", "lease_token": token(2), "now": at_text(1)});
    let answer = rpc(&client, "begin_sms_turn", message).await;
    assert_eq!(answer["decision"], "go", "{answer}");
    let refused = client.execute("insert into public.profiles (phone_number) values ('0788000003')", &[]).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.as_db_error().unwrap().constraint(), Some("profiles_phone_number_is_e164"));
}

#[tokio::test]
async fn profiles_keyed_by_their_account_take_in_people_without_one() {
    let mut client = Db::empty().await;
    let earlier = "
        insert into auth.users (id) values ('11111111-1111-4111-8111-111111111111');
        create table public.profiles (user_id uuid primary key references auth.users (id) on delete cascade, phone_number text unique not null);
        insert into public.profiles values ('11111111-1111-4111-8111-111111111111', '+250788123456');";
    client.batch_execute(earlier).await.unwrap();
    migrate::apply(&mut client, &files(), false).await.unwrap();
    client.batch_execute("set role service_role").await.unwrap();
    for (n, from) in ["+250788123456", "+250788123457", "+250788123458"].into_iter().enumerate() {
        let message = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": format!("m-{n}"), "from": from, "to": "8080",
                             "text": "hello", "lease_token": token(1), "now": at_text(0)});
        assert_eq!(rpc(&client, "begin_sms_turn", message).await["decision"], "go");
    }
    let people = value(&client, "select jsonb_agg(user_id order by phone_number) from public.profiles").await;
    assert_eq!(people, json!(["11111111-1111-4111-8111-111111111111", null, null]));
}

#[tokio::test]
async fn the_health_check_names_the_newest_file() {
    let db = Db::new().await;
    let newest = files().pop().unwrap().version;
    assert_eq!(db.rpc("health_check", json!({})).await, json!({"ok": true, "migrations": newest}));
}

/// Applies all to a database with `earlier` in it; the trouble it must end in.
async fn refused(earlier: &str) -> Option<String> {
    let mut client = Db::empty().await;
    client.batch_execute(earlier).await.unwrap();
    let outcome = migrate::apply(&mut client, &files(), false).await;
    outcome.err().map(|trouble| trouble.to_string())
}

#[tokio::test]
async fn a_column_of_another_type_is_refused_by_name() {
    for (earlier, column) in [
        ("create table public.profiles (id bigint primary key, phone_number text)", "id is bigint, expected uuid"),
        (
            "create table public.profiles (id uuid primary key, phone_number bigint)",
            "phone_number is bigint, expected text",
        ),
        (
            "create table public.profiles (id uuid primary key, created_at timestamp)",
            "created_at is timestamp without time zone, expected timestamp with time zone",
        ),
        (
            "create table public.voice_calls (id uuid primary key, duration_seconds text)",
            "duration_seconds is text, expected integer",
        ),
        ("create table public.voice_calls (id text primary key)", "id is text, expected uuid"),
    ] {
        let said = refused(earlier).await.unwrap_or_else(|| panic!("accepted: {earlier}"));
        assert!(
            said.contains("has another shape than this migration needs") && said.contains(column),
            "{earlier}\n{said}"
        );
        assert!(said.contains("hint: The table was here before"), "{said}");
    }
}

#[tokio::test]
async fn ids_of_profiles_that_must_be_accounts_are_refused_with_advice() {
    let said =
        refused("create table public.profiles (id uuid primary key references auth.users (id), phone_number text)")
            .await;
    assert!(said.is_some_and(|said| said.contains("most people who call have no account")));
}

#[tokio::test]
async fn a_table_of_one_of_our_names_and_another_shape_is_never_taken_for_ours() {
    let full = Db::new().await;
    let sql = "select c.relname::text, format('create table public.%I (%s)', c.relname, string_agg(format('%I text', a.attname), ', ' order by a.attnum))
                 from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
                group by c.relname";
    let rows = full.admin.query(sql, &[]).await.unwrap();
    let mut tables: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(tables.len() > 20);
    let mut client = Db::empty().await;
    for row in &rows {
        client.batch_execute(row.get(1)).await.unwrap();
    }
    // Each stops the migrations where it would be made; without it they go on to the next.
    while !tables.is_empty() {
        let said = match migrate::apply(&mut client, &files(), false).await {
            Ok(_) => panic!("all columns text, and taken for ours: {tables:?}"),
            Err(trouble) => trouble.to_string(),
        };
        let words = said.split(" has another shape than this migration needs").next().unwrap();
        let table = words.rsplit([' ', '.']).next().unwrap_or_default().to_owned();
        assert!(tables.remove(&table), "not refused for its shape: {said}");
        client.batch_execute(&format!("drop table public.{table}")).await.unwrap();
    }
    migrate::apply(&mut client, &files(), false).await.unwrap();
    assert_eq!(dump(&client).await, dump(&full.admin).await);
}

#[tokio::test]
async fn every_column_of_every_table_is_among_those_that_are_checked() {
    let db = Db::new().await;
    let columns = lines(
        &db.admin,
        "select format('%s.%s %s', c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod))
           from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' order by 1",
    )
    .await;
    let mut checked = Vec::new();
    for file in files() {
        for call in file.sql.split("private.require_columns('public.").skip(1) {
            let mut parts = call.splitn(3, '\'');
            let (table, _, rest) = (parts.next().unwrap(), parts.next(), parts.next().unwrap());
            let (columns, _) = rest.split_once('\'').unwrap();
            let columns: serde_json::Map<String, Value> = serde_json::from_str(columns).unwrap();
            checked.extend(columns.iter().map(|(name, kind)| format!("{table}.{name} {}", kind.as_str().unwrap())));
        }
    }
    let forgotten: Vec<&String> = columns.iter().filter(|column| !checked.contains(column)).collect();
    assert!(forgotten.is_empty(), "private.require_columns is not asked about {forgotten:#?}");
}
