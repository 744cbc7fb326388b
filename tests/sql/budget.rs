//! Budgets: what may be spent is reserved before it is spent, never more than the hard limit, whoever asks at the same time.

use serde_json::{Value, json};

use crate::support::{Db, all, at_text, attempt, ended_call, phone, rpc, text, token, with};

/// A budget of the default client: 10 a segment, 25 a template.
async fn budget(db: &Db, soft: &str, hard: &str) {
    db.run(&format!(
        "insert into public.client_budgets (client_id, currency, soft_limit, hard_limit, sms_segment_price, whatsapp_template_price)
         select id, 'RWF', {soft}, {hard}, 10, 25 from public.clients where is_default"
    ))
    .await;
}

async fn begin(db: &Db, n: u32) -> Value {
    let call = ended_call(db, &phone(), -1000).await;
    let p = json!({"correlation_id": format!("b-{n}"), "call_ref": call, "lease_token": token(n), "now": at_text(0)});
    db.rpc("begin_call_notification", p).await
}

/// The work ends; its SMS went out with so many segments, or was not written.
fn finished(claim: &Value, n: u32, segments: Option<u32>, outcome: &str) -> Value {
    let sms = segments.map(|segments| {
        json!({"id": claim["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "recipient": claim["profile"]["phone_number"],
               "purpose": "call_summary", "segments": segments, "payload": {"text": "hello"}, "deadline_at": at_text(86_400_000),
               "attempt": attempt(outcome, 500)})
    });
    json!({"notification_id": claim["notification_id"], "lease_token": token(n), "outcome": "done", "now": at_text(1000),
           "deliveries": sms.into_iter().collect::<Vec<_>>()})
}

async fn committed(db: &Db) -> f64 {
    db.value("select committed::float8 from public.v_budget_months").await.as_f64().unwrap()
}

async fn alerts(db: &Db) -> Value {
    db.value("select jsonb_agg(kind order by kind) from public.alerts").await
}

#[tokio::test]
async fn a_client_without_a_budget_has_no_limit_and_no_rows() {
    let db = Db::new().await;
    assert_eq!(begin(&db, 1).await["guards"]["refused"], json!({}));
    assert_eq!(db.count("select count(*) from public.budget_months").await, 0);
}

#[tokio::test]
async fn what_an_sms_may_cost_follows_the_clients_own_most_segments() {
    let db = Db::new().await;
    budget(&db, "null", "1000").await;
    for (n, (settings, committed_then)) in [
        (r#"{"sms_max_segments": 5}"#, 75.0),
        (r#"{"sms_max_segments": 99}"#, 200.0),
        (r#"{"sms_max_segments": "many"}"#, 245.0),
    ]
    .into_iter()
    .enumerate()
    {
        db.run(&format!("update public.clients set settings = '{settings}'")).await;
        begin(&db, u32::try_from(n).unwrap() + 1).await;
        assert_eq!(committed(&db).await, committed_then, "{settings}");
    }
}

#[tokio::test]
async fn the_most_is_reserved_and_what_it_really_cost_is_kept() {
    let db = Db::new().await;
    budget(&db, "null", "1000").await;
    let claim = begin(&db, 1).await;
    assert_eq!(committed(&db).await, 45.0, "two segments and a template");
    db.rpc("finish_call_notification", finished(&claim, 1, Some(1), "accepted")).await;
    assert_eq!(committed(&db).await, 10.0, "one segment went out, and no template");
    let id = text(&claim, "/delivery_ids/sms");
    // Another currency says nothing that could be counted.
    db.run(&format!("update public.message_delivery_log set cost = 0.02, cost_currency = 'USD' where id = '{id}'"))
        .await;
    assert_eq!(committed(&db).await, 10.0);
    db.run(&format!("update public.message_delivery_log set cost = 7.5, cost_currency = 'RWF' where id = '{id}'"))
        .await;
    assert_eq!(committed(&db).await, 7.5);

    // What nobody took costs nothing; what may have arrived does.
    for (n, outcome, more) in [(2, "permanent", 0.0), (3, "unknown", 20.0), (4, "suppressed", 0.0)] {
        let before = committed(&db).await;
        let claim = begin(&db, n).await;
        db.rpc("finish_call_notification", finished(&claim, n, Some(2), outcome)).await;
        assert_eq!(committed(&db).await, before + more, "{outcome}");
    }
}

#[tokio::test]
async fn the_same_claim_reserves_once_and_a_work_that_sends_nothing_gives_all_back() {
    let db = Db::new().await;
    budget(&db, "null", "1000").await;
    let call = ended_call(&db, &phone(), -1000).await;
    let p = json!({"correlation_id": "again", "call_ref": call, "lease_token": token(1), "now": at_text(0)});
    let claim = db.rpc("begin_call_notification", p.clone()).await;
    db.rpc("begin_call_notification", p).await;
    assert_eq!(committed(&db).await, 45.0);
    db.rpc("finish_call_notification", finished(&claim, 1, None, "")).await;
    assert_eq!(committed(&db).await, 0.0);
}

#[tokio::test]
async fn soft_raises_an_alert_and_hard_keeps_messages_back_with_one_as_well() {
    let db = Db::new().await;
    budget(&db, "40", "60").await;
    let claims = [begin(&db, 1).await, begin(&db, 2).await, begin(&db, 3).await];
    assert_eq!(claims[0]["guards"]["refused"], json!({}));
    assert_eq!(claims[1]["guards"]["refused"], json!({"sms": "budget", "whatsapp": "budget"}), "45 of 60 are reserved");
    assert_eq!(claims[2]["guards"]["refused"], json!({"sms": "budget", "whatsapp": "budget"}));
    assert_eq!(alerts(&db).await, json!(["budget_hard", "budget_soft"]));
    assert_eq!(db.value("select sum(occurrences) from public.alerts").await, json!(2), "once a month each");
    // The first needed less than it had: there is room again.
    db.rpc("finish_call_notification", finished(&claims[0], 1, Some(2), "accepted")).await;
    assert_eq!(begin(&db, 4).await["guards"]["refused"], json!({"whatsapp": "budget"}), "20 and 20 of 60");
}

#[tokio::test]
async fn a_stop_is_confirmed_though_nothing_is_left_and_help_is_not_answered() {
    let db = Db::new().await;
    budget(&db, "0", "0").await;
    for (keyword, refused) in [("help", json!({"sms": "budget"})), ("stop", json!({}))] {
        let p = json!({"correlation_id": keyword, "provider": "mtn", "provider_message_id": keyword, "from": phone(), "to": "8080",
                       "text": keyword, "keyword": keyword, "lease_token": token(1), "now": at_text(0)});
        assert_eq!(db.rpc("begin_sms_turn", p).await["guards"]["refused"], refused, "{keyword}");
    }
}

#[tokio::test]
async fn an_answer_within_the_service_window_costs_nothing_and_is_never_kept_back() {
    let db = Db::new().await;
    budget(&db, "0", "0").await;
    let p = json!({"correlation_id": "w", "channel": "whatsapp", "provider": "whatsapp", "provider_message_id": "wamid.1", "from": phone(),
                   "to": "100", "text": "hello", "lease_token": token(1), "now": at_text(0)});
    assert_eq!(db.rpc("begin_sms_turn", p).await["guards"]["refused"], json!({"sms": "budget"}));
}

#[tokio::test]
async fn what_waited_is_kept_back_when_it_is_due_and_nothing_is_left() {
    let db = Db::new().await;
    budget(&db, "null", "30").await;
    db.run(&format!(
        "insert into public.message_delivery_log (channel, provider, recipient, segments, next_attempt_at, deadline_at)
         select 'sms', 'mtn', '+250788123456', 2, '{}', '{}' from generate_series(1, 3)",
        at_text(0),
        at_text(3_600_000)
    ))
    .await;
    let p = json!({"lease_token": token(1), "now": at_text(1000)});
    let found = db.rpc("claim_due_deliveries", p.clone()).await;
    assert_eq!(found["deliveries"].as_array().unwrap().len(), 1);
    assert_eq!(found["looked_at"], 3);
    let rows = "select jsonb_agg(jsonb_build_array(status, suppress_reason, attempts, next_attempt_at is null, lease_token is null) order by status)
                  from public.message_delivery_log";
    let kept_back = json!(["suppressed", "budget", 0, true, true]);
    assert_eq!(db.value(rows).await, json!([["sending", null, 1, false, false], kept_back, kept_back]));
    assert_eq!(
        db.rpc("claim_due_deliveries", p).await["deliveries"].as_array().unwrap().len(),
        1,
        "asked again: the same"
    );

    // It is sent once more after an unknown outcome, which may cost twice.
    let id = text(&found, "/deliveries/0/id");
    let unknown = with(attempt("unknown", 2000), json!({"attempt": 1}));
    db.rpc(
        "record_delivery_results",
        json!({"lease_token": token(1), "results": [{"id": id, "attempt": unknown}], "now": at_text(2000)}),
    )
    .await;
    assert_eq!(committed(&db).await, 20.0);
    let again = db.rpc("claim_due_deliveries", json!({"lease_token": token(2), "now": at_text(200_000)})).await;
    assert_eq!(again["deliveries"], json!([]), "40 of 30");
    let row = db
        .value(&format!(
            "select jsonb_build_array(status, next_attempt_at) from public.message_delivery_log where id = '{id}'"
        ))
        .await;
    assert_eq!(row, json!(["unknown", null]), "it may have arrived, and nobody sends it again");
}

#[tokio::test]
async fn a_month_begins_where_the_client_is() {
    let db = Db::new().await;
    budget(&db, "null", "45").await;
    for (n, now, month) in [(1, "2030-01-31T21:59:59Z", "2030-01-01"), (2, "2030-01-31T22:00:00Z", "2030-02-01")] {
        let call = ended_call(&db, &phone(), -1000).await;
        let p = json!({"correlation_id": month, "call_ref": call, "lease_token": token(n), "now": now});
        assert_eq!(db.rpc("begin_call_notification", p).await["guards"]["refused"], json!({}), "{month}");
        let found = format!("select committed::float8 from public.v_budget_months where month = '{month}'");
        assert_eq!(db.value(&found).await.as_f64(), Some(45.0));
    }
}

#[tokio::test]
async fn many_at_once_never_spend_more_than_the_hard_limit() {
    let db = Db::new().await;
    budget(&db, "100", "600").await;
    // Messages that wait take part.
    db.run(&format!(
        "insert into public.message_delivery_log (channel, provider, recipient, segments, next_attempt_at, deadline_at)
         select 'sms', 'mtn', '+250788123456', 2, '{}', '{}' from generate_series(1, 10)",
        at_text(0),
        at_text(3_600_000)
    ))
    .await;
    let mut calls = Vec::new();
    for _ in 0..120 {
        calls.push(ended_call(&db, &phone(), -1000).await);
    }
    let (here, calls) = (&db, &calls);
    let worker = |worker: usize| async move {
        let client = here.connect().await;
        let mut sent = 0;
        for (i, call) in calls.iter().enumerate().filter(|(i, _)| i % 12 == worker) {
            let n = 1000 + i as u32;
            let p = json!({"correlation_id": format!("p-{n}"), "call_ref": call, "lease_token": token(n), "now": at_text(0)});
            let claim = rpc(&client, "begin_call_notification", p).await;
            if claim["guards"]["refused"]["sms"].is_null() && i % 10 != 9 {
                // Every tenth holder that may send is gone without a word: its money stays reserved.
                sent += 20;
                rpc(&client, "finish_call_notification", finished(&claim, n, Some(2), "accepted")).await;
            }
            if i % 12 == 0 {
                let p = json!({"lease_token": token(n + 500), "limit": 2, "now": at_text(1000)});
                let due = rpc(&client, "claim_due_deliveries", p).await;
                sent += 20 * due["deliveries"].as_array().unwrap().len();
            }
        }
        sent
    };
    let sent: usize = all((0..12).map(worker)).await.into_iter().sum();
    let committed = committed(&db).await;
    assert!(sent as f64 <= committed && committed <= 600.0, "{sent} sent, {committed} committed");
    assert!(committed > 500.0, "the budget is used: {committed}");
    let real = db.value("select sum(amount)::float8 from public.send_permits").await;
    assert_eq!(real.as_f64(), Some(committed), "every permit is counted, and nothing else");
    assert_eq!(alerts(&db).await, json!(["budget_hard", "budget_soft"]));
    assert_eq!(db.value("select sum(occurrences) from public.alerts").await, json!(2));
}
