//! The matrix of rights: every table and view x role x verb, every function x role, generated from the catalogue and
//! tried on real rows. Whatever somebody is denied, somebody else is allowed on the same row in the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::json;
use tokio_postgres::Client;

use crate::support::{Db, beside, check_snapshot, lines, refusal};

const PERSON: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const MEMBER: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const OTHER: &str = "aaaaaaaa-0000-4000-8000-000000000003";

/// Who asks.
struct Role {
    title: &'static str,
    role: &'static str,
    user: Option<&'static str>,
}

/// The key of writers outside: it calls its functions, and touches no table itself.
const WRITER: Role = Role { title: "sms_writer", role: "sms_writer", user: None };

const ROLES: [Role; 5] = [
    Role { title: "anon", role: "anon", user: None },
    Role { title: "own profile", role: "authenticated", user: Some(PERSON) },
    Role { title: "member of the client", role: "authenticated", user: Some(MEMBER) },
    Role { title: "other tenant", role: "authenticated", user: Some(OTHER) },
    Role { title: "service_role", role: "service_role", user: None },
];

/// Whose row it is: that of PERSON, who talks with a client; that of this client, or of another person it talks with;
/// that of another client; or there since the migrations.
const LABELS: [&str; 4] = ["own", "client's", "other", "shared"];

struct Relation {
    name: String,
    is_table: bool,
    /// SQL of a text that tells its rows apart, for alias `t`.
    key: String,
    columns: Vec<String>,
    /// Those that an update may name.
    plain_columns: Vec<String>,
    /// Row keys by label.
    rows: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Role {
    /// Becomes this role until the savepoint is rolled back.
    async fn assume(&self, client: &Client) {
        let claims = match self.user {
            Some(user) => json!({"sub": user, "role": self.role}).to_string(),
            None => json!({"role": self.role}).to_string(),
        };
        let sql = format!("set local role {}; select set_config('request.jwt.claims', '{claims}', true)", self.role);
        client.batch_execute(&sql).await.unwrap();
    }
}

#[derive(PartialEq)]
enum Tried {
    /// So many rows were seen or changed.
    Rows(usize),
    Denied,
    /// The right is there; a rule of the table's own refuses.
    Refused(String),
}

#[tokio::test]
async fn every_right_on_every_table_is_the_stored_one() {
    let db = Db::new().await;
    let relations = prepare(&db).await;
    let mut text = String::new();
    let mut wrong = Vec::new();
    for relation in &relations {
        let _ = writeln!(text, "{}", relation.name);
        for role in &ROLES {
            for verb in ["select", "insert", "update", "delete"] {
                let mut cells = Vec::new();
                for label in LABELS {
                    let Some(keys) = relation.rows.get(label) else { continue };
                    let tried = attempt(&db.admin, relation, role, verb, keys).await;
                    if let Some(why) = judge(relation, role, verb, label, keys.len(), &tried) {
                        wrong.push(format!("{}: {} may {verb} {label}: {why}", relation.name, role.title));
                    }
                    cells.push((label, if verb == "insert" { 1 } else { keys.len() }, tried));
                }
                let _ = writeln!(text, "  {:<21} {verb}  {}", role.title, show(&cells));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    check_snapshot("rls.snap", &text);
}

fn show(cells: &[(&str, usize, Tried)]) -> String {
    if cells.iter().all(|(_, _, tried)| *tried == Tried::Denied) {
        return "denied".to_owned();
    }
    let cells = cells.iter().map(|(label, all, tried)| match tried {
        Tried::Rows(found) => format!("{label} {found}/{all}"),
        Tried::Denied => format!("{label} denied"),
        Tried::Refused(code) => format!("{label} {code}"),
    });
    cells.collect::<Vec<_>>().join(", ")
}

/// What holds whatever the snapshot says.
fn judge(relation: &Relation, role: &Role, verb: &str, label: &str, all: usize, tried: &Tried) -> Option<&'static str> {
    let nothing = matches!(tried, Tried::Denied | Tried::Rows(0));
    match (role.title, verb) {
        ("anon", _) if *tried != Tried::Denied => Some("nobody without an account has any right"),
        ("own profile" | "member of the client" | "other tenant", "insert" | "update" | "delete")
            if *tried != Tried::Denied =>
        {
            Some("users write through functions only")
        }
        ("own profile", "select") if label != "own" && label != "shared" && !nothing => Some("that is not theirs"),
        ("member of the client", "select") if label == "other" && !nothing => Some("that is another tenant's"),
        ("other tenant", "select") if (label == "own" || label == "client's") && !nothing => {
            Some("that is another tenant's")
        }
        ("service_role", "select") if *tried != Tried::Rows(all) => Some("the functions must see every row"),
        ("service_role", "insert") if relation.is_table && *tried != Tried::Rows(1) => {
            Some("the functions must be able to write every table")
        }
        _ => None,
    }
}

/// Tries a verb on the rows of one label; nothing of it stays.
async fn attempt(client: &Client, relation: &Relation, role: &Role, verb: &str, keys: &BTreeSet<String>) -> Tried {
    client.batch_execute("begin").await.unwrap();
    let tried = attempt_inside(client, relation, role, verb, keys).await;
    client.batch_execute("rollback").await.unwrap();
    tried
}

async fn attempt_inside(
    client: &Client,
    relation: &Relation,
    role: &Role,
    verb: &str,
    keys: &BTreeSet<String>,
) -> Tried {
    let Relation { name, key, .. } = relation;
    let some: Vec<&str> = keys.iter().map(String::as_str).collect();
    let outcome = match verb {
        "select" => {
            role.assume(client).await;
            client.query(&format!("select from {name} t where {key} = any ($1)"), &[&some]).await.map(|rows| rows.len())
        }
        "insert" => {
            // A row that was there is taken away and put back, so that nothing but rights can be in the way.
            let one = some.first().copied();
            let columns = relation.columns.join(", ");
            let keep = format!(
                "create temporary table kept on commit drop as select {columns} from {name} t where {key} = $1"
            );
            let keep = keep.replace("$1", &quote(one.unwrap_or_default()));
            let take = format!(
                "{keep}; grant select on kept to public; set local session_replication_role = replica;
                 delete from {name} t where {key} = {}; set local session_replication_role = origin",
                quote(one.unwrap_or_default())
            );
            if relation.is_table {
                client.batch_execute(&take).await.unwrap();
            }
            role.assume(client).await;
            let identity = "overriding system value";
            let from = if relation.is_table { "pg_temp.kept".to_owned() } else { format!("{name} where false") };
            let sql = format!("insert into {name} ({columns}) {identity} select {columns} from {from}");
            client.execute(&sql, &[]).await.map(|count| count as usize)
        }
        "update" => {
            let column = allowed_column(client, relation, role).await;
            role.assume(client).await;
            let sql = format!("update {name} t set {column} = {column} where {key} = any ($1)");
            client.execute(&sql, &[&some]).await.map(|count| count as usize)
        }
        _ => {
            role.assume(client).await;
            client
                .execute(&format!("delete from {name} t where {key} = any ($1)"), &[&some])
                .await
                .map(|count| count as usize)
        }
    };
    match outcome {
        Ok(found) => Tried::Rows(found),
        Err(error) => match refusal(&error).code.as_str() {
            "42501" => Tried::Denied,
            // A view of sums is written to by nobody; that is said before the right is looked at.
            "55000" if !relation.is_table => Tried::Denied,
            "23503" => Tried::Refused("still referred to".to_owned()),
            "PT409" => Tried::Refused("append-only".to_owned()),
            code => Tried::Refused(format!("{code} {}", refusal(&error).message)),
        },
    }
}

/// A column that the role may update, or any.
async fn allowed_column(client: &Client, relation: &Relation, role: &Role) -> String {
    let sql = format!(
        "select a from unnest($1::text[]) a order by has_column_privilege('{}', '{}', a, 'update') desc, a = 'id', a limit 1",
        role.role, relation.name
    );
    client.query_one(&sql, &[&relation.plain_columns]).await.unwrap().get(0)
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Every relation of the catalogue, with rows of every label in it.
async fn prepare(db: &Db) -> Vec<Relation> {
    let mut relations = relations(&db.admin).await;
    note_rows(&db.admin, &mut relations, "shared").await;
    db.run(&std::fs::read_to_string(beside("rls_rows.sql")).unwrap()).await;
    let client = |n: i32, user: &str| format!("insert into made values ({n}, rls_rows.client({n}, '{user}'))");
    let person = |n: i32, of: i32, user: &str| {
        format!("select rls_rows.person({n}, (select client from made where made.n = {of}), {user})")
    };
    db.run("create temporary table made (n integer, client uuid)").await;
    for (label, steps) in [
        ("client's", vec![client(1, MEMBER), person(2, 1, "null")]),
        ("own", vec![person(1, 1, &quote(PERSON))]),
        ("other", vec![client(2, OTHER), person(3, 2, &quote(OTHER))]),
    ] {
        db.run(&steps.join(";")).await;
        note_rows(&db.admin, &mut relations, label).await;
    }
    for relation in &mut relations {
        // A row of sums that later rows were added to is no longer what it was: it counts as the one it has become.
        let keys = lines(&db.admin, &format!("select {} from {} t", relation.key, relation.name)).await;
        let there: BTreeSet<String> = keys.into_iter().collect();
        for known in relation.rows.values_mut() {
            known.retain(|key| there.contains(key));
        }
    }
    for relation in &relations {
        for label in ["client's", "other"] {
            assert!(
                relation.rows.contains_key(label),
                "{} has no row of \"{label}\" to try rights on: insert one in tests/sql/rls_rows.sql",
                relation.name
            );
        }
    }
    relations
}

async fn relations(client: &Client) -> Vec<Relation> {
    let sql = "
        select format('%I.%I', n.nspname, c.relname), c.relkind in ('r', 'p'),
               coalesce((select 'jsonb_build_array(' || string_agg(format('t.%I', a.attname), ', ' order by a.attnum) || ')::text'
                           from pg_constraint p join pg_attribute a on a.attrelid = p.conrelid and a.attnum = any (p.conkey)
                          where p.conrelid = c.oid and p.contype = 'p'), 'to_jsonb(t)::text'),
               (select array_agg(format('%I', a.attname) order by a.attnum) from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''),
               (select array_agg(format('%I', a.attname) order by a.attname) from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity = '')
          from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v', 'm', 'f')
         order by n.nspname collate \"C\", c.relname collate \"C\"";
    let rows = client.query(sql, &[]).await.unwrap();
    let relation = |row: &tokio_postgres::Row| Relation {
        name: row.get(0),
        is_table: row.get(1),
        key: row.get(2),
        columns: row.get(3),
        plain_columns: row.get(4),
        rows: BTreeMap::new(),
    };
    rows.iter().map(relation).collect()
}

/// The rows that are new since the last look get this label.
async fn note_rows(client: &Client, relations: &mut [Relation], label: &'static str) {
    for relation in relations {
        let keys = lines(client, &format!("select {} from {} t", relation.key, relation.name)).await;
        let fresh: BTreeSet<String> =
            keys.into_iter().filter(|key| !relation.rows.values().any(|known| known.contains(key))).collect();
        if !fresh.is_empty() {
            relation.rows.insert(label, fresh);
        }
    }
}

#[tokio::test]
async fn every_right_on_every_function_is_the_stored_one() {
    let db = Db::new().await;
    let sql = "
        select format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
               format('%s %I.%I(%s)', case p.prokind when 'p' then 'call' else 'select' end, n.nspname, p.proname,
                 (select string_agg('null::' || format_type(t, null), ', ' order by o) from unnest(p.proargtypes) with ordinality u (t, o)))
          from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where n.nspname in ('public', 'private')
         order by n.nspname collate \"C\", p.proname collate \"C\", p.oid::regprocedure::text collate \"C\"";
    let functions = db.admin.query(sql, &[]).await.unwrap();
    assert!(functions.len() > 60);
    let mut text = String::new();
    let mut wrong = Vec::new();
    for function in functions {
        let (name, call): (String, String) = (function.get(0), function.get(1));
        let mut allowed = Vec::new();
        let once = ROLES.iter().filter(|role| role.title != "own profile" && role.title != "other tenant");
        for role in once.chain([&WRITER]) {
            db.run("begin").await;
            role.assume(&db.admin).await;
            let outcome = db.admin.batch_execute(&call).await;
            db.run("rollback").await;
            let denied = outcome.is_err_and(|error| {
                let refusal = refusal(&error);
                refusal.code == "42501" && !refusal.message.contains(" at ")
            });
            if !denied {
                allowed.push(role.role);
            }
        }
        if allowed.contains(&"anon") || (allowed.contains(&"authenticated") && !FOR_POLICIES.contains(&name.as_str())) {
            wrong.push(format!("{name} can be called by {}", allowed.join(", ")));
        }
        if allowed.contains(&"sms_writer") != FOR_WRITERS.iter().any(|part| name.contains(part)) {
            wrong
                .push(format!("{name}: a key of sms_writer calls the functions for writers, all of them and no other"));
        }
        if !allowed.contains(&"service_role") {
            wrong.push(format!(
                "{name} cannot be called by the functions' role, so nobody shows that the denials are denials"
            ));
        }
        let _ = writeln!(text, "{name}: {}", allowed.join(", "));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    check_snapshot("rls_functions.snap", &text);
}

/// What a key of sms_writer may call: the functions that PostgREST shows, and what they do it with.
const FOR_WRITERS: [&str; 6] = [
    "public.log_agent_sms(",
    "public.record_agent_sms_reply(",
    "public.update_agent_sms_status(",
    "private.write_agent_sms(",
    "private.write_agent_sms_reply(",
    "private.write_agent_sms_status(",
];

#[tokio::test]
async fn a_key_of_writers_reads_and_writes_no_table() {
    let db = Db::new().await;
    let relations = relations(&db.admin).await;
    assert!(relations.len() > 40);
    let mut open = Vec::new();
    for relation in &relations {
        for verb in ["select from", "delete from"] {
            db.run("begin").await;
            WRITER.assume(&db.admin).await;
            let outcome = db.admin.batch_execute(&format!("{verb} {} where false", relation.name)).await;
            db.run("rollback").await;
            // Of a view of sums it is said before the right is looked at that nobody deletes from it.
            if !outcome.is_err_and(|error| ["42501", "55000"].contains(&refusal(&error).code.as_str())) {
                open.push(format!("{verb} {}", relation.name));
            }
        }
    }
    assert!(open.is_empty(), "{}", open.join("\n"));
}

/// What policies call, and what reads for somebody signed in, runs with the rights of whoever asks.
const FOR_POLICIES: [&str; 11] = [
    "private.change_since(p_now numeric, p_before numeric)",
    "private.my_agent_type_ids()",
    "private.my_client_ids()",
    "private.my_profile_ids()",
    "private.percent_of(p_part numeric, p_whole numeric)",
    "private.recount_sms(p_deployments uuid[], p_from timestamp with time zone, p_until timestamp with time zone)",
    "private.sms_figures(p_sums agent_sms_changes[], p_from timestamp with time zone, p_until timestamp with time zone)",
    "private.sms_pieces(p_from timestamp with time zone, p_until timestamp with time zone)",
    "private.sms_sums(p_deployments uuid[], p_from timestamp with time zone, p_until timestamp with time zone)",
    "private.uuid_or_null(p_text text)",
    "public.get_sms_metrics(p_start timestamp with time zone, p_end timestamp with time zone, p_client_id uuid, p_deployment_id text, p_agent_type_name text)",
];
