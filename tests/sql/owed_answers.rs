//! What is owed after an apology: one answer, a bounded number of tries, and nothing once the person wrote on.

use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, phone, text, token, unique, with};

const MINUTE_MS: i64 = 60_000;

/// What somebody wrote, as the queue brings it.
fn message(phone: &str, words: &str) -> Value {
    json!({"provider": "mtn", "provider_message_id": format!("sms-{}", unique()), "from": phone, "to": "8080", "text": words,
           "correlation_id": "corr"})
}

fn asked(message: &Value, n: u32, ms: i64) -> Value {
    with(message.clone(), json!({"lease_token": token(n), "now": at_text(ms)}))
}

/// Sends a text as the answer of a turn.
fn said(claimed: &Value, n: u32, ms: i64, source: &str) -> Value {
    let delivery = json!({"id": claimed["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "purpose": "reply",
                          "recipient": claimed["profile"]["phone_number"], "content": source, "payload": {"kind": "text", "text": source},
                          "attempt": attempt("accepted", ms)});
    json!({"turn_id": claimed["turn_id"], "lease_token": token(n), "outcome": "answered", "now": at_text(ms),
           "reply": {"content": source, "source": source, "agent_slug": "call-center"}, "deliveries": [delivery]})
}

fn apology(claimed: &Value, n: u32, ms: i64) -> Value {
    with(said(claimed, n, ms, "fallback"), json!({"owed": {"minutes": 15}}))
}

fn given_back(claimed: &Value, n: u32, ms: i64, more: Value) -> Value {
    with(
        json!({"turn_id": claimed["turn_id"], "lease_token": token(n), "outcome": "released", "now": at_text(ms), "deliveries": []}),
        more,
    )
}

/// What a sweep puts back into the queue of turns.
async fn swept(db: &Db, ms: i64) -> Vec<Value> {
    db.rpc("sweep", json!({"now": at_text(ms)})).await["turns"].as_array().unwrap().clone()
}

async fn session(db: &Db, session_id: &str, n: u32, ms: i64) -> Value {
    db.rpc(
        "begin_sms_turn",
        json!({"session_id": session_id, "correlation_id": "corr", "lease_token": token(n), "now": at_text(ms)}),
    )
    .await
}

/// Somebody who asked and got an apology: their number, their message, and the session.
async fn apologised(db: &Db) -> (String, Value, String) {
    let phone = phone();
    let message = message(&phone, "a house in Remera");
    let claimed = db.rpc("begin_sms_turn", asked(&message, 1, 0)).await;
    assert_eq!(claimed.get("owed"), None, "{claimed}");
    let done = db.rpc("finish_sms_turn", apology(&claimed, 1, 1_000)).await;
    assert_eq!((text(&done, "/status"), &done["owed"]), ("answered".into(), &json!(true)), "{done}");
    (phone, message, text(&claimed, "/session/id"))
}

/// Turns of all, oldest first: state, what is owed, messages; and what was said in them.
async fn turns(db: &Db) -> Value {
    db.value(
        "select jsonb_agg(jsonb_build_array(t.status, t.owed_for is not null,
                  (select count(*) from public.conversation_messages m where m.turn_id = t.id and m.direction = 'inbound'),
                  (select m.source from public.conversation_messages m where m.turn_id = t.id and m.direction = 'outbound')) order by t.created_at, t.owed_for nulls first)
           from public.conversation_turns t",
    )
    .await
}

#[tokio::test]
async fn after_an_apology_the_real_answer_is_owed_and_given_once() {
    let db = Db::new().await;
    let (_, message, session_id) = apologised(&db).await;
    assert_eq!(turns(&db).await, json!([["answered", false, 0, "fallback"], ["released", true, 1, null]]));
    // A copy of the message wakes nobody, and half a minute is not over.
    assert_eq!(text(&db.rpc("begin_sms_turn", asked(&message, 2, 5_000)).await, "/decision"), "duplicate");
    assert_eq!(swept(&db, 20_000).await, Vec::<Value>::new());
    assert_eq!(text(&session(&db, &session_id, 3, 20_000).await, "/decision"), "busy");
    let found = swept(&db, MINUTE_MS).await;
    assert_eq!((found.len(), text(&found[0], "/session_id")), (1, session_id.clone()));
    let claimed = session(&db, &session_id, 4, MINUTE_MS).await;
    assert_eq!((text(&claimed, "/decision"), &claimed["owed"]), ("go".into(), &json!(true)), "{claimed}");
    assert_eq!(text(&claimed, "/messages/0/text"), "a house in Remera");
    assert_eq!(text(&claimed, "/history/0/text"), "fallback", "the model knows what the person was told");
    // Somebody else at the same time finds it held.
    assert_eq!(text(&session(&db, &session_id, 5, MINUTE_MS + 1).await, "/decision"), "busy");
    let p = with(said(&claimed, 4, MINUTE_MS + 2_000, "model"), json!({"owed": {"minutes": 15}}));
    let done = db.rpc("finish_sms_turn", p.clone()).await;
    assert_eq!(
        (text(&done, "/status"), &done["owed"], &done["more"]),
        ("answered".into(), &json!(false), &json!(false))
    );
    assert_eq!(db.rpc("finish_sms_turn", p).await, done, "the same token again gets the same answer");
    assert_eq!(turns(&db).await, json!([["answered", false, 0, "fallback"], ["answered", true, 1, "model"]]));
    assert_eq!(text(&db.rpc("begin_sms_turn", asked(&message, 6, 2 * MINUTE_MS)).await, "/decision"), "duplicate");
    assert_eq!(swept(&db, 60 * MINUTE_MS).await, Vec::<Value>::new());
    assert_eq!(db.count("select count(*) from public.message_delivery_log where direction = 'outbound'").await, 2);
}

#[tokio::test]
async fn a_model_that_stays_away_is_asked_a_few_times_and_then_the_apology_was_the_answer() {
    let db = Db::new().await;
    let (_, _, session_id) = apologised(&db).await;
    let mut tries = Vec::new();
    for minute in 1..=40 {
        let ms = minute * MINUTE_MS;
        for found in swept(&db, ms).await {
            assert_eq!(text(&found, "/session_id"), session_id);
            let n = 10 + u32::try_from(minute).unwrap();
            let claimed = session(&db, &session_id, n, ms).await;
            if text(&claimed, "/decision") == "go" {
                tries.push(minute);
                db.rpc("finish_sms_turn", given_back(&claimed, n, ms + 1_000, json!({}))).await;
            } else {
                assert_eq!(text(&claimed, "/decision"), "nothing", "{claimed}");
            }
        }
    }
    assert_eq!(tries, [1, 3, 6, 11, 16][..tries.len()], "rarer each time");
    assert!((3..=5).contains(&tries.len()) && tries.iter().all(|minute| *minute <= 15), "{tries:?}");
    assert_eq!(turns(&db).await, json!([["answered", false, 1, "fallback"], ["abandoned", true, 0, null]]));
    assert_eq!(
        db.count(
            "select count(*) from public.conversation_messages where direction = 'inbound' and handled_as = 'answered'"
        )
        .await,
        1
    );
    assert_eq!(db.count("select count(*) from public.dead_letters").await, 0, "nobody has to look at it");
}

#[tokio::test]
async fn who_writes_on_gets_one_answer_to_everything() {
    let db = Db::new().await;
    let (phone, _, session_id) = apologised(&db).await;
    let claimed = db.rpc("begin_sms_turn", asked(&message(&phone, "for 400k"), 2, MINUTE_MS)).await;
    assert_eq!((text(&claimed, "/decision"), claimed.get("owed")), ("go".into(), None), "{claimed}");
    let texts: Vec<String> = claimed["messages"].as_array().unwrap().iter().map(|one| text(one, "/text")).collect();
    assert_eq!(texts, ["a house in Remera", "for 400k"]);
    db.rpc("finish_sms_turn", said(&claimed, 2, MINUTE_MS + 1_000, "model")).await;
    assert_eq!(
        turns(&db).await,
        json!([["answered", false, 0, "fallback"], ["abandoned", true, 0, null], ["answered", false, 2, "model"]])
    );
    assert_eq!(text(&session(&db, &session_id, 3, 2 * MINUTE_MS).await, "/decision"), "nothing");
    assert_eq!(swept(&db, 60 * MINUTE_MS).await, Vec::<Value>::new());
}

#[tokio::test]
async fn what_comes_while_the_owed_answer_is_made_is_answered_next_or_with_it() {
    let db = Db::new().await;
    for (answered, owed) in [(true, "answered"), (false, "abandoned")] {
        let (phone, _, session_id) = apologised(&db).await;
        let claimed = session(&db, &session_id, 4, MINUTE_MS).await;
        let newer = message(&phone, "for 400k");
        assert_eq!(text(&db.rpc("begin_sms_turn", asked(&newer, 5, MINUTE_MS + 1)).await, "/decision"), "stored");
        let p = if answered {
            said(&claimed, 4, MINUTE_MS + 2, "model")
        } else {
            given_back(&claimed, 4, MINUTE_MS + 2, json!({}))
        };
        let done = db.rpc("finish_sms_turn", p).await;
        assert_eq!((&done["more"], text(&done, "/status")), (&json!(true), owed.to_owned()), "{done}");
        let next = session(&db, &session_id, 6, MINUTE_MS + 3).await;
        assert_eq!(next.get("owed"), None, "it may apologise of its own: {next}");
        assert_eq!(next["messages"].as_array().unwrap().len(), if answered { 1 } else { 2 });
    }
}

#[tokio::test]
async fn nothing_is_owed_after_stop_nor_where_it_would_be_refused_again() {
    let db = Db::new().await;
    let (phone, _, session_id) = apologised(&db).await;
    let stop =
        with(asked(&message(&phone, "STOP"), 2, 10_000), json!({"keyword": "stop", "keyword_may_answer": false}));
    let stopped = db.rpc("begin_sms_turn", stop).await;
    assert_eq!(text(&stopped, "/kind"), "keyword", "{stopped}");
    db.rpc("finish_sms_turn", said(&stopped, 2, 11_000, "keyword")).await;
    assert_eq!(text(&session(&db, &session_id, 3, 10 * MINUTE_MS).await, "/decision"), "nothing");
    let suppressed =
        "select count(*) from public.conversation_turns where owed_for is not null and status = 'suppressed'";
    assert_eq!(db.count(suppressed).await, 1);

    let (_, _, session_id) = apologised(&db).await;
    let claimed = session(&db, &session_id, 4, MINUTE_MS).await;
    let done = db.rpc("finish_sms_turn", given_back(&claimed, 4, MINUTE_MS + 1, json!({"owed": {"minutes": 0}}))).await;
    assert_eq!((text(&done, "/status"), &done["more"]), ("abandoned".into(), &json!(false)));
    assert_eq!(text(&session(&db, &session_id, 5, 5 * MINUTE_MS).await, "/decision"), "nothing");

    // Where an operator wants none.
    let claimed = db.rpc("begin_sms_turn", asked(&message(&super::support::phone(), "Hello"), 6, 0)).await;
    let none = with(apology(&claimed, 6, 1_000), json!({"owed": {"minutes": 0}}));
    assert_eq!(db.rpc("finish_sms_turn", none).await["owed"], json!(false));
}

#[tokio::test]
async fn a_result_that_comes_late_owes_nothing_beside_a_turn_that_is_open() {
    let db = Db::new().await;
    let phone = phone();
    let first = db.rpc("begin_sms_turn", asked(&message(&phone, "Hello"), 1, 0)).await;
    // Its holder was silent so long that another took over.
    let again = session(&db, &text(&first, "/session/id"), 2, 10 * MINUTE_MS).await;
    assert_eq!(text(&again, "/turn_id"), text(&first, "/turn_id"), "{again}");
    let late = db.rpc("finish_sms_turn", apology(&first, 1, 11 * MINUTE_MS)).await;
    assert_eq!(late["owed"], json!(false), "{late}");
    assert_eq!(db.count("select count(*) from public.conversation_turns").await, 1);
}

#[tokio::test]
async fn who_is_with_a_colleague_by_then_gets_no_answer_of_an_agent_any_more() {
    let db = Db::new().await;
    let (_, _, session_id) = apologised(&db).await;
    let sql = format!(
        "insert into public.handoffs (client_id, profile_id, session_id, reason, state, taken_by, taken_at)
         select client_id, profile_id, id, 'asked for', 'taken', 'Aline', '{}' from public.omnichannel_sessions where id = '{session_id}'",
        at_text(10_000)
    );
    db.admin.batch_execute(&sql).await.unwrap();
    let decision = text(&session(&db, &session_id, 2, MINUTE_MS).await, "/decision");
    assert_ne!(decision, "go", "Aline answers");
    assert_eq!(turns(&db).await[1][0], "suppressed");
    assert_eq!(swept(&db, 2 * MINUTE_MS).await, Vec::<Value>::new(), "and it is not tried again");
}
