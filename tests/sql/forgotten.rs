//! FORGET ME, ERASE ALL and MY DATA: what they leave behind, when they count, and that whoever said STOP stays unwritten to.

use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, phone, text, token, with};

const DAY_MS: i64 = 86_400_000;

/// A message with the keyword that the edge saw in it.
async fn says(db: &Db, phone: &str, n: u32, ms: i64, keyword: Option<&str>) -> Value {
    let p = json!({"correlation_id": format!("m-{n}"), "provider": "mtn", "provider_message_id": format!("{phone}-{n}"), "from": phone, "to": "8080",
                   "text": keyword.unwrap_or("hello"), "keyword": keyword, "lease_token": token(n), "now": at_text(ms), "received_at": at_text(ms)});
    db.rpc("begin_sms_turn", p).await
}

/// Answers a claim; the delivery is accepted, and delivered where `reported`.
async fn answer(db: &Db, turn: &Value, phone: &str, n: u32, ms: i64, reported: bool) {
    let id = format!("out-{phone}-{n}");
    let sent = with(attempt("accepted", ms), json!({"provider_message_id": id}));
    let p = json!({"turn_id": turn["turn_id"], "lease_token": token(n), "outcome": "answered", "now": at_text(ms), "reply": {"content": "Yes.", "source": "keyword"},
                   "deliveries": [{"id": turn["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "recipient": phone, "content": "Yes.", "purpose": "keyword",
                                   "deadline_at": at_text(ms + DAY_MS), "attempt": sent}]});
    db.rpc("finish_sms_turn", p).await;
    if reported {
        let event = json!({"provider": "mtn", "provider_message_id": id, "delivery_ref": turn["delivery_ids"]["sms"], "status": "delivered", "occurred_at": at_text(ms)});
        db.rpc("record_delivery_events", json!({"correlation_id": "r", "events": [event], "now": at_text(ms)})).await;
    }
}

/// Says the keyword and is answered.
async fn asks(db: &Db, phone: &str, n: u32, ms: i64, keyword: &str) -> Value {
    let turn = says(db, phone, n, ms, Some(keyword)).await;
    assert_eq!((&turn["decision"], &turn["keyword"]), (&json!("go"), &json!(keyword)), "{turn}");
    answer(db, &turn, phone, n, ms + 100, true).await;
    turn
}

async fn requests(db: &Db) -> Value {
    db.value("select coalesce(string_agg(kind || ' ' || state, ', ' order by number), '') from public.privacy_requests")
        .await
}

#[tokio::test]
async fn whoever_asks_and_confirms_is_erased_by_the_next_sweep_and_nobody_else() {
    let db = Db::new().await;
    let (phone, neighbour) = (phone(), phone());
    let other = says(&db, &neighbour, 50, 0, None).await;
    answer(&db, &other, &neighbour, 50, 100, true).await;
    asks(&db, &phone, 1, 0, "forget_me").await;
    assert_eq!(requests(&db).await, "erase asked");
    assert_eq!(db.rpc("sweep", json!({"now": at_text(1000)})).await["erasures"], json!([]), "not before they confirm");
    let turn = says(&db, &phone, 2, 60_000, Some("forget_confirm")).await;
    assert_eq!(turn["keyword"], "forget_confirm");
    assert_eq!(requests(&db).await, "erase confirmed");
    let request = text(&db.value("select id from public.privacy_requests").await, "");
    let erase =
        async |ms: i64| db.rpc("erase_asked", json!({"id": request, "now": at_text(ms)})).await["decision"].clone();
    assert_eq!(erase(60_100).await, "later", "somebody answers");
    answer(&db, &turn, &phone, 2, 60_200, false).await;
    assert_eq!(erase(60_300).await, "later", "the last message has no report yet");
    assert_eq!(db.rpc("sweep", json!({"now": at_text(61_000)})).await["erasures"], json!([]), "it was just tried");
    let swept = db.rpc("sweep", json!({"now": at_text(60_300 + 180_000)})).await;
    assert_eq!(swept["erasures"], json!([request]));
    // The turn's lease is of the test's time; whoever erases looks at the clock.
    db.run(
        "update public.message_delivery_log set lease_until = null, lease_token = null where lease_token is not null",
    )
    .await;
    assert_eq!(erase(60_000 + 16 * 60_000).await, "erased", "a report that never comes is not waited for");
    assert_eq!(erase(60_000 + 17 * 60_000).await, "nothing");
    assert_eq!(db.value("select string_agg(phone_number, ' ') from public.profiles").await, json!(neighbour));
    assert_eq!(db.value("select string_agg(reason, ' ') from public.erasures").await, "asked_by_person");
    assert_eq!(requests(&db).await, "");
}

#[tokio::test]
async fn a_confirmation_by_itself_late_or_of_another_erases_nobody() {
    let db = Db::new().await;
    let (phone, other) = (phone(), phone());
    let turn = says(&db, &phone, 1, 0, Some("forget_confirm")).await;
    assert_eq!((&turn["kind"], &turn["keyword"]), (&json!("conversation"), &Value::Null), "an agent answers");
    answer(&db, &turn, &phone, 1, 100, true).await;
    asks(&db, &phone, 2, 1000, "forget_me").await;
    let of_other = says(&db, &other, 3, 2000, Some("forget_confirm")).await;
    assert_eq!(of_other["kind"], "conversation");
    let late = says(&db, &phone, 4, 1000 + DAY_MS + 1, Some("forget_confirm")).await;
    assert_eq!(late["kind"], "conversation", "the 24 hours are over");
    answer(&db, &late, &phone, 4, 2000 + DAY_MS, true).await;
    assert_eq!(requests(&db).await, "erase asked");
    // Asked again, they begin again; asked twice, it is one request.
    asks(&db, &phone, 5, 2 * DAY_MS, "forget_me").await;
    assert_eq!(requests(&db).await, "erase asked");
    asks(&db, &phone, 6, 3 * DAY_MS - 1000, "forget_confirm").await;
    assert_eq!(requests(&db).await, "erase confirmed");
    // The carrier's repeat of the same message does nothing more.
    let again = says(&db, &phone, 6, 3 * DAY_MS, Some("forget_confirm")).await;
    assert_eq!(again["decision"], "duplicate");
    db.run("update public.privacy_requests set confirmed_at = confirmed_at - interval '30 hours'").await;
    db.rpc("sweep", json!({"now": at_text(3 * DAY_MS)})).await;
    assert_eq!(
        db.count("select count(*) from public.alerts where kind = 'erasure_overdue' and resolved_at is null").await,
        1
    );
}

#[tokio::test]
async fn a_sender_that_proves_nothing_asks_for_nothing() {
    let db = Db::new().await;
    for (n, keyword) in ["forget_me", "my_data"].into_iter().enumerate() {
        let phone = phone();
        let p = json!({"correlation_id": "u", "provider": "mtn", "provider_message_id": phone, "from": phone, "to": "8080", "text": keyword, "keyword": keyword,
                       "unsigned": true, "lease_token": token(n as u32 + 1), "now": at_text(0)});
        assert_eq!(db.rpc("begin_sms_turn", p).await["kind"], "conversation", "{keyword}");
    }
    assert_eq!(requests(&db).await, "");
}

#[tokio::test]
async fn whoever_said_stop_is_erased_and_still_not_written_to_until_they_say_start() {
    let db = Db::new().await;
    let (stopped, willing) = (phone(), phone());
    asks(&db, &stopped, 1, 0, "stop").await;
    asks(&db, &willing, 2, 0, "help").await;
    for phone in [&stopped, &willing] {
        db.run(&format!("select public.erase_person((select id from public.profiles where phone_number = '{phone}'), 'asked_by_person')")).await;
    }
    assert_eq!(db.count("select count(*) from public.profiles").await, 0);
    assert_eq!(db.value("select string_agg(channel, ' ') from public.kept_opt_outs").await, "sms");
    let spelled = format!(
        "select count(*) from public.kept_opt_outs where number_hash like '%{}%'",
        stopped.trim_start_matches('+')
    );
    assert_eq!(db.count(&spelled).await, 0);
    // They come back as strangers; one of them is not to be written to.
    let allowed = async |phone: &str| {
        db.run(&format!("select private.ensure_profile('{phone}')")).await;
        db.value(&format!("select allows_sms from public.profiles where phone_number = '{phone}'")).await
    };
    assert_eq!((allowed(&stopped).await, allowed(&willing).await), (json!(false), json!(true)));
    asks(&db, &stopped, 3, 10_000, "start").await;
    assert_eq!(allowed(&stopped).await, true);
    assert_eq!(db.count("select count(*) from public.kept_opt_outs").await, 0);
}

#[tokio::test]
async fn my_data_counts_what_there_is_and_the_operator_has_a_request_until_it_is_done() {
    let db = Db::new().await;
    let phone = phone();
    let turn = says(&db, &phone, 1, 0, None).await;
    answer(&db, &turn, &phone, 1, 100, true).await;
    let p = json!({"session_id": turn["session"]["id"], "name": "remember", "arguments": {"key": "area", "value": "Kicukiro"}, "idempotency_key": "r", "now": at_text(200)});
    assert_eq!(db.rpc("run_agent_tool", p).await["ok"], true);
    let asked = asks(&db, &phone, 2, 1000, "my_data").await;
    assert_eq!(asked["held"], json!({"messages": 3, "calls": 0, "notes": 1}));
    asks(&db, &phone, 3, 2000, "my_data").await;
    assert_eq!(requests(&db).await, "export asked");
    let open =
        "select string_agg(details::text, ' ') from public.alerts where kind = 'export_asked' and resolved_at is null";
    let number = db.value("select number from public.privacy_requests").await;
    assert_eq!(db.value(open).await, format!("{{\"number\": {number}}}"));

    let export = db
        .value(&format!("select public.export_person((select id from public.profiles where phone_number = '{phone}'))"))
        .await;
    assert_eq!(export["profiles"][0]["phone_number"], json!(phone));
    assert_eq!(export["conversation_messages"].as_array().unwrap().len(), 6);
    assert_eq!(export["voice_memories"][0]["value"], "Kicukiro");
    assert_eq!(export["mcp_tool_calls"][0]["name"], "remember");
    let told = export.to_string();
    assert!(!told.contains("lease_token") && !told.contains("idempotency_key") && !told.contains("\"cost\""), "{told}");

    let done = json!({"number": number, "operator": "Aline", "now": at_text(3000)});
    assert_eq!(db.rpc("finish_privacy_request", done.clone()).await["done_by"], "Aline");
    assert_eq!(db.try_rpc("finish_privacy_request", done).await.unwrap_err().code, "PT404");
    assert_eq!(db.value(open).await, Value::Null);
}
