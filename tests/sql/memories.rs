//! What is taken out of a conversation when it is over: said again it is renewed, said otherwise the newer counts, and never of
//! somebody else, of whoever said STOP, or of what was to be forgotten.

use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, ended_call, phone, text, token, with};

/// Half an hour after the last answer, and a little.
const LATER_MS: i64 = 31 * 60_000;

fn memory(kind: &str, key: &str, value: &str, confidence: i64) -> Value {
    json!({"kind": kind, "key": key, "value": value, "confidence": confidence})
}

/// A call of `phone` that a model summed up, `memories` included; ended at `ms`. What the claim said, and what finished it.
async fn told(db: &Db, phone: &str, ms: i64, memories: Value) -> (Value, Value) {
    let call = ended_call(db, phone, ms).await;
    let p = json!({"correlation_id": format!("note-{call}"), "call_ref": call, "phone_number": phone, "lease_token": token(1), "now": at_text(ms + 1000)});
    let claim = db.rpc("begin_call_notification", p).await;
    let p = json!({"notification_id": claim["notification_id"], "lease_token": token(1), "correlation_id": "corr", "outcome": "done", "now": at_text(ms + 2000),
                   "summary": {"headline": "A house", "source": "model", "memories": memories}});
    db.rpc("finish_call_notification", p.clone()).await;
    (claim, p)
}

/// A message of `phone` and its answer; the session.
async fn answered(db: &Db, phone: &str, n: u32, ms: i64, said: &str) -> String {
    let p = json!({"correlation_id": format!("turn-{n}"), "provider": "mtn", "provider_message_id": format!("{phone}-{n}"), "from": phone, "to": "8080",
                   "text": said, "lease_token": token(n), "now": at_text(ms), "received_at": at_text(ms)});
    let turn = db.rpc("begin_sms_turn", p).await;
    assert_eq!(turn["decision"], "go", "{turn}");
    let sent = with(attempt("accepted", ms), json!({"provider_message_id": format!("out-{phone}-{n}")}));
    let p = json!({"turn_id": turn["turn_id"], "lease_token": token(n), "outcome": "answered", "now": at_text(ms + 500), "reply": {"content": "Yes.", "source": "model"},
                   "deliveries": [{"id": turn["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "recipient": phone, "content": "Yes.",
                                   "deadline_at": at_text(86_400_000), "attempt": sent}]});
    db.rpc("finish_sms_turn", p).await;
    text(&turn, "/session/id")
}

async fn begin(db: &Db, session: &str, n: u32, ms: i64) -> Value {
    db.rpc("begin_memories", json!({"session_id": session, "lease_token": token(n), "now": at_text(ms)})).await
}

fn finished(claim: &Value, session: &str, n: u32, ms: i64, rest: Value) -> Value {
    let p = json!({"session_id": session, "lease_token": token(n), "read_seq": claim["read_seq"], "now": at_text(ms)});
    with(p, rest)
}

/// `key=value confidence source`, by key.
async fn known(db: &Db, phone: &str) -> String {
    let sql = format!(
        "select coalesce(string_agg(m.key || '=' || m.value || ' ' || m.confidence || ' ' || m.source, ', ' order by m.key), '')
           from public.voice_memories m join public.profiles p on p.id = m.profile_id where p.phone_number = '{phone}'"
    );
    text(&db.value(&sql).await, "")
}

#[tokio::test]
async fn what_a_caller_said_is_kept_with_the_summary_and_shown_to_whoever_writes_next() {
    let db = Db::new().await;
    let phone = phone();
    let memories = json!([
        memory("preference", "area", "Kicukiro, near the market", 100),
        memory("fact", "children", "two", 40),
        memory("order", "taxi", "now", 100),
        memory("fact", "Not A Key", "x", 100),
        {"kind": "fact", "key": "half"},
        {"kind": "fact", "key": "unsure", "value": "x", "confidence": "100"},
        "words"
    ]);
    let (claim, p) = told(&db, &phone, 0, memories).await;
    assert_eq!(claim["memory_keys"], json!([]));
    assert_eq!(known(&db, &phone).await, "area=Kicukiro, near the market 1.00 summary");
    // Recorded once more, as after a lost answer, and told by an earlier holder: the same.
    db.rpc("finish_call_notification", p).await;
    assert_eq!(known(&db, &phone).await, "area=Kicukiro, near the market 1.00 summary");
    let of_call = db.value("select jsonb_build_object('kind', kind, 'call', call_id is not null, 'session', session_id is not null, 'said', said_at) from public.voice_memories").await;
    assert_eq!(
        (&of_call["kind"], &of_call["call"], &of_call["session"]),
        (&json!("preference"), &json!(true), &json!(true))
    );
    assert!(text(&of_call, "/said").starts_with(&at_text(0)[..19]), "{of_call}");

    let p = json!({"correlation_id": "next", "provider": "mtn", "provider_message_id": "next", "from": phone, "to": "8080", "text": "Hello",
                   "lease_token": token(9), "now": at_text(60_000)});
    let turn = db.rpc("begin_sms_turn", p).await;
    assert_eq!(turn["known"]["memories"][0]["value"], "Kicukiro, near the market");
}

#[tokio::test]
async fn said_again_it_is_renewed_and_said_otherwise_the_newer_counts() {
    let db = Db::new().await;
    let phone = phone();
    told(&db, &phone, 0, json!([memory("preference", "area", "Near the market", 60)])).await;
    let (claim, _) =
        told(&db, &phone, 100_000, json!([memory("preference", "preferred_area", "near the MARKET!", 90)])).await;
    assert_eq!(claim["memory_keys"], json!(["area"]));
    assert_eq!(known(&db, &phone).await, "area=Near the market 0.90 summary");
    let said = db.value("select said_at from public.voice_memories").await;
    assert!(text(&said, "").starts_with(&at_text(100_000)[..19]), "{said}");
    told(&db, &phone, 200_000, json!([memory("preference", "area", "Remera", 70)])).await;
    assert_eq!(known(&db, &phone).await, "area=Remera 0.70 summary");
    // An older call whose summary comes late does not take it back.
    told(&db, &phone, 150_000, json!([memory("preference", "area", "Gisozi", 100)])).await;
    assert_eq!(known(&db, &phone).await, "area=Remera 0.70 summary");
    // What an agent was told in that very call stands over what was read out of it; an operator's word always.
    db.run(&format!(
        "update public.voice_memories set source = 'agent', value = 'Kacyiru', said_at = '{}'",
        at_text(299_000)
    ))
    .await;
    told(&db, &phone, 300_000, json!([memory("preference", "area", "somewhere in Kacyiru", 80)])).await;
    assert_eq!(known(&db, &phone).await, "area=Kacyiru 0.70 agent");
    told(&db, &phone, 400_000, json!([memory("preference", "area", "Nyamata", 80)])).await;
    assert_eq!(known(&db, &phone).await, "area=Nyamata 0.80 summary");
    db.run("update public.voice_memories set source = 'operator'").await;
    told(&db, &phone, 500_000, json!([memory("preference", "area", "Musanze", 80)])).await;
    assert_eq!(known(&db, &phone).await, "area=Nyamata 0.80 operator");
}

#[tokio::test]
async fn fifty_are_kept_and_what_somebody_asked_for_goes_last() {
    let db = Db::new().await;
    let phone = phone();
    told(&db, &phone, 0, json!([memory("fact", "first", "the first", 100)])).await;
    db.run(
        "insert into public.voice_memories (client_id, profile_id, key, value, source, said_at)
         select client_id, profile_id, 'asked_' || n, 'asked for ' || n, 'agent', said_at - interval '1 year' from public.voice_memories, generate_series(1, 48) n",
    )
    .await;
    let five: Vec<Value> = (0..7).map(|n| memory("fact", &format!("new_{n}"), &format!("new {n}"), 100)).collect();
    told(&db, &phone, 100_000, json!(five)).await;
    assert_eq!(db.count("select count(*) from public.voice_memories").await, 50);
    assert_eq!(db.count("select count(*) from public.voice_memories where source = 'agent'").await, 48);
    assert_eq!(db.count("select count(*) from public.voice_memories where key = 'first'").await, 0);
}

#[tokio::test]
async fn nothing_is_taken_of_whoever_said_stop_of_somebody_else_or_of_what_was_to_be_forgotten() {
    let db = Db::new().await;
    let said = json!([memory("preference", "area", "Kicukiro", 100)]);
    let stopped = phone();
    db.run(&format!(
        "select private.ensure_profile('{stopped}'); update public.profiles set allows_sms = false where phone_number = '{stopped}'"
    ))
    .await;
    told(&db, &stopped, 0, said.clone()).await;
    assert_eq!(known(&db, &stopped).await, "");

    // The summary goes to another than who called.
    let (caller, other) = (phone(), phone());
    let call = ended_call(&db, &other, 0).await;
    let p = json!({"correlation_id": "other", "call_ref": call, "phone_number": other, "lease_token": token(1), "now": at_text(1000)});
    let claim = db.rpc("begin_call_notification", p).await;
    db.run(&format!(
        "update public.voice_calls set profile_id = private.ensure_profile('{caller}') where id = '{call}'"
    ))
    .await;
    let p = json!({"notification_id": claim["notification_id"], "lease_token": token(1), "outcome": "done", "now": at_text(2000),
                   "summary": {"headline": "A house", "source": "model", "memories": said.clone()}});
    db.rpc("finish_call_notification", p).await;
    assert_eq!((known(&db, &caller).await, known(&db, &other).await), (String::new(), String::new()));

    let phone = phone();
    let session = answered(&db, &phone, 5, 0, "I like Kicukiro. No, forget that").await;
    let p = json!({"session_id": session, "name": "forget", "arguments": {"key": "area"}, "idempotency_key": "forget", "now": at_text(200)});
    assert_eq!(db.rpc("run_agent_tool", p).await["ok"], true);
    let claim = begin(&db, &session, 20, LATER_MS).await;
    let done = db.rpc("finish_memories", finished(&claim, &session, 20, LATER_MS, json!({"memories": said}))).await;
    assert_eq!((&done["status"], &done["kept"]), (&json!("done"), &json!(0)));
    assert_eq!(known(&db, &phone).await, "");
}

#[tokio::test]
async fn a_conversation_in_writing_is_read_once_half_an_hour_after_its_last_answer() {
    let db = Db::new().await;
    let phone = phone();
    let sweep = async |ms: i64| db.rpc("sweep", json!({"now": at_text(ms)})).await["memories"].clone();
    answered(&db, &phone, 1, 0, "I prefer Remera").await;
    let session = answered(&db, &phone, 2, 60_000, "with a garden").await;
    assert_eq!(sweep(LATER_MS).await, json!([]), "half an hour after the last answer, not the first");
    assert_eq!(begin(&db, &session, 10, LATER_MS).await["decision"], "nothing");
    let due = 60_500 + LATER_MS;
    let asked = json!([{"session_id": session, "correlation_id": format!("memories-{session}")}]);
    assert_eq!(sweep(due).await, asked);
    assert_eq!(sweep(due + 60_000).await, json!([]), "the queue has it");
    assert_eq!(sweep(due + 11 * 60_000).await, asked, "the queue may have lost it");

    let claim = begin(&db, &session, 10, due).await;
    let said: Vec<&str> =
        claim["transcript"].as_array().unwrap().iter().map(|turn| turn["text"].as_str().unwrap()).collect();
    assert_eq!(said, ["I prefer Remera", "Yes.", "with a garden", "Yes."]);
    assert_eq!(begin(&db, &session, 10, due + 5).await, claim, "the same token, the same answer");
    assert_eq!(begin(&db, &session, 11, due + 5).await["decision"], "nothing", "somebody is at it");
    let memories = json!({"memories": [memory("preference", "area", "Remera", 90)]});
    let p = finished(&claim, &session, 10, due + 1000, memories);
    // Somebody writes meanwhile: that is read later.
    answered(&db, &phone, 3, due + 500, "and a school nearby").await;
    assert_eq!(db.rpc("finish_memories", p.clone()).await, json!({"status": "done", "kept": 1}));
    assert_eq!(db.rpc("finish_memories", p).await["status"], "gone");
    assert_eq!(known(&db, &phone).await, "area=Remera 0.90 summary");

    let later = due + LATER_MS;
    let claim = begin(&db, &session, 12, later + 1000).await;
    assert_eq!(claim["transcript"][0]["text"], "and a school nearby");
    assert_eq!(claim["memory_keys"], json!(["area"]));
    db.rpc("finish_memories", finished(&claim, &session, 12, later + 2000, json!({"memories": []}))).await;
    assert_eq!(sweep(later + LATER_MS).await, json!([]));
    assert_eq!(begin(&db, &session, 13, later + LATER_MS).await["decision"], "nothing");
}

#[tokio::test]
async fn what_fails_is_tried_three_times_and_then_left_with_the_reason_until_the_next_answer() {
    let db = Db::new().await;
    let phone = phone();
    let session = answered(&db, &phone, 1, 0, "I prefer Remera").await;
    let mut ms = LATER_MS;
    for (n, status) in [(10, "again"), (11, "again"), (12, "given_up")] {
        let claim = begin(&db, &session, n, ms).await;
        assert_eq!(claim["decision"], "go", "{n}");
        let p = finished(&claim, &session, n, ms, json!({"failed": "model_is_down", "memories": []}));
        assert_eq!(db.rpc("finish_memories", p).await["status"], status);
        assert_eq!(begin(&db, &session, n + 10, ms + 60_000).await["decision"], "nothing", "{n}: it waits");
        ms += 45 * 60_000;
    }
    let left = "select given_up || coalesce(' due ' || due_at, '') from public.memory_extractions";
    assert_eq!(db.value(left).await, "model_is_down");
    // The next answer makes it due again; one that nobody finishes is left as well.
    answered(&db, &phone, 2, ms, "Hello again").await;
    for n in 30..33 {
        ms += LATER_MS;
        assert_eq!(begin(&db, &session, n, ms).await["transcript"][0]["text"], "I prefer Remera", "{n}");
    }
    assert_eq!(begin(&db, &session, 33, ms + LATER_MS).await["decision"], "given_up");
    assert_eq!(db.value(left).await, "nobody_finished");
}

#[tokio::test]
async fn whoever_is_erased_while_they_are_read_leaves_nothing() {
    let db = Db::new().await;
    let (phone, neighbour) = (phone(), phone());
    let session = answered(&db, &phone, 1, 0, "I prefer Remera").await;
    told(&db, &neighbour, 0, json!([memory("preference", "area", "Gisozi", 90)])).await;
    let claim = begin(&db, &session, 10, LATER_MS).await;
    db.run(&format!("select public.erase_person('{}', 'asked_by_person')", text(&claim, "/profile_id"))).await;
    let p = finished(&claim, &session, 10, LATER_MS, json!({"memories": [memory("preference", "area", "Remera", 90)]}));
    assert_eq!(db.rpc("finish_memories", p).await["status"], "gone");
    assert_eq!(db.count("select count(*) from public.memory_extractions").await, 0);
    assert_eq!(db.value("select string_agg(value, ' ') from public.voice_memories").await, "Gisozi");
    assert_eq!(known(&db, &neighbour).await, "area=Gisozi 0.90 summary");
}
