//! Writers outside: each call may come again, in any order and from many at once; a key that can do nothing else, for one client.

use std::collections::BTreeMap;

use ihuza_sim::database::Database;
use ihuza_sim::keys;
use ihuza_sim::postgres::{self, Data};
use ihuza_sim::postgrest::{self, Postgrest};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{Db, Refusal, all, at, check_cases, refusal, root, unique, value};

const PHONE: &str = "+250788123456";

/// Calls a function by the names of its arguments, as PostgREST does.
async fn call(client: &Client, name: &str, arguments: Value) -> Result<Value, Refusal> {
    let named: Vec<String> = arguments
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} => '{}'", text.replace('\'', "''")),
            Value::Object(_) | Value::Array(_) => format!("{name} => '{value}'"),
            other => format!("{name} => {other}"),
        })
        .collect();
    let sql = format!("select public.{name}({})", named.join(", "));
    client.query_one(&sql, &[]).await.map(|row| row.get(0)).map_err(|error| refusal(&error))
}

async fn client(db: &Db, slug: &str) -> String {
    let sql = format!("insert into public.clients (slug, brand) values ('{slug}', 'Brand') returning id::text");
    db.admin.query_one(&sql, &[]).await.unwrap().get(0)
}

fn message(client: &str, sid: &str) -> Value {
    json!({"p_client_id": client, "p_phone_number": "0788 123 456", "p_message_content": "Muraho", "p_provider_message_sid": sid})
}

/// Words of a provider in the order of time, and when each was said.
#[derive(Clone, Debug)]
struct Course {
    reports: Vec<(&'static str, i64)>,
    /// Which report arrives when; some again.
    arrivals: Vec<prop::sample::Index>,
    /// So many arrive before the message is written.
    early: prop::sample::Index,
    /// By which door each comes.
    doors: Vec<u8>,
}

fn course() -> impl Strategy<Value = Course> {
    let word =
        prop::sample::select(vec!["queued", "sending", "sent", "delivered", "failed", "undelivered", "canceled"]);
    let reports = prop::collection::btree_map(1..1_000_i64, word, 1..7)
        .prop_map(|reports| reports.into_iter().map(|(second, word)| (word, second)).collect::<Vec<_>>());
    let index = any::<prop::sample::Index>;
    (reports, prop::collection::vec(index(), 0..6), index(), prop::collection::vec(0..2_u8, 16), any::<u64>()).prop_map(
        |(mut reports, again, early, doors, shuffle)| {
            let mut dice = crate::support::Dice(shuffle);
            for n in (1..reports.len()).rev() {
                reports.swap(n, dice.below(n + 1));
            }
            Course { reports, arrivals: again, early, doors }
        },
    )
}

/// What must be known at the end, whoever told what first.
fn end(reports: &[(&'static str, i64)]) -> Value {
    let first = |words: &[&str]| reports.iter().filter(|(word, _)| words.contains(word)).min_by_key(|(_, at)| *at);
    let seconds = |found: Option<&(&str, i64)>| found.map(|(_, at)| *at);
    let failed = first(&["failed", "undelivered", "canceled"]);
    if let Some(delivered) = first(&["delivered"]) {
        return json!(["delivered", "delivered", delivered.1, null, null]);
    }
    match failed {
        Some(("canceled", _)) => json!(["cancelled", "canceled", null, null, null]),
        Some((word, at)) => json!(["failed", word, null, at, format!("code {at}")]),
        None if first(&["sent"]).is_some() => json!(["sent", "sent", null, null, null]),
        None => {
            let word = if first(&["sending"]).is_some() { "sending" } else { "queued" };
            assert_eq!(seconds(failed), None);
            json!(["pending", word, null, null, null])
        }
    }
}

#[test]
fn what_becomes_of_a_message_is_the_same_in_any_order_by_any_door() {
    check_cases(60, course(), async |db, course| check(db, &course).await);
}

async fn check(db: &Db, course: &Course) -> Result<(), TestCaseError> {
    let sid = format!("SM{}", unique());
    let begin = at(0) - chrono::TimeDelta::days(4_000);
    let time = |second: i64| (begin + chrono::TimeDelta::seconds(second)).to_rfc3339();
    let default = db.value("select private.default_client_id()").await;
    let tell = async |n: usize, door: u8| {
        let (word, second) = course.reports[n];
        let reason =
            if ["failed", "undelivered"].contains(&word) { json!(format!("code {second}")) } else { Value::Null };
        if door == 0 {
            let p = json!({"p_provider_message_sid": sid, "p_status": word, "p_occurred_at": time(second), "p_failure_reason": reason});
            return call(&db.service, "update_agent_sms_status", p).await.map(drop);
        }
        // As delivery-status-webhook stores what Twilio's callback says.
        let ours = ihuza_core::status::from_twilio(word).unwrap().as_str();
        let event = json!({"provider": "twilio", "provider_message_id": sid, "status": ours, "raw_status": word, "occurred_at": time(second), "error_code": reason});
        db.try_rpc("record_delivery_events", json!({"correlation_id": "r", "events": [event]})).await.map(drop)
    };
    let order: Vec<usize> =
        (0..course.reports.len()).chain(course.arrivals.iter().map(|n| n.index(course.reports.len()))).collect();
    let (early, late) = order.split_at(course.early.index(order.len() + 1));
    for (n, door) in early.iter().zip(&course.doors) {
        tell(*n, *door).await.unwrap();
    }
    for again in [true, false] {
        let answer = call(&db.service, "log_agent_sms", message(default.as_str().unwrap(), &sid)).await.unwrap();
        prop_assert_eq!(&answer["created"], &json!(again));
    }
    for (n, door) in late.iter().zip(course.doors.iter().rev()) {
        tell(*n, *door).await.unwrap();
    }
    let sql = format!(
        "select jsonb_build_array(status, provider_status, extract(epoch from delivered_at - '{0}')::bigint, extract(epoch from failed_at - '{0}')::bigint, failure_reason)
           from public.agent_sms where provider_message_sid = '{sid}'",
        begin.to_rfc3339()
    );
    prop_assert_eq!(db.value(&sql).await, end(&course.reports));
    let left = format!("select count(*) from public.agent_sms_reports where provider_message_sid = '{sid}'");
    prop_assert_eq!(db.count(&left).await, 0);
    Ok(())
}

#[tokio::test]
async fn plain_statements_with_the_service_key_keep_working_and_never_go_back() {
    let db = Db::new().await;
    let deployment = db.value("select id from public.agent_deployments where is_default").await;
    let insert = format!(
        "insert into public.agent_sms (deployment_id, phone_number, message_content, status, provider_message_sid) values ('{}', '{PHONE}', 'Muraho', 'sent', 'SM1')",
        deployment.as_str().unwrap()
    );
    db.service.batch_execute(&insert).await.unwrap();
    let again = db.service.batch_execute(&insert).await.unwrap_err();
    assert_eq!(refusal(&again).code, "23505");
    let state = "select jsonb_build_array(status, provider_status, delivered_at is not null, failed_at is not null, failure_reason) from public.agent_sms where provider_message_sid = 'SM1'";
    for (change, expected) in [
        (
            "provider_status = 'undelivered', failure_reason = '30003'",
            json!(["failed", "undelivered", false, true, "30003"]),
        ),
        ("status = 'sent'", json!(["failed", "undelivered", false, true, "30003"])),
        ("status = 'cancelled'", json!(["failed", "undelivered", false, true, "30003"])),
        ("provider_status = 'queued', failure_reason = 'late'", json!(["failed", "undelivered", false, true, "30003"])),
        ("status = 'delivered'", json!(["delivered", "undelivered", true, false, null])),
        ("status = 'delivered', provider_status = 'delivered'", json!(["delivered", "delivered", true, false, null])),
        (
            "status = 'failed', provider_status = 'failed', failed_at = now(), failure_reason = '30005'",
            json!(["delivered", "delivered", true, false, null]),
        ),
        ("provider_status = 'read'", json!(["delivered", "read", true, false, null])),
        ("status = 'pending', delivered_at = null", json!(["delivered", "read", true, false, null])),
    ] {
        let sql = format!("update public.agent_sms set {change} where provider_message_sid = 'SM1'");
        assert_eq!(db.service.execute(&sql, &[]).await.unwrap(), 1);
        assert_eq!(db.value(state).await, expected, "{change}");
    }
    for (columns, values, code, says) in [
        ("phone_number", "'0788123456'", "PT400", "deployment_id"),
        ("deployment_id, phone_number", "gen_random_uuid(), '0788123456'", "PT404", "deployment not found"),
        ("client_id, phone_number", "private.default_client_id(), 'nobody'", "23514", "agent_sms_phone_number_is_e164"),
    ] {
        let error = db
            .service
            .batch_execute(&format!("insert into public.agent_sms ({columns}) values ({values})"))
            .await
            .unwrap_err();
        let refusal = refusal(&error);
        assert!(refusal.code == code && refusal.message.contains(says), "{refusal:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_the_name_of_the_field() {
    let db = Db::new().await;
    let (own, other) = (client(&db, "own").await, client(&db, "other").await);
    let of_other = |table: &str| format!("select id::text from public.{table} where client_id = '{other}' limit 1");
    db.run(&format!(
        "insert into public.prospects (client_id, phone_number) values ('{other}', '{PHONE}'); insert into public.sequences (client_id, name) values ('{other}', 'a');
         insert into public.agent_calls (client_id, deployment_id) select client_id, id from public.agent_deployments where client_id = '{other}'"
    ))
    .await;
    let deployment = db.value(&of_other("agent_deployments")).await;
    let cases = [
        (json!({"p_phone_number": null}), "PT400", "field p_phone_number is missing"),
        (json!({"p_phone_number": "12"}), "PT400", "field p_phone_number is not a phone number"),
        (json!({"p_message_content": " "}), "PT400", "field p_message_content is missing"),
        (json!({"p_message_content": "a".repeat(10_001)}), "PT400", "field p_message_content is too long"),
        (json!({"p_provider_message_sid": null}), "PT400", "field p_provider_message_sid is missing"),
        (json!({"p_provider": ""}), "PT400", "field p_provider is missing"),
        (json!({"p_provider": "Twilio Inc."}), "PT400", "field p_provider is no provider's name"),
        (json!({"p_client_id": null}), "PT400", "field p_deployment_id is missing"),
        (json!({"p_client_id": "00000000-0000-4000-8000-000000000000"}), "PT404", "client not found"),
        (json!({"p_deployment_id": deployment}), "PT404", "deployment not found"),
        (json!({"p_call_id": db.value(&of_other("agent_calls")).await}), "PT404", "call not found"),
        (json!({"p_prospect_id": db.value(&of_other("prospects")).await}), "PT404", "prospect not found"),
        (json!({"p_sequence_id": db.value(&of_other("sequences")).await}), "PT404", "sequence not found"),
        (json!({"p_session_id": "00000000-0000-4000-8000-000000000000"}), "PT404", "session not found"),
        (json!({"p_segments": 0}), "PT400", "field p_segments"),
        (json!({"p_cost": 1}), "PT400", "field p_cost_currency is missing"),
        (json!({"p_revenue_currency": "RWF"}), "PT400", "field p_revenue is missing"),
        (json!({"p_cost": 1, "p_cost_currency": "usd"}), "PT400", "field p_cost_currency is no currency"),
        (
            json!({"p_revenue": 0.000_000_1, "p_revenue_currency": "USD"}),
            "PT400",
            "field p_revenue has more than six decimals",
        ),
        (json!({"p_cost": 1_000_000, "p_cost_currency": "USD"}), "PT400", "field p_cost must be 0 to 100000"),
        (json!({"p_metadata": []}), "PT400", "field p_metadata must be an object"),
    ];
    for (change, code, says) in cases {
        let p = crate::support::with(message(&own, "SM1"), change);
        let refused = call(&db.service, "log_agent_sms", p.clone()).await.unwrap_err();
        assert!(refused.code == code && refused.message.contains(says), "{p}: {refused:?}");
    }
    let status = json!({"p_provider_message_sid": "SM1", "p_status": "sent"});
    for (change, says) in [
        (json!({"p_status": ""}), "field p_status is missing"),
        (json!({"p_provider_message_sid": null}), "field p_provider_message_sid is missing"),
        (json!({"p_cost_currency": "USD"}), "field p_cost is missing"),
    ] {
        let refused = call(&db.service, "update_agent_sms_status", crate::support::with(status.clone(), change))
            .await
            .unwrap_err();
        assert!(refused.code == "PT400" && refused.message.contains(says), "{refused:?}");
    }
    let refused = call(&db.service, "record_agent_sms_reply", json!({"p_phone_number": PHONE})).await.unwrap_err();
    assert!(refused.message.contains("field p_client_id is missing"), "{refused:?}");
    assert_eq!(
        db.count("select count(*) from public.agent_sms").await
            + db.count("select count(*) from public.agent_sms_reports").await,
        0
    );
    // A message of another client under the same id is not taken, and the same one again is.
    call(&db.service, "log_agent_sms", message(&own, "SM1")).await.unwrap();
    let refused = call(&db.service, "log_agent_sms", message(&other, "SM1")).await.unwrap_err();
    assert!(refused.code == "PT409" && refused.message.contains("message_of_another_client"), "{refused:?}");
    // One that the provider refused has no id; the writer's own keeps it from being there twice.
    let mut refused = message(&own, "");
    refused["p_provider_message_sid"] = Value::Null;
    let refused = crate::support::with(
        refused,
        json!({"p_id": "11111111-1111-4111-8111-111111111111", "p_status": "failed", "p_failure_reason": "21610"}),
    );
    for created in [true, false] {
        let answer = call(&db.service, "log_agent_sms", refused.clone()).await.unwrap();
        assert_eq!((&answer["created"], &answer["status"]), (&json!(created), &json!("failed")));
    }
}

/// A connection with the key of writers; `claims` as its token has them.
async fn writer(db: &Db, claims: &str) -> Client {
    let client = postgres::connect(db.url()).await.unwrap();
    client
        .batch_execute(&format!("set role sms_writer; select set_config('request.jwt.claims', '{claims}', false)"))
        .await
        .unwrap();
    client
}

#[tokio::test]
async fn the_key_of_a_client_writes_for_this_client_and_reads_nothing() {
    let db = Db::new().await;
    let (own, other) = (client(&db, "own").await, client(&db, "other").await);
    let key = writer(&db, &json!({"role": "sms_writer", "client_id": own}).to_string()).await;
    let bare = writer(&db, &json!({"role": "sms_writer"}).to_string()).await;
    let without = message(&own, "SM1");
    for bad in [&bare, &writer(&db, "").await, &writer(&db, r#"{"role":"sms_writer","client_id":"all"}"#).await] {
        for (name, p) in [
            ("log_agent_sms", without.clone()),
            ("update_agent_sms_status", json!({"p_provider_message_sid": "SM1", "p_status": "sent"})),
            ("record_agent_sms_reply", json!({"p_phone_number": PHONE, "p_client_id": own})),
        ] {
            let refused = call(bad, name, p).await.unwrap_err();
            assert!(refused.code == "PT403" && refused.message.contains("key_names_no_client"), "{name}: {refused:?}");
        }
    }
    // Its own client need not be named.
    let mut p = message(&own, "SM1");
    p.as_object_mut().unwrap().remove("p_client_id");
    assert_eq!(call(&key, "log_agent_sms", p).await.unwrap()["created"], true);
    assert_eq!(call(&key, "log_agent_sms", message(&other, "SM2")).await.unwrap_err().code, "PT403");
    let mut priced = message(&own, "SM3");
    priced["p_revenue"] = json!("0.01");
    priced["p_revenue_currency"] = json!("USD");
    let refused = call(&key, "log_agent_sms", priced).await.unwrap_err();
    assert!(refused.code == "PT403" && refused.message.contains("p_revenue"), "{refused:?}");
    let theirs =
        value(&db.admin, &format!("select id from public.agent_deployments where client_id = '{other}'")).await;
    let p = json!({"p_deployment_id": theirs, "p_phone_number": PHONE, "p_message_content": "Muraho", "p_provider_message_sid": "SM2"});
    assert_eq!(call(&key, "log_agent_sms", p).await.unwrap_err().code, "PT404");
    assert_eq!(
        call(&key, "record_agent_sms_reply", json!({"p_phone_number": PHONE, "p_client_id": other}))
            .await
            .unwrap_err()
            .code,
        "PT403"
    );
    assert!(call(&key, "record_agent_sms_reply", json!({"p_phone_number": PHONE})).await.unwrap()["id"].is_string());

    // A message of somebody else's: neither its status nor its being there is told; what is said before it comes is not for it.
    let early = call(&key, "update_agent_sms_status", json!({"p_provider_message_sid": "SM3", "p_status": "failed"}))
        .await
        .unwrap();
    assert_eq!(early, json!({"id": null, "status": null, "provider_status": null, "waits": true}));
    assert_eq!(call(&db.service, "log_agent_sms", message(&other, "SM3")).await.unwrap()["status"], "pending");
    let refused = call(&key, "update_agent_sms_status", json!({"p_provider_message_sid": "SM3", "p_status": "failed"}))
        .await
        .unwrap_err();
    assert_eq!((refused.code.as_str(), refused.message.contains("message not found")), ("PT404", true));
    let told = call(&key, "update_agent_sms_status", json!({"p_provider_message_sid": "SM1", "p_status": "delivered"}))
        .await
        .unwrap();
    assert_eq!(told["status"], "delivered");

    for sql in [
        "select from public.agent_sms",
        "insert into public.agent_sms_reports (provider, provider_message_sid, provider_status, occurred_at) values ('a', 'b', 'c', now())",
        "select private.note_sms_reply(null, null, null)",
        "select public.sweep('{}')",
    ] {
        assert_eq!(refusal(&key.batch_execute(sql).await.unwrap_err()).code, "42501", "{sql}");
    }
    // What clients see of each other's is not changed by any of this.
    let counts = "select jsonb_object_agg(c.slug, n) from (select client_id, count(*) as n from public.agent_sms group by 1) x join public.clients c on c.id = x.client_id";
    assert_eq!(db.value(counts).await, json!({"own": 1, "other": 1}));
}

#[tokio::test]
async fn twenty_writers_at_once_lose_nothing_double_nothing_and_never_wait_for_each_other_in_a_ring() {
    let db = Db::new().await;
    let default = db.value("select private.default_client_id()").await;
    let default = default.as_str().unwrap();
    let clients = all((0..20).map(|_| db.connect())).await;
    // Fifty messages; every writer tells of all of them, each in its own order and its own words.
    let work = clients.iter().enumerate().map(|(worker, client)| async move {
        for step in 0..50_usize {
            let n = (step * [1, 3, 7, 9][worker % 4] + worker * 11) % 50;
            let sid = format!("SM{n}");
            let told = |word: &str| json!({"p_provider_message_sid": sid, "p_status": word, "p_occurred_at": "2026-01-01T00:00:00Z"});
            match worker % 5 {
                0 | 1 => drop(call(client, "log_agent_sms", message(default, &sid)).await.unwrap()),
                2 => drop(call(client, "update_agent_sms_status", told("sent")).await.unwrap()),
                3 => drop(call(client, "update_agent_sms_status", told(if n % 2 == 0 { "delivered" } else { "failed" })).await.unwrap()),
                _ => {
                    // A batch of callbacks as delivery-status-webhook hands them in, backwards.
                    let events: Vec<Value> = (0..5)
                        .map(|m| json!({"provider": "twilio", "provider_message_id": format!("SM{}", (n + 5 - m) % 50), "status": "sent",
                                        "raw_status": "sent", "occurred_at": "2026-01-01T00:00:00Z"}))
                        .collect();
                    let p = json!({"correlation_id": "r", "events": events});
                    drop(crate::support::try_rpc(client, "record_delivery_events", p).await.unwrap());
                }
            }
        }
    });
    all(work).await;
    let sql =
        "select jsonb_object_agg(status, n) from (select status, count(*) as n from public.agent_sms group by 1) x";
    assert_eq!(db.value(sql).await, json!({"delivered": 25, "failed": 25}));
    let statuses = db.admin.query("select provider_message_sid, status from public.agent_sms", &[]).await.unwrap();
    let statuses: BTreeMap<String, String> = statuses.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!((statuses["SM4"].as_str(), statuses["SM5"].as_str()), ("delivered", "failed"));
    assert_eq!(db.count("select count(*) from public.agent_sms_reports").await, 0);
}

#[tokio::test]
async fn over_postgrest_a_key_of_writers_does_what_it_is_for_and_no_more() {
    let database = Database::start(&root(), &Data::Fresh, 0, &std::env::temp_dir()).await.unwrap();
    let owner = postgres::connect(&database.superuser_url()).await.unwrap();
    let client = value(&owner, "select private.default_client_id()").await;
    let secret = keys::secret();
    let binary = postgrest::find(&root()).unwrap();
    let log = std::env::temp_dir().join(format!("postgrest-{}.log", unique()));
    let server = Postgrest::start(&binary, &database.url("authenticator"), &secret, &log).await.unwrap();
    let expires = chrono::Utc::now().timestamp() + 3600;
    let key = |claims: Value| {
        keys::jwt(&secret, &crate::support::with(json!({"role": "sms_writer", "exp": expires}), claims))
    };
    let (own, bare) = (key(json!({"client_id": client})), key(json!({})));
    let http = reqwest::Client::new();
    let ask = async |key: Option<&str>, name: &str, body: Value| {
        let request = http.post(format!("{}/rpc/{name}", server.url())).json(&body);
        let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap_or_default())
    };
    let mut sms = message("", "SM1");
    sms.as_object_mut().unwrap().remove("p_client_id");
    // The report is there before the message.
    let report =
        json!({"p_provider_message_sid": "SM1", "p_status": "delivered", "p_occurred_at": "2026-01-01T00:00:00Z"});
    let (status, said) = ask(Some(&own), "update_agent_sms_status", report).await;
    assert_eq!((status, &said["waits"]), (200, &json!(true)), "{said}");
    for created in [true, false] {
        let (status, said) = ask(Some(&own), "log_agent_sms", sms.clone()).await;
        assert_eq!((status, &said["created"], &said["status"]), (200, &json!(created), &json!("delivered")), "{said}");
    }
    let (status, said) = ask(Some(&own), "log_agent_sms", json!({"p_phone_number": "0788123456"})).await;
    assert_eq!((status, &said["message"]), (400, &json!("field p_message_content is missing")));
    let (status, said) = ask(Some(&bare), "log_agent_sms", sms.clone()).await;
    assert_eq!((status, &said["message"]), (403, &json!("key_names_no_client")));
    assert_eq!(ask(None, "log_agent_sms", sms.clone()).await.0, 401);
    assert_eq!(ask(Some(&own), "sweep", json!({"p": {}})).await.0, 403);
    assert_eq!(
        ask(
            Some(&keys::jwt(&keys::secret(), &json!({"role": "sms_writer", "client_id": client}))),
            "log_agent_sms",
            sms
        )
        .await
        .0,
        401
    );
    for table in ["agent_sms", "agent_sms_reports", "prospects", "clients"] {
        let answer = http.get(format!("{}/{table}", server.url())).bearer_auth(&own).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 403, "{table}");
    }
    assert_eq!(value(&owner, "select count(*) from public.agent_sms").await, 1);
}
