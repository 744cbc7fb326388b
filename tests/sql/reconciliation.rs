//! What a provider says when it is asked, and what becomes of messages of whom nobody tells.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Db, all, at_text, text, token, unique};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
/// Tests begin at eight in the morning, UTC.
const NOON: i64 = 4 * HOUR;

/// A message of ours that the provider accepted at `ms`; its id.
async fn sent(db: &Db, provider: &str, provider_message_id: &str, status: &str, ms: i64) -> String {
    let sql = format!(
        "insert into public.message_delivery_log (channel, status, status_at, provider, provider_message_id, sent_at, created_at, segments)
         values ('sms', '{status}', '{at}', '{provider}', '{provider_message_id}', '{at}', '{at}', 2) returning id",
        at = at_text(ms)
    );
    let id = db.admin.query_one(&sql, &[]).await.unwrap().get::<_, Uuid>(0).to_string();
    db.run(&format!(
        "insert into public.message_status_events (delivery_id, delivery_ref, source, status, occurred_at, dedupe_key)
         values ('{id}', '{id}', 'own', '{status}', '{}', 'own:{id}:{status}')",
        at_text(ms)
    ))
    .await;
    id
}

async fn row(db: &Db, id: &str) -> Value {
    db.value(&format!("select to_jsonb(l) from public.message_delivery_log l where id = '{id}'")).await
}

fn sid() -> String {
    format!("SM{:032x}", unique())
}

async fn claim(db: &Db, lease: u32, ms: i64) -> Value {
    db.rpc("claim_reconciliation", json!({"lease_token": token(lease), "providers": ["twilio"], "now": at_text(ms)}))
        .await
}

/// Claims days until the one that is wanted; the others have nothing in them.
async fn claim_day(db: &Db, lease: u32, wanted: &str, ms: i64) -> String {
    loop {
        let claimed = claim(db, lease, ms).await;
        let id = text(&claimed, "/id");
        assert!(!id.is_empty(), "{wanted} is not to be had: {claimed}");
        if text(&claimed, "/day") == wanted {
            return id;
        }
        finish(db, &id, lease, json!({}), ms).await;
    }
}

async fn record(db: &Db, id: &str, lease: u32, messages: Value, ms: i64) -> Value {
    let p = json!({"reconciliation_id": id, "lease_token": token(lease), "messages": messages, "unseen": true, "now": at_text(ms)});
    db.rpc("record_reconciliation", p).await
}

async fn finish(db: &Db, id: &str, lease: u32, more: Value, ms: i64) -> Value {
    let p = json!({"reconciliation_id": id, "lease_token": token(lease), "now": at_text(ms)});
    db.rpc("finish_reconciliation", crate::support::with(p, more)).await
}

fn said(sid: &str, status: &str, price: Option<&str>, ms: i64) -> Value {
    let pricing = price.map(|amount| json!({"amount": amount, "currency": "USD"}));
    json!({"provider_message_id": sid, "status": status, "raw_status": status, "occurred_at": at_text(ms), "pricing": pricing})
}

async fn day(db: &Db, ms: i64) -> String {
    db.value(&format!("select to_char('{}'::timestamptz at time zone 'UTC', 'YYYY-MM-DD')", at_text(ms)))
        .await
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_day_is_compared_once_whoever_comes_and_however_often() {
    let db = Db::new().await;
    let now = 10 * DAY + NOON;
    // Seven days back, each once; the last one has not settled yet.
    let mut days = Vec::new();
    loop {
        let clients = [db.connect().await, db.connect().await, db.connect().await];
        let p = |lease: u32| json!({"lease_token": token(lease), "providers": ["twilio"], "settle_hours": 13, "now": at_text(now)});
        let claims = all(clients
            .iter()
            .zip(1..)
            .map(|(client, lease)| crate::support::rpc(client, "claim_reconciliation", p(lease))))
        .await;
        let won: Vec<(u32, Value)> = (1..).zip(claims).filter(|(_, claim)| !claim["id"].is_null()).collect();
        if won.is_empty() {
            break;
        }
        for (lease, claim) in won {
            let again = crate::support::rpc(&db.service, "claim_reconciliation", p(lease)).await;
            assert_eq!(again["id"], claim["id"], "the same to the same token");
            days.push(text(&claim, "/day"));
            finish(&db, &text(&claim, "/id"), lease, json!({}), now).await;
        }
    }
    days.sort();
    let mut once = days.clone();
    once.dedup();
    assert_eq!((days.len(), once.len()), (6, 6), "{days:?}");
    assert!(!days.contains(&day(&db, 9 * DAY).await), "it has not settled");
    let counts = db.value("select count(*) from public.reconciliations where status = 'done'").await;
    assert_eq!(counts, json!(6));
}

#[tokio::test]
async fn status_and_cost_are_repaired_and_what_one_side_lacks_is_told() {
    let db = Db::new().await;
    let (yesterday, now) = (9 * DAY + NOON, 10 * DAY + NOON);
    let (lost, dear, same, gone, late) = (sid(), sid(), sid(), sid(), sid());
    let stranger = sid();
    let lost_id = sent(&db, "twilio", &lost, "sent", yesterday).await;
    let dear_id = sent(&db, "twilio", &dear, "delivered", yesterday).await;
    sent(&db, "twilio", &same, "delivered", yesterday).await;
    let gone_id = sent(&db, "twilio", &gone, "sent", yesterday).await;
    let late_id = sent(&db, "twilio", &late, "sent", yesterday).await;
    sent(&db, "twilio", &sid(), "sent", yesterday + DAY).await;
    let other = sent(&db, "mtn", &sid(), "sent", yesterday).await;

    let id = claim_day(&db, 1, &day(&db, yesterday).await, now).await;
    let page = json!([
        said(&lost.to_uppercase(), "delivered", Some("0.0475"), yesterday + 1000),
        said(&dear, "sent", Some("0.0475"), yesterday + 1000),
        said(&same, "sent", None, yesterday + 1000),
        said(&stranger, "delivered", Some("1"), yesterday),
    ]);
    let answer = record(&db, &id, 1, page.clone(), now).await;
    let again = record(&db, &id, 1, page, now).await;
    assert_eq!(answer["unseen"], again["unseen"]);
    let mut unseen: Vec<String> = answer["unseen"].as_array().unwrap().iter().map(|row| text(row, "/id")).collect();
    unseen.sort();
    let mut expected = vec![gone_id.clone(), late_id.clone()];
    expected.sort();
    assert_eq!(unseen, expected, "not those of another day or provider ({other})");
    // Asked for one by one: one was sent after midnight, the other is not known.
    let asked = json!([said(&late, "undelivered", None, now), {"provider_message_id": gone, "missing": true}]);
    let asked = json!([{"provider_message_id": late, "status": "failed", "raw_status": "undelivered", "error_code": "30005",
                        "error_class": "permanent", "occurred_at": at_text(now)}, asked[1]]);
    assert_eq!(record(&db, &id, 1, asked, now).await["unseen"], json!([]));
    let counts = finish(&db, &id, 1, json!({}), now).await;
    let expected = json!({"status": "done", "compared": 4, "repaired": 2, "priced": 1, "unknown_here": 1, "unknown_there": 1, "unchecked": 0, "unpriced": 1});
    assert_eq!(counts, expected);
    assert_eq!(finish(&db, &id, 1, json!({}), now).await, expected, "a second time");

    let lost = row(&db, &lost_id).await;
    assert_eq!((text(&lost, "/status"), text(&lost, "/cost")), ("delivered".into(), "0.047500".into()));
    let dear = row(&db, &dear_id).await;
    assert_eq!((text(&dear, "/status"), text(&dear, "/cost_currency")), ("delivered".into(), "USD".into()));
    let late = row(&db, &late_id).await;
    assert_eq!((text(&late, "/status"), text(&late, "/error_code")), ("failed".into(), "30005".into()));
    assert_eq!(
        text(&row(&db, &gone_id).await, "/status"),
        "sent",
        "that Twilio does not know it says nothing about the person"
    );
    let events = "select count(*) from public.message_status_events where source = 'reconciliation'";
    assert_eq!(db.count(events).await, 3);
    let kept = "select jsonb_agg(outcome order by outcome) from public.reconciled_messages";
    assert_eq!(db.value(kept).await, json!(["unknown_here", "unknown_there"]));
    let alert = "select details - 'reconciliation_id' from public.alerts where kind = 'reconciliation_difference'";
    let details = json!({"provider": "twilio", "day": day(&db, yesterday).await, "unknown_here": 1, "unknown_there": 1, "unchecked": 0});
    assert_eq!(db.value(alert).await, details);
    // Of an erased message the id is not kept.
    db.run(&format!("update public.message_delivery_log set erased_at = now() where id = '{gone_id}'")).await;
    assert_eq!(db.value(kept).await, json!(["unknown_here"]));
}

#[tokio::test]
async fn a_day_whose_messages_have_no_price_is_read_again_three_times_at_most() {
    let db = Db::new().await;
    let (yesterday, now) = (9 * DAY + NOON, 10 * DAY + NOON);
    let (priced, free, stranger) = (sid(), sid(), sid());
    let priced_id = sent(&db, "twilio", &priced, "sent", yesterday).await;
    sent(&db, "twilio", &free, "sent", yesterday).await;
    let failed = sent(&db, "twilio", &sid(), "failed", yesterday).await;
    let wanted = day(&db, yesterday).await;
    let alerts = "select count(*) from public.alerts where kind = 'reconciliation_difference' and resolved_at is null";
    let mut counts = Vec::new();
    for again in 0..5_i64 {
        let (lease, at) = (1 + u32::try_from(again).unwrap(), now + again * DAY);
        let price = (again >= 2).then_some("0.0475");
        if again < 4 {
            let id = claim_day(&db, lease, &wanted, at).await;
            let page = json!([
                said(&priced, "delivered", price, yesterday),
                said(&free, "delivered", None, yesterday),
                said(&stranger, "delivered", None, yesterday)
            ]);
            record(&db, &id, lease, page, at).await;
            record(&db, &id, lease, json!([{"provider_message_id": text(&row(&db, &failed).await, "/provider_message_id"), "missing": true}]), at).await;
            counts.push(finish(&db, &id, lease, json!({}), at).await);
            // The same difference is not told again once somebody has seen to it.
            assert_eq!(db.count(alerts).await, i64::from(again == 0), "{again}");
            db.run("update public.alerts set resolved_at = now()").await;
        }
        // Neither at once nor by anybody else.
        while let Some(id) = claim(&db, 90, at + HOUR).await["id"].as_str() {
            let other = db.value(&format!("select to_char(period_start at time zone 'UTC', 'YYYY-MM-DD') from public.reconciliations where id = '{id}'")).await;
            assert_ne!(other, wanted.as_str(), "{again}");
            finish(&db, id, 90, json!({}), at + HOUR).await;
        }
    }
    let counted = |name: &str| counts.iter().map(|counts| counts[name].as_i64().unwrap()).collect::<Vec<_>>();
    assert_eq!((counted("unpriced"), counted("priced")), (vec![2, 2, 1, 1], vec![0, 0, 1, 1]));
    assert_eq!((counted("repaired"), counted("unknown_here")), (vec![2, 2, 2, 2], vec![1, 1, 1, 1]));
    let priced = row(&db, &priced_id).await;
    assert_eq!((text(&priced, "/status"), text(&priced, "/cost")), ("delivered".into(), "0.047500".into()));
}

#[tokio::test]
async fn messages_that_others_sent_and_wrote_here_are_known_and_put_right() {
    let db = Db::new().await;
    let (yesterday, now) = (9 * DAY + NOON, 10 * DAY + NOON);
    db.run(&format!(
        "insert into public.channel_prices (side, provider, kind, price, currency, valid_from) values ('cost', 'twilio', 'segment', 0.05, 'USD', '{}')",
        at_text(0)
    ))
    .await;
    let (late, dear, told, same, stranger) = (sid(), sid(), sid(), sid(), sid());
    for (sid, status, cost) in [
        (&late, "sent", "null, null"),
        (&dear, "delivered", "null, null"),
        (&told, "delivered", "0.04, 'USD'"),
        (&same, "delivered", "null, null"),
    ] {
        db.run(&format!(
            "insert into public.agent_sms (client_id, phone_number, message_content, provider, provider_message_sid, status, sent_at, cost, cost_currency)
             values (private.default_client_id(), '+250788123456', 'x', 'twilio', '{sid}', '{status}', '{}', {cost})",
            at_text(yesterday)
        ))
        .await;
    }
    let id = claim_day(&db, 1, &day(&db, yesterday).await, now).await;
    let failed = json!({"provider_message_id": late, "status": "failed", "raw_status": "undelivered", "error_code": "30003", "error_class": "permanent",
        "occurred_at": at_text(yesterday + 1000), "pricing": {"amount": "0.0475", "currency": "USD"}});
    let page = json!([
        failed,
        said(&dear, "sent", Some("0.0475"), yesterday),
        said(&told, "delivered", Some("0.0475"), yesterday),
        said(&same, "delivered", None, yesterday),
        said(&stranger, "delivered", Some("0.0475"), yesterday),
    ]);
    for _ in 0..2 {
        let answer = record(&db, &id, 1, page.clone(), now).await;
        assert_eq!((&answer["unseen"], &answer["fallbacks"]), (&json!([]), &json!([])));
    }
    let counts = finish(&db, &id, 1, json!({}), now).await;
    let expected = json!({"status": "done", "compared": 4, "repaired": 1, "priced": 1, "unknown_here": 1, "unknown_there": 0, "unchecked": 0, "unpriced": 0});
    assert_eq!(counts, expected);
    let rows = "select jsonb_object_agg(provider_message_sid, jsonb_build_array(status, provider_status, failure_reason, cost::text, cost_source)) from public.agent_sms";
    let expected = json!({
        &late: ["failed", "undelivered", "30003", "0.047500", "provider"],
        &dear: ["delivered", null, null, "0.047500", "provider"],
        // Whoever sent it knows what they paid.
        &told: ["delivered", null, null, "0.040000", "writer"],
        &same: ["delivered", null, null, "0.050000", "price_list"],
    });
    assert_eq!(db.value(rows).await, expected);
    assert_eq!(db.count("select count(*) from public.message_status_events").await, 0, "they are no reports of ours");
    assert_eq!(db.count("select count(*) from private.check_sms_rollups()").await, 0);
}

#[tokio::test]
async fn a_day_that_broke_off_is_taken_up_again_and_nobody_without_the_lease_writes() {
    let db = Db::new().await;
    let now = 10 * DAY + NOON;
    let first = claim(&db, 1, now).await;
    let id = text(&first, "/id");
    let other = claim(&db, 2, now).await;
    assert_ne!(other["id"], first["id"]);
    let p = json!({"reconciliation_id": id, "lease_token": token(2), "messages": [], "now": at_text(now)});
    assert_eq!(db.try_rpc("record_reconciliation", p.clone()).await.unwrap_err().code, "PT409");
    assert_eq!(db.try_rpc("finish_reconciliation", p).await.unwrap_err().code, "PT409");
    assert_eq!(finish(&db, &id, 1, json!({"error": "unavailable"}), now).await["status"], "open");
    let alerts = "select count(*) from public.alerts where kind = 'reconciliation_failed'";
    assert_eq!(db.count(alerts).await, 1);
    assert_ne!(claim(&db, 3, now + 10_000).await["id"], first["id"], "not within the hour");
    assert_eq!(claim(&db, 4, now + HOUR).await["id"], first["id"]);
    let broken_off = db.value(&format!("select failures from public.reconciliations where id = '{id}'")).await;
    assert_eq!(broken_off, json!(1));
}

#[tokio::test]
async fn a_message_of_whom_nobody_tells_is_closed_and_stays_what_is_known() {
    let db = Db::new().await;
    let now = 10 * DAY;
    // Of a day that has been over for three days.
    let old = now - 4 * DAY + HOUR;
    let silent = sent(&db, "mtn", &sid(), "sent", old).await;
    let unknown = sent(&db, "whatsapp", &sid(), "unknown", old).await;
    let told = sent(&db, "mtn", &sid(), "delivered", old).await;
    let young = sent(&db, "mtn", &sid(), "sent", now - 3 * DAY + HOUR).await;
    let waits = sent(&db, "mtn", &sid(), "unknown", old).await;
    db.run(&format!("update public.message_delivery_log set next_attempt_at = now() where id = '{waits}'")).await;
    let sweep = async || db.rpc("claim_reconciliation", json!({"lease_token": token(1), "now": at_text(now)})).await;
    assert_eq!(sweep().await, json!({"id": null, "closed": 2}));
    assert_eq!(sweep().await, json!({"id": null, "closed": 0}), "run twice");
    for (id, status, closed) in [
        (&silent, "sent", true),
        (&unknown, "unknown", true),
        (&told, "delivered", false),
        (&young, "sent", false),
        (&waits, "unknown", false),
    ] {
        let row = row(&db, id).await;
        assert_eq!((text(&row, "/status").as_str(), !row["closed_at"].is_null()), (status, closed), "{row}");
    }
    let event = format!(
        "select raw_status from public.message_status_events where delivery_id = '{silent}' and source = 'reconciliation'"
    );
    assert_eq!(db.value(&event).await, json!("closed_without_report"));
    let days = "select jsonb_agg(jsonb_build_array(provider, compared, closed) order by provider, closed) from public.reconciliations";
    assert_eq!(db.value(days).await, json!([["mtn", 3, 1], ["whatsapp", 1, 1]]));
    let alerts = "select count(*) from public.alerts where kind = 'reports_missing'";
    assert_eq!(db.count(alerts).await, 0, "one telephone may be off");

    // A late report counts all the same.
    let report = json!({"provider": "mtn", "delivery_ref": silent, "status": "delivered", "occurred_at": at_text(now)});
    db.rpc("record_delivery_events", json!({"events": [report], "now": at_text(now)})).await;
    assert_eq!(text(&row(&db, &silent).await, "/status"), "delivered");

    // The next day comes when it is old enough.
    for _ in 0..3 {
        sent(&db, "mtn", &sid(), "sent", now - 3 * DAY + HOUR).await;
    }
    let tomorrow = json!({"lease_token": token(1), "now": at_text(now + DAY)});
    assert_eq!(db.rpc("claim_reconciliation", tomorrow).await["closed"], 4);
    assert_eq!(db.count(alerts).await, 1, "all of them: something is wrong");
    assert_eq!(db.value(days).await, json!([["mtn", 3, 1], ["mtn", 4, 4], ["whatsapp", 1, 1]]));
}

#[tokio::test]
async fn a_bill_stands_beside_what_we_counted() {
    let db = Db::new().await;
    // November 2030 in Kigali begins two hours before that of UTC.
    for (at, cost) in [
        ("2030-10-31T21:59:59Z", 1),
        ("2030-10-31T22:00:00Z", 2),
        ("2030-11-30T21:59:59Z", 4),
        ("2030-11-30T22:00:00Z", 8),
    ] {
        let id = sent(&db, "africas_talking", &format!("ATXid_{}", unique()), "sent", 0).await;
        db.run(&format!(
            "update public.message_delivery_log set created_at = '{at}', sent_at = '{at}', cost = {cost}, cost_currency = 'RWF' where id = '{id}'"
        ))
        .await;
    }
    db.run(
        "insert into public.provider_statements (provider, month, messages, segments, cost, currency)
         values ('africas_talking', '2030-11-01', 3, 6, 7.5, 'RWF'), ('mtn', '2030-11-01', 5, null, null, null)",
    )
    .await;
    let found = "select jsonb_agg(jsonb_build_array(provider, messages_counted, messages_difference, segments_difference, cost_counted::text, cost_difference::text)
                   order by provider) from public.v_statement_differences";
    assert_eq!(
        db.value(found).await,
        json!([["africas_talking", 2, 1, 2, "6.000000", "1.500000"], ["mtn", 0, 5, null, null, null]])
    );
    for wrong in [
        "('mtn', '2030-11-02', 1, 1, null, null)",
        "('mtn', '2030-12-01', -1, 1, null, null)",
        "('mtn', '2030-11-01', 1, 1, null, null)",
        "('mtn', '2030-12-01', 1, 1, 1, null)",
    ] {
        let sql = format!(
            "insert into public.provider_statements (provider, month, messages, segments, cost, currency) values {wrong}"
        );
        assert!(db.admin.batch_execute(&sql).await.is_err(), "{wrong}");
    }
}
