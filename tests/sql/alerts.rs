//! Alerts that somebody is told of: each once, by one at a time, tried again for a while; and failure rates of providers.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{Db, all, at, at_text, rpc, text, token};

async fn raise(db: &Db, key: &str) {
    db.run(&format!("select private.raise_alert('a_kind', 'warning', '{key}', 'Look at {key}.')")).await;
}

async fn claim(db: &Db, n: u32, ms: i64, limit: u32) -> Vec<Value> {
    let p = json!({"lease_token": token(n), "lease_seconds": 60, "limit": limit, "now": at_text(ms)});
    db.rpc("claim_alerts", p).await["alerts"].as_array().unwrap().clone()
}

async fn finish(db: &Db, n: u32, ms: i64, alert: &Value, told: bool) -> Value {
    let p = json!({"lease_token": token(n), "results": [{"id": alert["id"], "told": told}], "now": at_text(ms)});
    db.rpc("finish_alerts", p).await["recorded"].clone()
}

#[tokio::test]
async fn an_alert_is_told_once_however_often_it_counts_up() {
    let db = Db::new().await;
    raise(&db, "one").await;
    assert_eq!(claim(&db, 1, 0, 0).await, Vec::<Value>::new(), "nobody is to be told");
    let found = claim(&db, 1, 0, 10).await;
    assert_eq!((found.len(), text(&found[0], "/message")), (1, "Look at one.".to_owned()));
    assert!(claim(&db, 2, 59_000, 10).await.is_empty(), "somebody is at it");
    assert_eq!(finish(&db, 1, 1000, &found[0], true).await, 1);
    raise(&db, "one").await;
    assert!(claim(&db, 3, 100_000_000, 10).await.is_empty(), "it is the same alert");
    // Resolved, and there again: another alert.
    db.run("update public.alerts set resolved_at = now()").await;
    raise(&db, "one").await;
    let again = claim(&db, 4, 100_000_000, 10).await;
    assert_eq!(again.len(), 1);
    assert_ne!(again[0]["id"], found[0]["id"]);
}

#[tokio::test]
async fn who_does_not_listen_is_told_again_less_and_less_often_and_not_for_ever() {
    let db = Db::new().await;
    raise(&db, "one").await;
    let mut now = 0;
    let mut waits = Vec::new();
    for n in 0..200 {
        let Some(alert) = claim(&db, n, now, 10).await.pop() else { break };
        assert_eq!(finish(&db, n, now, &alert, false).await, 1);
        let mut wait = 0;
        while db.count(&format!("select count(*) from public.alerts where notice_at > '{}'", at(now + wait))).await == 1
        {
            wait += 30_000;
        }
        waits.push(wait / 1000);
        now += wait;
    }
    assert_eq!(waits[..9], [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
    assert_eq!(waits.len(), 30);
    assert!((20 * 3_600_000..26 * 3_600_000).contains(&now), "about a day: {now}");
    assert_eq!(db.count("select count(*) from public.alerts where notified_at is not null").await, 0);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_taken_over_and_its_late_result_counts_no_more() {
    let db = Db::new().await;
    raise(&db, "one").await;
    let first = claim(&db, 1, 0, 10).await;
    let second = claim(&db, 2, 60_000, 10).await;
    assert_eq!(first[0]["id"], second[0]["id"], "under the same id");
    assert_eq!(finish(&db, 1, 61_000, &first[0], false).await, 0);
    assert_eq!(finish(&db, 2, 62_000, &second[0], true).await, 1);
    assert_eq!(finish(&db, 2, 62_000, &second[0], true).await, 0);
}

#[tokio::test]
async fn of_many_who_ask_at_once_each_alert_goes_to_one() {
    let db = Db::new().await;
    for n in 0..60 {
        raise(&db, &format!("alert-{n}")).await;
    }
    let here = &db;
    let found = all((0..12).map(|n| async move {
        let client = here.connect().await;
        let p = json!({"lease_token": token(n), "lease_seconds": 60, "limit": 10, "now": at_text(0)});
        let answer = rpc(&client, "claim_alerts", p).await;
        answer["alerts"].as_array().unwrap().iter().map(|alert| text(alert, "/id")).collect::<Vec<_>>()
    }))
    .await;
    let ids: Vec<String> = found.into_iter().flatten().collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    assert_eq!(ids.len() + claim(&db, 100, 0, 100).await.len(), 60);
}

#[tokio::test]
async fn what_a_carrier_often_refuses_is_an_alert_until_it_is_over() {
    let db = Db::new().await;
    let tries = async |outcome: &str, count: u32, ms: i64| {
        db.run(&format!(
            "with log as (insert into public.message_delivery_log (channel, provider) select 'sms', 'mtn' from generate_series(1, {count}) returning id)
             insert into public.message_delivery_attempts (delivery_id, attempt, provider, outcome, created_at)
             select id, 1, 'mtn', '{outcome}', '{}' from log",
            at(ms)
        ))
        .await;
    };
    let open = async |ms: i64| {
        claim(&db, 1, ms, 0).await;
        let sql = "select count(*) from public.alerts where kind = 'failure_rate' and resolved_at is null";
        db.count(sql).await
    };
    tries("permanent", 6, 1000).await;
    tries("accepted", 13, 1000).await;
    assert_eq!(open(2000).await, 0, "19 are too few to tell");
    tries("accepted", 1, 1000).await;
    assert_eq!(open(2000).await, 1, "6 of 20");
    let said = db.value("select jsonb_build_array(message, details) from public.alerts").await;
    assert_eq!(said[1], json!({"provider": "mtn", "failed": 6, "of": 20, "minutes": 15}), "{said}");
    tries("accepted", 1, 1000).await;
    assert_eq!(open(2000).await, 0, "6 of 21 are less than 30 percent");
    tries("unknown", 1, 1000).await;
    assert_eq!(open(3000).await, 1);
    assert_eq!(open(15 * 60_000 + 1000).await, 0, "a quarter of an hour ago");
}
