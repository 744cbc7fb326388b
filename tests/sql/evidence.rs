//! What is known and wished of a person has a source and a date, whichever way it came in.

use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, ended_call, phone, text, token, unique, with};

/// `[has_whatsapp, source, date, what it counts as then]`.
async fn evidence(db: &Db, phone: &str) -> Value {
    let sql = "select jsonb_build_array(has_whatsapp, has_whatsapp_source, extract(epoch from has_whatsapp_at - '{zero}')::integer,
                 private.whatsapp_evidence(has_whatsapp, has_whatsapp_source, has_whatsapp_at, '{zero}'))
                 from public.profiles where phone_number = '{phone}'";
    db.value(&sql.replace("{zero}", &at_text(0)).replace("{phone}", phone)).await
}

/// A summary on WhatsApp whose first attempt came to this, at time 0; the id of its delivery.
async fn told(db: &Db, phone: &str, attempt: Value) -> String {
    let call = ended_call(db, phone, -1_000).await;
    let n = 500_000 + u32::try_from(unique()).unwrap();
    let claim = json!({"correlation_id": format!("c-{n}"), "call_ref": call, "phone_number": phone, "lease_token": token(n), "now": at_text(0)});
    let claimed = db.rpc("begin_call_notification", claim).await;
    let id = text(&claimed, "/delivery_ids/whatsapp");
    let delivery = json!({"id": id, "channel": "whatsapp", "provider": "whatsapp", "recipient": phone, "purpose": "call_summary",
                          "content": "x", "deadline_at": at_text(86_400_000), "attempt": attempt});
    let done = json!({"notification_id": claimed["notification_id"], "lease_token": token(n), "correlation_id": "c", "outcome": "done",
                      "message": {"content": "x"}, "deliveries": [delivery], "now": at_text(0)});
    db.rpc("finish_call_notification", done).await;
    id
}

async fn report(db: &Db, id: &str, status: &str, evidence: Option<&str>, ms: i64) {
    let event = json!({"provider": "whatsapp", "delivery_ref": id, "status": status, "raw_status": status, "evidence": evidence, "occurred_at": at_text(ms)});
    db.rpc("record_delivery_events", json!({"correlation_id": "r", "events": [event], "now": at_text(ms)})).await;
}

#[tokio::test]
async fn whether_somebody_has_whatsapp_is_known_from_what_happened_and_when() {
    let db = Db::new().await;
    let nobody = phone();
    told(&db, &nobody, attempt("accepted", 0)).await;
    assert_eq!(
        evidence(&db, &nobody).await,
        json!([false, null, null, "unknown"]),
        "that Meta takes it proves nothing"
    );

    let wrote = phone();
    let message = json!({"correlation_id": "c", "channel": "whatsapp", "provider": "whatsapp", "provider_message_id": format!("wamid.{}", unique()),
                         "from": wrote, "to": "118", "text": "hello", "received_at": at_text(5_000), "lease_token": token(1), "now": at_text(5_000)});
    db.rpc("begin_sms_turn", message).await;
    assert_eq!(evidence(&db, &wrote).await, json!([true, "inbound", 5, "yes"]));

    let called = phone();
    let call = json!({"call_sid": format!("wacid.{}", unique()), "event": "connect", "direction": "inbound", "phone": called,
                      "phone_number_id": "118", "occurred_at": at_text(7_000)});
    db.rpc("record_whatsapp_calls", json!({"correlation_id": "c", "calls": [call], "now": at_text(8_000)})).await;
    assert_eq!(evidence(&db, &called).await, json!([true, "inbound", 7, "yes"]));

    for (status, expected) in [
        ("sent", json!([false, null, null, "unknown"])),
        ("delivered", json!([true, "delivered", 9, "yes"])),
        ("read", json!([true, "delivered", 9, "yes"])),
    ] {
        let reached = phone();
        let id = told(&db, &reached, attempt("accepted", 0)).await;
        report(&db, &id, status, None, 9_000).await;
        assert_eq!(evidence(&db, &reached).await, expected, "{status}");
    }

    let refused = phone();
    told(&db, &refused, with(attempt("permanent", 0), json!({"evidence": "not_on_whatsapp"}))).await;
    assert_eq!(evidence(&db, &refused).await, json!([false, "not_on_whatsapp", 0, "no"]), "131026 in the answer");
    let later = phone();
    let id = told(&db, &later, attempt("accepted", 0)).await;
    report(&db, &id, "undeliverable", Some("not_on_whatsapp"), 11_000).await;
    assert_eq!(evidence(&db, &later).await, json!([false, "not_on_whatsapp", 11, "no"]), "131026 as a status");
    // It is not turned over by what happened before it, and is by what happened since.
    let older = told(&db, &later, attempt("accepted", 0)).await;
    report(&db, &older, "delivered", None, 10_000).await;
    assert_eq!(evidence(&db, &later).await, json!([false, "not_on_whatsapp", 11, "no"]));
    let newer = told(&db, &later, attempt("accepted", 0)).await;
    report(&db, &newer, "delivered", None, 12_000).await;
    assert_eq!(evidence(&db, &later).await, json!([true, "delivered", 12, "yes"]));
}

/// `[policy, source, dated, allows_whatsapp, source, dated]`.
async fn wishes(db: &Db, phone: &str) -> Value {
    let sql = "select jsonb_build_array(n -> 'policy', n -> 'policy_source', n ->> 'policy_at' <> '', n -> 'allows_whatsapp', n -> 'allows_whatsapp_source',
                 n ->> 'allows_whatsapp_at' <> '')
                 from public.profiles p, jsonb(p.notification_preferences) n where p.phone_number = '{phone}'";
    db.value(&sql.replace("{phone}", phone)).await
}

#[tokio::test]
async fn a_wish_that_was_written_by_hand_has_a_source_and_a_date() {
    let db = Db::new().await;
    let phone = phone();
    let write =
        async |set: &str| db.run(&format!("update public.profiles set {set} where phone_number = '{phone}'")).await;
    db.run(&format!("insert into public.profiles (phone_number) values ('{phone}')")).await;
    assert_eq!(wishes(&db, &phone).await, json!([null, null, null, null, null, null]));
    write(r#"notification_preferences = '{"policy": "cheapest", "allows_whatsapp": false}'"#).await;
    assert_eq!(wishes(&db, &phone).await, json!(["cheapest", "preference", true, false, "preference", true]));
    // Said by its writer: left as it is.
    let keyword = r#"notification_preferences = notification_preferences || '{"policy": "both", "policy_source": "keyword", "policy_at": "2026-01-01T00:00:00Z"}'"#;
    write(keyword).await;
    let at =
        format!("select notification_preferences ->> 'policy_at' from public.profiles where phone_number = '{phone}'");
    assert_eq!(db.value(&at).await, "2026-01-01T00:00:00Z");
    // Written again as it was, by somebody who knows only the policy.
    write(r#"notification_preferences = '{"policy": "both"}'"#).await;
    assert_eq!(wishes(&db, &phone).await, json!(["both", "keyword", true, null, null, null]));
    assert_eq!(db.value(&at).await, "2026-01-01T00:00:00Z");
    write(r#"notification_preferences = notification_preferences || '{"policy": "sms_only"}'"#).await;
    assert_eq!(wishes(&db, &phone).await, json!(["sms_only", "preference", true, null, null, null]));
    assert_ne!(db.value(&at).await, "2026-01-01T00:00:00Z");
    write("notification_preferences = notification_preferences - 'policy'").await;
    assert_eq!(wishes(&db, &phone).await, json!([null, null, null, null, null, null]));
    write("has_whatsapp = true, allows_sms = false").await;
    let found = "select jsonb_build_array(has_whatsapp_source, has_whatsapp_at = now(), allows_sms_source, allows_sms_at = now()) from public.profiles";
    db.run("begin").await;
    write("has_whatsapp = false, allows_sms = true").await;
    assert_eq!(db.value(found).await, json!(["given", true, "preference", true]));
    db.run("commit").await;
}

#[tokio::test]
async fn a_clients_default_has_a_source_and_a_date() {
    let db = Db::new().await;
    let state = "select jsonb_build_array(default_policy, default_policy_source, default_policy_at = now()) from public.clients where is_default";
    assert_eq!(db.value(state).await, json!(["both", null, null]), "as it was made");
    db.run("begin; update public.clients set brand = 'Another' where is_default").await;
    assert_eq!(db.value(state).await, json!(["both", null, null]), "not about the policy");
    db.run("update public.clients set default_policy = 'whatsapp_then_sms' where is_default").await;
    assert_eq!(db.value(state).await, json!(["whatsapp_then_sms", "operator", true]));
    db.run("update public.clients set default_policy = 'cheapest', default_policy_source = 'console', default_policy_at = '2026-01-01' where is_default").await;
    assert_eq!(db.value(state).await, json!(["cheapest", "console", false]));
    db.run(r#"update public.clients set settings = '{"whatsapp_then_sms": {"after": 60}}' where is_default"#).await;
    assert_eq!(db.value(state).await, json!(["cheapest", "operator", true]));
}
