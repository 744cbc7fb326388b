//! Opt-outs that a provider tells of: kept as the person's own word, per channel, until they say something else.

use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, ended_call, phone, text, token, with};

/// A summary that the carriers answer so; the claim.
async fn told(db: &Db, n: u32, phone: &str, ms: i64, channel: &str, more: Value) -> Value {
    let call = ended_call(db, phone, ms - 1000).await;
    let p = json!({"correlation_id": format!("o-{n}"), "call_ref": call, "lease_token": token(n), "now": at_text(ms)});
    let claim = db.rpc("begin_call_notification", p).await;
    let provider = if channel == "sms" { "mtn" } else { "whatsapp" };
    let delivery = json!({"id": claim["delivery_ids"][channel], "channel": channel, "provider": provider, "recipient": phone, "purpose": "call_summary",
                          "payload": {"text": "hello"}, "deadline_at": at_text(86_400_000), "attempt": with(attempt("permanent", ms), more)});
    let p = json!({"notification_id": claim["notification_id"], "lease_token": token(n), "outcome": "done", "now": at_text(ms + 10), "deliveries": [delivery]});
    db.rpc("finish_call_notification", p).await;
    claim
}

async fn allowed(db: &Db, phone: &str) -> Value {
    db.value(&format!(
        "select jsonb_build_array(private.may_answer(id, 'sms'), private.may_answer(id, 'whatsapp')) from public.profiles where phone_number = '{phone}'"
    ))
    .await
}

fn wrote(n: u32, channel: &str, from: &str, keyword: Option<&str>, ms: i64) -> Value {
    let provider = if channel == "sms" { "mtn" } else { "whatsapp" };
    json!({"correlation_id": "c", "channel": channel, "provider": provider, "provider_message_id": format!("o-{n}"), "from": from, "to": "8080",
           "text": "hello", "keyword": keyword, "lease_token": token(n), "received_at": at_text(ms), "now": at_text(ms)})
}

#[tokio::test]
async fn each_channel_learns_its_own_and_leaves_the_other_open() {
    let db = Db::new().await;
    let opted_out = json!({"error_code": "131050", "evidence": "opted_out", "breaker": false});
    let (by_sms, on_whatsapp, neither) = (phone(), phone(), phone());
    told(&db, 1, &by_sms, 0, "sms", opted_out.clone()).await;
    told(&db, 2, &on_whatsapp, 0, "whatsapp", opted_out).await;
    told(&db, 3, &neither, 0, "whatsapp", json!({"error_code": "131049", "breaker": false})).await;
    assert_eq!(allowed(&db, &by_sms).await, json!([false, true]));
    assert_eq!(allowed(&db, &on_whatsapp).await, json!([true, false]));
    assert_eq!(allowed(&db, &neither).await, json!([true, true]));
    let kept = db
        .value(&format!(
            "select notification_preferences - 'allows_whatsapp_at' from public.profiles where phone_number = '{on_whatsapp}'"
        ))
        .await;
    assert_eq!(kept, json!({"allows_whatsapp": false, "allows_whatsapp_source": "provider"}));
}

#[tokio::test]
async fn a_report_that_comes_later_or_before_its_message_tells_it_as_well() {
    let db = Db::new().await;
    let (late, early) = (phone(), phone());
    let report = |id: &Value| {
        json!({"correlation_id": "r", "now": at_text(3000), "events": [{"provider": "whatsapp", "status": "undeliverable", "delivery_ref": id,
               "occurred_at": at_text(2000), "error_code": "131050", "error_class": "permanent", "evidence": "opted_out"}]})
    };
    let claim =
        told(&db, 1, &late, 0, "whatsapp", json!({"outcome": "accepted", "provider_message_id": "wamid.1"})).await;
    assert_eq!(allowed(&db, &late).await, json!([true, true]));
    db.rpc("record_delivery_events", report(&claim["delivery_ids"]["whatsapp"])).await;
    assert_eq!(allowed(&db, &late).await, json!([true, false]));

    // The report is there before anybody recorded the message.
    let call = ended_call(&db, &early, -1000).await;
    let p = json!({"correlation_id": "e", "call_ref": call, "lease_token": token(2), "now": at_text(0)});
    let claim = db.rpc("begin_call_notification", p).await;
    db.rpc("record_delivery_events", report(&claim["delivery_ids"]["whatsapp"])).await;
    assert_eq!(allowed(&db, &early).await, json!([true, true]), "nobody knows yet whose it is");
    let delivery = json!({"id": claim["delivery_ids"]["whatsapp"], "channel": "whatsapp", "provider": "whatsapp", "recipient": early,
                          "purpose": "call_summary", "attempt": attempt("accepted", 1000)});
    let p = json!({"notification_id": claim["notification_id"], "lease_token": token(2), "outcome": "done", "now": at_text(4000), "deliveries": [delivery]});
    db.rpc("finish_call_notification", p).await;
    assert_eq!(allowed(&db, &early).await, json!([true, false]));
}

#[tokio::test]
async fn who_writes_on_whatsapp_is_answered_there_but_not_after_their_own_stop() {
    let db = Db::new().await;
    let opted_out = json!({"error_code": "131050", "evidence": "opted_out", "breaker": false});
    let from = phone();
    told(&db, 1, &from, 0, "whatsapp", opted_out.clone()).await;
    assert_eq!(db.rpc("begin_sms_turn", wrote(2, "whatsapp", &from, None, 1000)).await["decision"], "go");
    assert_eq!(allowed(&db, &from).await, json!([true, true]));
    // What the provider tells of the time before that is out of date.
    told(&db, 3, &from, 500, "whatsapp", opted_out.clone()).await;
    assert_eq!(allowed(&db, &from).await, json!([true, true]));
    told(&db, 4, &from, 5000, "whatsapp", opted_out).await;
    assert_eq!(allowed(&db, &from).await, json!([true, false]));

    let other = phone();
    assert_eq!(
        db.rpc("begin_sms_turn", wrote(10, "whatsapp", &other, Some("stop"), 1000)).await["decision"],
        "go",
        "it is confirmed"
    );
    assert_eq!(db.rpc("begin_sms_turn", wrote(11, "whatsapp", &other, None, 2000)).await["decision"], "opted_out");
    assert_eq!(allowed(&db, &other).await, json!([true, false]));
    assert_eq!(
        text(&db.rpc("begin_sms_turn", wrote(12, "whatsapp", &other, Some("start"), 3000)).await, "/decision"),
        "go"
    );
    assert_eq!(allowed(&db, &other).await, json!([true, true]));
}
