//! What is asked about SMS is found by an index, as the functions' role and as a client's member, at a size where the difference shows.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::plans::{Listener, judge};
use crate::support::{Db, in_full, refusal, text};

/// The busiest of fifty deployments, and its client.
const DEPLOYMENT: &str = "00000000-0000-4000-9000-000000000001";
const CLIENT: &str = "00000000-0000-4000-8000-000000000002";
const MEMBER: &str = "00000000-0000-4000-a000-000000000001";

/// One of the same client that seldom sends anything.
const QUIET: &str = "00000000-0000-4000-9000-000000000041";

/// Twenty clients of very different sizes, three years of SMS, a tenth of them failed; each with its own id of the provider.
const FILL: &str = "
insert into public.clients (id, slug, brand) select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'client-' || n, 'B' from generate_series(1, 20) n;
insert into public.agent_deployments (id, client_id, agent_type_id, name)
select ('00000000-0000-4000-9000-' || lpad(n::text, 12, '0'))::uuid, ('00000000-0000-4000-8000-' || lpad((1 + n % 20)::text, 12, '0'))::uuid,
       (select id from public.agent_types where name = (array['louis', 'arthur', 'alexandra'])[1 + n % 3]), 'deployment-' || n from generate_series(1, 50) n;
insert into public.client_members (client_id, user_id) values ('{client}', '{member}');
set session_replication_role = replica;
set synchronous_commit = off;
insert into public.agent_sms (client_id, deployment_id, phone_number, message_content, encoding, segments, status, provider_message_sid, sent_at, cost, cost_currency,
  revenue, revenue_currency)
select ('00000000-0000-4000-8000-' || lpad((1 + d % 20)::text, 12, '0'))::uuid, ('00000000-0000-4000-9000-' || lpad(d::text, 12, '0'))::uuid,
       '+25078' || lpad((n % 9999999)::text, 7, '0'), 'Muraho! Your appointment is tomorrow at 10:00. Reply to change it.', 'gsm7', 1,
       (array['delivered', 'delivered', 'delivered', 'delivered', 'delivered', 'delivered', 'sent', 'sent', 'sent', 'failed'])[1 + n % 10], 'SM' || n,
       now() - interval '1095 days' * (n::float8 / {rows}), 12, 'RWF', 18, 'RWF'
  from (select n, 1 + floor(50 * power(((n::bigint * 7919) % 10007)::float8 / 10007, 3))::integer as d from generate_series({rows}, 1, -1) n) x;
insert into public.agent_calls (client_id, deployment_id, started_at, duration_seconds)
select ('00000000-0000-4000-8000-' || lpad((1 + d % 20)::text, 12, '0'))::uuid, ('00000000-0000-4000-9000-' || lpad(d::text, 12, '0'))::uuid,
       now() - interval '1095 days' * (n::float8 / {rows} * 5), 60
  from (select n, 1 + floor(50 * power(((n::bigint * 7919) % 10007)::float8 / 10007, 3))::integer as d from generate_series({rows} / 5, 1, -1) n) x;
set session_replication_role = origin;
";

async fn full() -> Db {
    let db = Db::new().await;
    let sql = "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index
                where indrelid = 'public.agent_sms'::regclass and not exists (select from pg_constraint where conindid = indexrelid)";
    // Built afterwards, which takes a fraction of the time.
    for row in db.admin.query(sql, &[]).await.unwrap() {
        db.run(&format!("drop index {}", row.get::<_, String>(0))).await;
        db.run(&format!(
            "create temporary table if not exists indexes (sql text); insert into indexes values ($${}$$)",
            row.get::<_, String>(1)
        ))
        .await;
    }
    let rows = if in_full() { "400000" } else { "100000" };
    db.run(&FILL.replace("{rows}", rows).replace("{client}", CLIENT).replace("{member}", MEMBER)).await;
    db.run("do $$ declare v_sql text; begin for v_sql in select sql from pg_temp.indexes loop execute v_sql; end loop; end $$").await;
    db.run("select private.rebuild_sms_rollups(); select private.fold_sms_changes(1000000)").await;
    db.run("vacuum analyze").await;
    // A few that no fold has taken up.
    db.run("update public.agent_sms set status = 'delivered' where provider_message_sid in ('SM1', 'SM2', 'SM3')")
        .await;
    db
}

/// What is asked, and of which pieces of the answer there must be one.
fn questions() -> Vec<(&'static str, String)> {
    let month = "now() - interval '30 days', now()";
    vec![
        ("figures of a month", format!("select public.get_sms_metrics({month})")),
        ("figures of two years", "select public.get_sms_metrics(now() - interval '2 years', now())".to_owned()),
        ("figures of a client", format!("select public.get_sms_metrics({month}, '{CLIENT}')")),
        ("figures of a deployment", format!("select public.get_sms_metrics({month}, null, '{DEPLOYMENT}')")),
        ("figures of a kind of agents", format!("select public.get_sms_metrics({month}, null, null, 'louis')")),
        ("newest SMS of a deployment", format!("select * from public.v_agent_sms_enriched where deployment_id = '{DEPLOYMENT}' order by sent_at desc limit 50")),
        ("the next page of them", format!("select * from public.v_agent_sms_enriched where deployment_id = '{DEPLOYMENT}' and (sent_at, id) < (now() - interval '300 days', '{DEPLOYMENT}') order by sent_at desc, id desc limit 50")),
        ("newest of the timeline of a deployment", format!("select * from public.v_agent_communications where deployment_id = '{DEPLOYMENT}' order by occurred_at desc, id desc limit 50")),
        ("newest SMS of a quiet deployment", format!("select * from public.v_agent_sms_enriched where deployment_id = '{QUIET}' order by sent_at desc limit 50")),
        ("newest of the timeline of a quiet deployment", format!("select * from public.v_agent_communications where deployment_id = '{QUIET}' order by occurred_at desc, id desc limit 50")),
        ("a later page of the timeline", format!("select * from public.v_agent_communications where deployment_id = '{DEPLOYMENT}' and (occurred_at, id) < (now() - interval '300 days', '{DEPLOYMENT}') order by occurred_at desc, id desc limit 50")),
        ("newest of all", "select * from public.v_agent_communications order by occurred_at desc, id desc limit 50".to_owned()),
        ("newest of a client", format!("select * from public.v_agent_communications where client_id = '{CLIENT}' order by occurred_at desc limit 50")),
        ("what failed of late", "select phone_number, message_content, failure_reason, sent_at from public.v_agent_sms_enriched where status = 'failed' and sent_at >= now() - interval '7 days'".to_owned()),
        ("a message by its id", "select * from public.v_agent_sms_enriched where provider = 'twilio' and provider_message_sid = 'SM777'".to_owned()),
        ("days of a deployment", format!("select * from public.v_agent_sms_days where deployment_id = '{DEPLOYMENT}' and starts_at >= now() - interval '30 days'")),
        ("days of a client", format!("select * from public.v_agent_sms_days where client_id = '{CLIENT}' and starts_at >= now() - interval '30 days'")),
        ("one person's timeline", format!("select occurred_at, kind, direction, status, content, duration_seconds from public.v_agent_communications
            where phone_number = '+250780000777' and client_id = '{CLIENT}' order by occurred_at desc, id desc limit 50")),
        ("what has no margin", "select 'sms' as kind, id, sent_at as at from public.agent_sms where margin is null and sent_at >= now() - interval '7 days'
            union all select 'call', id, started_at from public.agent_calls where margin is null and started_at >= now() - interval '7 days' order by at desc limit 100".to_owned()),
        ("who answered after a call", "select t.name, count(*), count(s.replied_at) from public.agent_sms s join public.agent_deployments d on d.id = s.deployment_id
            left join public.agent_types t on t.id = d.agent_type_id where s.call_id is not null and s.sent_at >= now() - interval '30 days' group by 1".to_owned()),
        ("calls of a month", "select cost_currency, count(*), sum(cost) from public.agent_calls where started_at >= now() - interval '30 days' group by 1".to_owned()),
        ("what has no price", "select provider, count(*) from public.agent_sms where (cost is null or revenue is null) and segments is not null
            and sent_at >= now() - interval '30 days' group by 1".to_owned()),
        ("costs of a deployment", COSTS.replace("{deployment}", DEPLOYMENT)),
    ]
}

const COSTS: &str =
    "select cost_currency, sum(cost), revenue_currency, sum(revenue), sum(margin), sum(segments) from public.agent_sms
  where deployment_id = '{deployment}' and sent_at >= now() - interval '30 days' group by 1, 3";

/// What writers and the sweep ask.
fn works(round: usize) -> Vec<(&'static str, String)> {
    vec![
        (
            "a status by the provider's id",
            format!("update public.agent_sms set status = 'delivered' where provider_message_sid = 'SM5{round}77'"),
        ),
        (
            "the same, provider named",
            format!(
                "update public.agent_sms set status = 'failed' where provider = 'twilio' and provider_message_sid = 'SM6{round}88'"
            ),
        ),
        (
            "a message",
            format!(
                "insert into public.agent_sms (deployment_id, message_content, provider_message_sid) values ('{DEPLOYMENT}', 'x', 'new-{round}')"
            ),
        ),
        ("what the sweep folds", "select private.fold_sms_changes()".to_owned()),
        ("what is too old", format!("select private.purge_agent_sms(now() + interval '{round} days', 100)")),
        (
            "what gets a price",
            format!(
                "update public.channel_prices set fills_from = valid_from; select private.price_what_is_unpriced(100, now() + interval '{round} hours')"
            ),
        ),
        ("whose SMS fail", "select private.watch_sms_of_clients(30, now())".to_owned()),
    ]
}

/// Steps of a plan, the nested ones included.
fn steps<'a>(plan: &'a Value, all: &mut Vec<&'a Value>) {
    all.push(plan);
    for inner in plan["Plans"].as_array().into_iter().flatten() {
        steps(inner, all);
    }
}

async fn ask(listener: &mut Listener, what: &str, sql: &str) -> Vec<Value> {
    listener.heard();
    if let Err(error) = listener.client.batch_execute(sql).await {
        panic!("{what}: {}", refusal(&error).message);
    }
    let plans = listener.heard();
    assert!(!plans.is_empty(), "{what} has no plan");
    plans
}

#[tokio::test]
async fn no_question_about_sms_reads_all_of_them() {
    let db = full().await;
    let big: BTreeSet<String> = ["agent_sms", "agent_sms_rollups", "agent_calls"].map(str::to_owned).into();
    let mut listener = Listener::connect(db.url()).await;
    let mut found = BTreeSet::new();
    for member in [false, true] {
        if member {
            let claims = json!({"sub": MEMBER, "role": "authenticated"});
            let become_member = format!("reset role; set role authenticated; set request.jwt.claims = '{claims}'");
            listener.client.batch_execute(&become_member).await.unwrap();
        }
        for (round, mode) in ["force_custom_plan", "force_generic_plan"].into_iter().enumerate() {
            listener.client.batch_execute(&format!("set plan_cache_mode = {mode}")).await.unwrap();
            let works = if member { Vec::new() } else { works(round) };
            for (what, sql) in questions().into_iter().chain(works) {
                for plan in ask(&mut listener, what, &sql).await {
                    let mut wrong = Vec::new();
                    judge(&plan["Plan"], &big, &mut wrong);
                    let who = if member { "a member" } else { "service_role" };
                    found.extend(
                        wrong
                            .into_iter()
                            .map(|wrong| format!("{who}, {mode}: {what} {wrong}\n{}", text(&plan, "/Query Text"))),
                    );
                }
            }
        }
    }
    let found: Vec<String> = found.into_iter().collect();
    assert!(found.is_empty(), "{}", found.join("\n\n"));

    // Still a member: what rows are theirs is asked once a table, however many rows there are.
    let questions = questions();
    let (_, timeline) = questions.iter().find(|(what, _)| *what == "newest of all").unwrap();
    let mut asked = BTreeSet::new();
    for limit in [5, 500] {
        let plans = ask(&mut listener, "the timeline", &timeline.replace("limit 50", &format!("limit {limit}"))).await;
        asked.insert(plans.iter().filter(|plan| text(plan, "/Query Text").contains("client_members")).count());
    }
    assert!(asked.len() == 1 && asked.iter().all(|count| (1..10).contains(count)), "{asked:?} looks at client_members");
}

#[tokio::test]
async fn costs_are_summed_up_from_the_index_and_a_late_status_is_in_none() {
    let db = full().await;
    let mut listener = Listener::connect(db.url()).await;
    for member in [false, true] {
        if member {
            let claims = json!({"sub": MEMBER, "role": "authenticated"});
            let become_member = format!("reset role; set role authenticated; set request.jwt.claims = '{claims}'");
            listener.client.batch_execute(&become_member).await.unwrap();
        }
        let plans = ask(&mut listener, "costs", &COSTS.replace("{deployment}", DEPLOYMENT)).await;
        let mut all = Vec::new();
        plans.iter().for_each(|plan| steps(&plan["Plan"], &mut all));
        let reads: Vec<&&Value> = all.iter().filter(|step| step["Relation Name"] == "agent_sms").collect();
        assert_eq!(reads.len(), 1);
        assert_eq!(reads[0]["Node Type"], "Index Only Scan", "{}", reads[0]);
        let (rows, fetched) = (reads[0]["Actual Rows"].as_f64().unwrap(), reads[0]["Heap Fetches"].as_f64().unwrap());
        assert!(rows > 100.0 && fetched < rows / 10.0, "{fetched} rows of {rows} were looked up in the table");
    }
    let changed = async || {
        let sql = "select array[pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c)] from (values ('public.agent_sms'::regclass)) x (c)";
        db.admin.query_one(sql, &[]).await.unwrap().get::<_, Vec<i64>>(0)
    };
    db.run("begin").await;
    let before = changed().await;
    db.run("update public.agent_sms set status = 'failed' where provider_message_sid in ('SM41', 'SM51', 'SM61')")
        .await;
    let after = changed().await;
    db.run("commit").await;
    assert_eq!((after[0] - before[0], after[1] - before[1]), (3, 3), "three rows, and no index has an entry more");
}

#[tokio::test]
async fn the_newest_of_a_deployment_come_in_order_from_its_own_index_whoever_asks() {
    let db = full().await;
    let mut listener = Listener::connect(db.url()).await;
    let prepare = "prepare newest (text) as select * from public.v_agent_sms_enriched
        where deployment_id = $1::text::uuid and sent_at >= now() - interval '90 days' order by sent_at desc limit 50";
    for member in [false, true] {
        if member {
            let claims = json!({"sub": MEMBER, "role": "authenticated"});
            let become_member = format!("reset role; set role authenticated; set request.jwt.claims = '{claims}'");
            listener.client.batch_execute(&become_member).await.unwrap();
        }
        listener.client.batch_execute(prepare).await.unwrap();
        for (round, mode) in ["force_custom_plan", "force_generic_plan"].repeat(3).into_iter().enumerate() {
            listener.client.batch_execute(&format!("set plan_cache_mode = {mode}")).await.unwrap();
            let deployment = if round % 3 == 2 { QUIET } else { DEPLOYMENT };
            let plans = ask(&mut listener, "the newest", &format!("execute newest('{deployment}')")).await;
            let mut all = Vec::new();
            plans.iter().for_each(|plan| steps(&plan["Plan"], &mut all));
            let reads: Vec<&&Value> = all.iter().filter(|step| step["Relation Name"] == "agent_sms").collect();
            assert_eq!(reads.len(), 1);
            // Whoever has a quarter of all messages has the newest among the newest of all: a plan of its own may find them there.
            let anywhere = mode == "force_custom_plan" && deployment == DEPLOYMENT;
            let own = reads[0]["Index Name"] == "idx_agent_sms_deployment_costs";
            assert!(own || anywhere, "member {member}, {mode}: {}", reads[0]);
            assert!(reads[0]["Actual Rows"].as_f64().unwrap() <= 50.0, "member {member}: {}", reads[0]);
            let in_vain = reads[0]["Rows Removed by Filter"].as_f64().unwrap_or_default();
            assert!(in_vain <= if own { 0.0 } else { 1_000.0 }, "member {member}, {mode}: {}", reads[0]);
        }
        listener.client.batch_execute("deallocate newest").await.unwrap();
    }
}
