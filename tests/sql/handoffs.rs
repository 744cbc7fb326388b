//! After a hand-over is taken: the agents are silent, the operator reads and writes, and closed or let lie it is the agents' again.

use ihuza_core::sms;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Db, at_text, check_cases, phone, text, token};

const HOUR_MS: i64 = 3_600_000;

async fn says(db: &Db, phone: &str, n: u32, ms: i64, said: &str) -> Value {
    let p = json!({"correlation_id": format!("m-{n}"), "provider": "mtn", "provider_message_id": format!("{phone}-{n}"), "from": phone, "to": "8080",
                   "text": said, "lease_token": token(n), "now": at_text(ms), "received_at": at_text(ms), "history_limit": 30});
    db.rpc("begin_sms_turn", p).await
}

async fn answered(db: &Db, turn: &Value, n: u32, ms: i64) {
    assert_eq!(turn["decision"], "go", "{turn}");
    let p = json!({"turn_id": turn["turn_id"], "lease_token": token(n), "outcome": "answered", "now": at_text(ms), "reply": {"content": "I have asked a colleague.", "source": "model"}, "deliveries": []});
    db.rpc("finish_sms_turn", p).await;
}

/// Somebody who asked for a person; the session.
async fn waiting(db: &Db, phone: &str) -> String {
    let turn = says(db, phone, 1, 0, "I want a person").await;
    let session = text(&turn, "/session/id");
    let p = json!({"session_id": session, "turn_id": turn["turn_id"], "name": "transfer_to_human", "arguments": {"reason": "about the contract"},
                   "idempotency_key": format!("h-{phone}"), "now": at_text(100)});
    assert_eq!(db.rpc("run_agent_tool", p).await["ok"], true);
    answered(db, &turn, 1, 200).await;
    session
}

/// The operator takes it; its id.
async fn taken(db: &Db, ms: i64) -> String {
    let client = db.value("select private.default_client_id()").await;
    let answer = db.rpc("take_handoff", json!({"operator": "Aline", "client_id": client, "now": at_text(ms)})).await;
    assert_eq!(answer["decision"], "taken", "{answer}");
    text(&answer, "/handoff/id")
}

fn says_operator(id: &str, key: &str, said: &str, ms: i64) -> Value {
    json!({"id": id, "operator": "Aline", "text": said, "idempotency_key": key, "now": at_text(ms)})
}

#[tokio::test]
async fn who_waits_is_still_answered_and_who_is_taken_is_left_to_the_operator_until_they_close() {
    let db = Db::new().await;
    let phone = phone();
    let session = waiting(&db, &phone).await;
    let turn = says(&db, &phone, 2, 1000, "Hello?").await;
    assert_eq!(turn["known"]["handovers"][0]["state"], "waiting", "the agent knows that a colleague was asked for");
    assert_eq!(turn["known"]["handovers"][0]["reason"], "about the contract");
    answered(&db, &turn, 2, 1100).await;

    let id = taken(&db, 2000).await;
    assert_eq!(says(&db, &phone, 3, 3000, "Are you there?").await["decision"], "with_operator");
    assert_eq!(says(&db, &phone, 3, 3100, "Are you there?").await["decision"], "duplicate");
    let sweep = db.rpc("sweep", json!({"now": at_text(3000 + 600_000)})).await;
    assert_eq!(sweep["turns"], json!([]), "nobody answers it behind the operator's back");
    let by_session =
        json!({"correlation_id": "s", "session_id": session, "lease_token": token(9), "now": at_text(4000)});
    assert_eq!(db.rpc("begin_sms_turn", by_session).await["decision"], "nothing");
    // STOP is obeyed whoever has the conversation.
    let read = db.rpc("read_handoff", json!({"id": id, "operator": "Aline"})).await;
    let last = read["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&last["text"], &last["by"], &last["waits"]),
        (&json!("Are you there?"), &json!("person"), &json!(true))
    );

    let said = db.rpc("say_in_handoff", says_operator(&id, "one", "Yes, I am. The contract is ready.", 5000)).await;
    assert_eq!((&said["decision"], &said["channels"]["sms"]), (&json!("said"), &json!("on its way")), "{said}");
    let again = db.rpc("say_in_handoff", says_operator(&id, "one", "Yes, I am. The contract is ready.", 5100)).await;
    assert_eq!(again["repeated"], true);
    let rows = "select string_agg(l.status || ' ' || l.purpose || ' ' || l.segments || ' ' || coalesce(l.encoding, '') || ' ' || (l.next_attempt_at is not null), ', ') from public.message_delivery_log l where l.content like 'Yes, I am.%'";
    assert_eq!(db.value(rows).await, "queued message 1 gsm7 true", "once, in the log, due now");
    let read = db.rpc("read_handoff", json!({"id": id, "operator": "Aline", "after": last["seq"]})).await;
    assert_eq!((&read["messages"][0]["by"], &read["messages"].as_array().unwrap().len()), (&json!("operator"), &1));
    assert_eq!(says(&db, &phone, 4, 6000, "Thank you").await["decision"], "with_operator");

    db.rpc("close_handoff", json!({"id": id, "operator": "Aline", "outcome": "contract sent", "now": at_text(7000)}))
        .await;
    let turn = says(&db, &phone, 5, 8000, "And the deposit?").await;
    assert_eq!(turn["decision"], "go");
    let history: Vec<(String, String)> =
        turn["history"].as_array().unwrap().iter().map(|h| (text(h, "/role"), text(h, "/text"))).collect();
    let tail: Vec<(&str, &str)> =
        history.iter().rev().take(3).rev().map(|(role, said)| (role.as_str(), said.as_str())).collect();
    assert_eq!(
        tail,
        [("user", "Are you there?"), ("colleague", "Yes, I am. The contract is ready."), ("user", "Thank you")]
    );
    assert_eq!(turn["known"]["handovers"][0]["outcome"], "contract sent");
    assert_eq!(turn["messages"].as_array().unwrap().len(), 1, "what the operator had is not answered once more");
    assert!(!turn.to_string().contains("Aline"));
}

#[tokio::test]
async fn only_who_has_taken_it_reads_and_writes_and_only_what_may_be_sent_goes_out() {
    let db = Db::new().await;
    let (phone, other) = (phone(), phone());
    waiting(&db, &phone).await;
    let id = taken(&db, 1000).await;
    for p in [
        json!({"id": id, "operator": "Eric", "text": "x", "idempotency_key": "a"}),
        json!({"id": token(1), "operator": "Aline", "text": "x", "idempotency_key": "a"}),
    ] {
        assert_eq!(db.try_rpc("say_in_handoff", p.clone()).await.unwrap_err().code, "PT404", "{p}");
        assert_eq!(db.try_rpc("read_handoff", p).await.unwrap_err().code, "PT404");
    }
    let long = "é".repeat(500);
    for (said, channel) in [(long.as_str(), "sms"), ("x", "pigeon")] {
        let mut p = says_operator(&id, "b", said, 2000);
        p["channel"] = json!(channel);
        assert_eq!(db.try_rpc("say_in_handoff", p).await.unwrap_err().code, "PT400", "{channel}");
    }
    // Nobody opened WhatsApp, and SMS were stopped: a row says why, and nothing is sent.
    let mut p = says_operator(&id, "c", "Hello", 3000);
    p["channel"] = json!("whatsapp");
    let said = db.rpc("say_in_handoff", p).await;
    assert_eq!(
        (&said["decision"], &said["channels"]["whatsapp"]),
        (&json!("not_sent"), &json!("not sent: service_window_closed"))
    );
    db.run(&format!("update public.profiles set allows_sms = false where phone_number = '{phone}'")).await;
    let said = db.rpc("say_in_handoff", says_operator(&id, "d", "Hello", 4000)).await;
    assert_eq!(said["channels"]["sms"], "not sent: opted_out");
    assert_eq!(db.value("select string_agg(suppress_reason, ' ' order by created_at) from public.message_delivery_log where purpose = 'message'").await, "service_window_closed opted_out");
    // Somebody else's conversation is not touched by it.
    let turn = says(&db, &other, 20, 5000, "Hello").await;
    assert_eq!(turn["decision"], "go");
    assert_eq!(turn["known"]["handovers"], json!([]));
}

#[tokio::test]
async fn what_an_operator_lets_lie_for_four_hours_waits_again_and_an_agent_answers() {
    let db = Db::new().await;
    let phone = phone();
    waiting(&db, &phone).await;
    let id = taken(&db, 1000).await;
    assert_eq!(says(&db, &phone, 2, 2000, "First").await["decision"], "with_operator");
    db.rpc("say_in_handoff", says_operator(&id, "one", "One moment", HOUR_MS)).await;
    assert_eq!(says(&db, &phone, 3, 2 * HOUR_MS, "Second").await["decision"], "with_operator");
    db.run(&format!(
        "update public.conversation_messages set created_at = '{}' where created_at > now() - interval '1 hour'",
        at_text(0)
    ))
    .await;
    db.rpc("sweep", json!({"now": at_text(5 * HOUR_MS - 1000)})).await;
    assert_eq!(db.value("select state from public.handoffs").await, "taken", "four hours after they last wrote");
    let swept = db.rpc("sweep", json!({"now": at_text(5 * HOUR_MS + 1000)})).await;
    assert_eq!(
        db.value("select state || ' ' || returned || coalesce(taken_by, '') from public.handoffs").await,
        "waiting 1"
    );
    assert_eq!(
        db.count("select count(*) from public.alerts where kind = 'handoff_waiting' and resolved_at is null").await,
        1
    );
    assert_eq!(swept["turns"].as_array().unwrap().len(), 1, "{swept}");
    let p = json!({"correlation_id": "s", "session_id": swept["turns"][0]["session_id"], "lease_token": token(9), "now": at_text(5 * HOUR_MS + 2000)});
    let turn = db.rpc("begin_sms_turn", p).await;
    let said: Vec<&str> = turn["messages"].as_array().unwrap().iter().map(|m| m["text"].as_str().unwrap()).collect();
    assert_eq!(said, ["Second"], "the first was answered by the operator");
    assert_eq!(
        db.try_rpc("say_in_handoff", says_operator(&id, "two", "Back", 5 * HOUR_MS + 3000)).await.unwrap_err().code,
        "PT404"
    );
}

#[tokio::test]
async fn an_answer_that_was_to_be_tried_again_is_left_to_the_operator_too() {
    let db = Db::new().await;
    let phone = phone();
    waiting(&db, &phone).await;
    let turn = says(&db, &phone, 2, 1000, "Hello?").await;
    let p = json!({"turn_id": turn["turn_id"], "lease_token": token(2), "outcome": "released", "next_attempt_at": at_text(11_000), "now": at_text(1500)});
    db.rpc("finish_sms_turn", p).await;
    let id = taken(&db, 2000).await;
    let by_session = json!({"correlation_id": "s", "session_id": turn["session"]["id"], "lease_token": token(3), "now": at_text(12_000)});
    assert_eq!(db.rpc("begin_sms_turn", by_session).await["decision"], "nothing");
    assert_eq!(db.value("select string_agg(handled_as, ' ' order by seq) from public.conversation_messages where direction = 'inbound'").await, "answered with_operator");
    db.rpc("release_handoff", json!({"id": id, "operator": "Aline"})).await;
    assert_eq!(says(&db, &phone, 4, 13_000, "Anybody?").await["decision"], "go", "given back, an agent answers");
}

#[test]
fn the_database_counts_the_segments_of_an_operator_as_the_core_does() {
    let texts = "[ -~éèàùΩ€\\[\\]{}|~^\n]{0,500}|[a-zêœ’🏠 ]{0,220}";
    check_cases(48, texts, async |db: &Db, said: String| {
        let found: Value = db.service.query_one("select private.sms_size($1)", &[&said]).await.unwrap().get(0);
        let core = sms::count(&said);
        prop_assert_eq!(found["encoding"].as_str(), Some(core.encoding.as_str()));
        let segments = found["segments"].as_u64().unwrap() as usize;
        prop_assert!((core.segments..=core.segments + 1).contains(&segments), "{} instead of {:?}", segments, core);
        if said.chars().all(|c| sms::septets(c) == Some(1)) {
            prop_assert_eq!(segments, core.segments);
        }
        Ok(())
    });
}
