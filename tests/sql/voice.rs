//! The life of a call: opened, told of and ended in any order and any number of times, by one relay or by many connections.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Db, all, at_text, check_cases, phone, rpc, text, unique, with};

const CALLER: &str = "+250788123456";

fn named(sid: &str, ms: i64) -> Value {
    json!({"call_sid": sid, "from": CALLER, "to": "+250788000000", "correlation_id": format!("corr-{sid}"), "now": at_text(ms)})
}

fn opening(sid: &str, ms: i64) -> Value {
    with(named(sid, ms), json!({"model": "gpt-realtime-2.1-mini", "voice": "marin", "audio_format": "pcma"}))
}

fn said(seq: i64, role: &str, words: &str) -> Value {
    json!({"seq": seq, "type": "transcript", "at": at_text(seq), "role": role, "text": words})
}

fn batch(sid: &str, events: Value) -> Value {
    with(named(sid, 1000), json!({"events": events}))
}

fn ending(sid: &str, cause: &str, ms: i64) -> Value {
    with(
        named(sid, ms),
        json!({"cause": cause, "started_at": at_text(0), "answered_at": at_text(2000), "ended_at": at_text(62_000)}),
    )
}

#[tokio::test]
async fn a_caller_is_known_again_with_conversation_memories_and_language() {
    let db = Db::new().await;
    let first = db.rpc("open_voice_call", with(opening("a", 0), json!({"locale": "rw-RW"}))).await;
    assert_eq!((&first["decision"], &first["created"]), (&json!("go"), &json!(true)));
    assert_eq!((&first["locale"], &first["agent"]["slug"]), (&json!("rw"), &json!("call-center")));
    assert!(text(&first, "/agent/instructions").contains("Witaba telefone ya EasyMO"), "{first}");
    assert_eq!((&first["memories"], &first["context"]["call_summary"]), (&json!([]), &Value::Null));
    for nothing in ["requests", "bookings", "memories", "messages"] {
        assert_eq!(first["context"][nothing], json!([]), "{nothing}");
    }
    let row = db.value("select jsonb_build_array(origin, provider_call_id, mtn_call_sid, status, locale, profile_id is not null, session_id is not null) from public.voice_calls").await;
    assert_eq!(row, json!(["mtn_sip", "a", "a", "in_progress", "rw-RW", true, true]));

    let remember = with(
        named("a", 10),
        json!({"name": "remember", "idempotency_key": "t-1", "arguments": {"key": "Preferred area", "value": "Kicukiro"}}),
    );
    assert_eq!(
        db.rpc("run_voice_tool", remember).await,
        json!({"ok": true, "result": {"remembered": "preferred_area"}})
    );
    db.rpc("end_voice_call", ending("a", "caller_hangup", 62_000)).await;
    let second = db.rpc("open_voice_call", opening("b", 100_000)).await;
    assert_eq!(second["memories"], json!([{"key": "preferred_area", "value": "Kicukiro"}]));
    assert_eq!(second["session"]["id"], first["session"]["id"], "the same conversation");
    assert_eq!(second["profile"]["id"], first["profile"]["id"]);
    assert!(
        second["context"].is_object() && !second["context"].to_string().contains("250788"),
        "{}",
        second["context"]
    );

    let anonymous = with(opening("c", 0), json!({"from": "anonymous"}));
    let anonymous = db.rpc("open_voice_call", anonymous).await;
    assert_eq!(
        (&anonymous["decision"], &anonymous["profile"], &anonymous["session"]),
        (&json!("go"), &Value::Null, &Value::Null)
    );
    let told = with(
        named("c", 10),
        json!({"name": "remember", "idempotency_key": "t-1", "arguments": {"key": "a", "value": "b"}}),
    );
    assert_eq!(db.rpc("run_voice_tool", told).await["ok"], false);
}

#[tokio::test]
async fn many_openings_of_one_call_make_one_and_many_ends_end_it_once() {
    let db = Db::new().await;
    let clients = all((0..20).map(|_| db.connect())).await;
    let opened = all(clients.iter().map(|client| rpc(client, "open_voice_call", opening("x", 0)))).await;
    let ids: BTreeSet<String> = opened.iter().map(|answer| text(answer, "/call_id")).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(opened.iter().filter(|answer| answer["created"] == true).count(), 1);
    for table in ["voice_calls", "profiles", "omnichannel_sessions", "openai_sessions"] {
        assert_eq!(db.count(&format!("select count(*) from public.{table}")).await, 1, "{table}");
    }
    // Ends, events and openings of another one at the same time, in whatever order they get the lock.
    let work = clients.iter().enumerate().map(|(n, client)| async move {
        match n % 4 {
            0 => rpc(client, "record_voice_events", batch("y", json!([said(n as i64 + 1, "user", "Hello")]))).await,
            1 => rpc(client, "open_voice_call", opening("y", 0)).await,
            _ => {
                rpc(client, "end_voice_call", ending("y", if n % 2 == 0 { "caller_hangup" } else { "silence" }, 62_000))
                    .await
            }
        }
    });
    let done = all(work).await;
    assert_eq!(done.iter().filter(|answer| answer["decision"] == "ended" && answer["ended_at"].is_string()).count(), 1);
    let causes: BTreeSet<String> =
        done.iter().filter(|answer| answer.get("cause").is_some()).map(|answer| text(answer, "/cause")).collect();
    assert_eq!(causes.len(), 1, "the first end counts, and all are told the same");
    assert_eq!(db.count("select count(*) from public.voice_calls").await, 2);
    assert_eq!(db.count("select count(*) from public.voice_events").await, 5);
    assert_eq!(db.count("select count(*) from public.transcripts").await, 5);
}

#[tokio::test]
async fn an_end_is_told_to_whoever_sends_it_and_a_late_opening_brings_nothing_back() {
    let db = Db::new().await;
    // Nobody has told of this call: its opening was lost.
    let end = db.rpc("end_voice_call", ending("lost", "relay_restarted", 70_000)).await;
    assert_eq!((&end["decision"], &end["created"], &end["notify"]), (&json!("ended"), &json!(true), &json!(true)));
    assert_eq!(
        (&end["status"], &end["duration_seconds"], &end["phone_number"]),
        (&json!("completed"), &json!(60), &json!(CALLER))
    );
    let again = db.rpc("end_voice_call", ending("lost", "caller_hangup", 90_000)).await;
    let told = |answer: &Value| {
        ["call_id", "status", "cause", "ended_at", "duration_seconds"].map(|name| answer[name].clone())
    };
    assert_eq!((again["decision"].clone(), told(&again)), (json!("already_ended"), told(&end)));
    assert_eq!(again["notify"], true, "nobody has begun to tell the caller");
    let late = db.rpc("open_voice_call", opening("lost", 95_000)).await;
    assert_eq!(
        (&late["decision"], &late["call_id"], &late["end_cause"]),
        (&json!("ended"), &end["call_id"], &json!("relay_restarted"))
    );
    let claim = json!({"correlation_id": "n", "call_ref": end["call_id"], "lease_token": crate::support::token(1), "now": at_text(96_000)});
    assert_eq!(db.rpc("begin_call_notification", claim).await["decision"], "go");
    assert_eq!(db.rpc("end_voice_call", ending("lost", "silence", 99_000)).await["notify"], false);
    for (sid, cause, status) in [
        ("1", "no_answer", "no_answer"),
        ("2", "busy", "busy"),
        ("3", "canceled", "canceled"),
        ("4", "rejected", "failed"),
        ("5", "setup_failed", "failed"),
    ] {
        let p = with(named(sid, 9000), json!({"cause": cause, "started_at": at_text(0)}));
        let end = db.rpc("end_voice_call", p).await;
        assert_eq!(
            (&end["status"], &end["notify"], &end["duration_seconds"]),
            (&json!(status), &json!(false), &json!(0)),
            "{cause}"
        );
    }
    for cause in ihuza_core::realtime::CAUSES {
        assert_eq!(db.rpc("end_voice_call", ending(cause, cause, 62_000)).await["cause"], cause);
    }
    let refused = db.try_rpc("end_voice_call", ending("6", "bored", 0)).await.unwrap_err();
    assert!(refused.message.contains("voice_calls_end_cause_is_known"), "{refused:?}");
}

#[test]
fn events_in_any_order_and_any_number_of_times_are_the_same_transcript() {
    let batches = (2_i64..14).prop_flat_map(|count| {
        let seqs = prop::collection::vec(prop::collection::vec(1..=count, 1..5), 1..8);
        (Just(count), seqs)
    });
    check_cases(40, batches, async |db, (count, batches)| {
        let sid = format!("call-{}", unique());
        let caller = phone();
        let mut model: BTreeSet<i64> = BTreeSet::new();
        for seqs in &batches {
            let events: Vec<Value> = seqs
                .iter()
                .map(|seq| said(*seq, if seq % 2 == 0 { "assistant" } else { "user" }, &format!("turn {seq}")))
                .collect();
            let before = model.len();
            model.extend(seqs);
            let answer = db.rpc("record_voice_events", with(batch(&sid, json!(events)), json!({"from": caller}))).await;
            let stored = model.len() - before;
            prop_assert_eq!((&answer["stored"], &answer["duplicates"]), (&json!(stored), &json!(seqs.len() - stored)));
            let mut gaps: Vec<[i64; 2]> = Vec::new();
            let last = *model.last().unwrap();
            for seq in (1..last).filter(|seq| !model.contains(seq)) {
                match gaps.last_mut() {
                    Some(gap) if gap[1] + 1 == seq => gap[1] = seq,
                    _ => gaps.push([seq, seq]),
                }
            }
            prop_assert_eq!((&answer["gaps"], &answer["last_seq"]), (&json!(gaps), &json!(last)));
        }
        let end = db
            .rpc(
                "end_voice_call",
                with(ending(&sid, "caller_hangup", 62_000), json!({"last_seq": count, "from": caller})),
            )
            .await;
        let missing: i64 = end["gaps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|gap| gap[1].as_i64().unwrap() - gap[0].as_i64().unwrap() + 1)
            .sum();
        prop_assert_eq!(missing, count - model.len() as i64);
        let sql = format!(
            "select jsonb_agg(jsonb_build_array(t.seq, t.text) order by t.seq) from public.transcripts t where t.call_id = '{}'",
            text(&end, "/call_id")
        );
        let expected: Vec<Value> = model.iter().map(|seq| json!([seq, format!("turn {seq}")])).collect();
        prop_assert_eq!(db.value(&sql).await, json!(expected));
        Ok(())
    });
}

#[tokio::test]
async fn the_language_follows_the_caller_and_each_row_says_how_it_is_known() {
    let db = Db::new().await;
    db.rpc("open_voice_call", with(opening("l", 0), json!({"locale": "en"}))).await;
    let in_french =
        |seq: i64| with(said(seq, "user", "Bonjour"), json!({"language": "fr", "language_source": "detected"}));
    let language = async |events: Value| db.rpc("record_voice_events", batch("l", events)).await["language"].clone();
    assert_eq!(language(json!([said(1, "assistant", "Hello"), in_french(2)])).await, "en", "one turn may be a name");
    assert_eq!(language(json!([in_french(4)])).await, "fr");
    assert_eq!(language(json!([{"seq": 5, "type": "language", "language": "sw"}])).await, "sw");
    let rows = db
        .value(
            "select jsonb_agg(jsonb_build_array(seq, language, language_source) order by seq) from public.transcripts",
        )
        .await;
    assert_eq!(rows, json!([[1, "en", "call"], [2, "fr", "detected"], [4, "fr", "detected"]]));
    assert_eq!(db.value("select to_jsonb(locale) from public.voice_calls").await, "sw");
    let refused = db
        .try_rpc("record_voice_events", batch("l", json!([with(in_french(9), json!({"language_source": "guess"}))])))
        .await;
    assert!(refused.unwrap_err().message.contains("transcripts_language_source_is_known"));
    assert_eq!(
        db.count("select count(*) from public.voice_events where seq = 9").await,
        0,
        "all of a batch or nothing"
    );
}

#[tokio::test]
async fn usage_is_summed_and_priced_to_the_millionth() {
    let db = Db::new().await;
    let usage = json!({"input_tokens": 402, "input_token_details": {"text_tokens": 250, "audio_tokens": 152, "cached_tokens": 320,
                       "cached_tokens_details": {"text_tokens": 224, "audio_tokens": 96}}, "output_token_details": {"text_tokens": 30, "audio_tokens": 80}});
    db.rpc("open_voice_call", opening("u", 0)).await;
    let done = |seq: i64| json!({"seq": seq, "type": "response.done", "usage": usage});
    let events = json!([done(1), done(2), {"seq": 3, "type": "session.created", "session_id": "sess_1"},
                        {"seq": 4, "type": "consent", "kind": "recording", "state": "announced", "method": "announcement", "language": "en"}]);
    db.rpc("record_voice_events", batch("u", events)).await;
    let end = db.rpc("end_voice_call", ending("u", "caller_hangup", 62_000)).await;
    // A response: 26 text at 0.60, 224 at 0.06, 56 audio at 10, 96 at 0.30, out 30 at 2.40 and 80 at 20, for a million each.
    assert_eq!((end["cost"].to_string(), text(&end, "/cost_currency")), ("0.004580".to_owned(), "USD".to_owned()));
    let row = db.value("select usage from public.voice_calls").await;
    assert_eq!(
        row,
        json!({"input_text": 500, "input_text_cached": 448, "input_audio": 304, "input_audio_cached": 192, "output_text": 60, "output_audio": 160, "responses": 2})
    );
    let session = db
        .value(
            "select jsonb_build_array(provider_session_id, status, ended_at is not null) from public.openai_sessions",
        )
        .await;
    assert_eq!(session, json!(["sess_1", "ended", true]));
    assert_eq!(db.count("select count(*) from public.call_consents").await, 1);
    let total = with(ending("v", "caller_hangup", 62_000), json!({"model": "gpt-realtime-2.1", "usage": usage}));
    assert_eq!(db.rpc("end_voice_call", total).await["cost"].to_string(), "0.007864");
    let unpriced = with(ending("w", "caller_hangup", 62_000), json!({"model": "gpt-of-tomorrow", "usage": usage}));
    let end = db.rpc("end_voice_call", unpriced).await;
    assert_eq!((&end["decision"], &end["cost"]), (&json!("ended"), &Value::Null));
}

#[tokio::test]
async fn a_service_is_found_by_its_words_and_by_words_that_are_nearly_right() {
    let db = Db::new().await;
    db.run(
        "insert into public.services (name, category, description, area, keywords, price) values
           ('Two-bedroom house in Kicukiro', 'housing', 'Garden, water tank', 'Kicukiro', 'inzu maison nyumba rent', '350,000 RWF a month'),
           ('Moto to Nyamirambo', 'transport', 'Ride at once', 'Kigali', 'moto taxi', '1,500 RWF'),
           ('Clinic of Remera', 'health', 'Open at night', 'Remera', 'ivuriro doctor', null);
         insert into public.services (name, is_active) values ('House that is gone', false);
         insert into public.clients (slug, brand) values ('other', 'Other');
         insert into public.services (client_id, name) select id, 'House of another client' from public.clients where slug = 'other'",
    )
    .await;
    db.rpc("open_voice_call", opening("s", 0)).await;
    let search = async |n: u32, arguments: Value| {
        let p = with(
            named("s", 10),
            json!({"name": "search_services", "idempotency_key": format!("k-{n}"), "arguments": arguments}),
        );
        let answer = db.rpc("run_voice_tool", p).await;
        assert_eq!(answer["ok"], true, "{answer}");
        answer["result"]["services"].as_array().unwrap().iter().map(|found| text(found, "/name")).collect::<Vec<_>>()
    };
    assert_eq!(search(1, json!({"query": "house kicukiro"})).await, ["Two-bedroom house in Kicukiro"]);
    assert_eq!(search(2, json!({"query": "inzu"})).await, ["Two-bedroom house in Kicukiro"]);
    assert_eq!(search(3, json!({"query": "Nyamirambu"})).await, ["Moto to Nyamirambo"], "as it was heard");
    assert_eq!(search(4, json!({"query": "doctor", "area": "Remera"})).await, ["Clinic of Remera"]);
    assert_eq!(search(5, json!({"query": "house", "area": "Musanze"})).await, Vec::<String>::new());
    assert_eq!(search(6, json!({"query": "it's & | ! <-> :* house"})).await, ["Two-bedroom house in Kicukiro"]);
    assert_eq!(search(7, json!({"query": "", "category": "health"})).await, ["Clinic of Remera"]);
    // The same key gets the same answer, whatever has changed; the same key of another call does not.
    db.run("update public.services set is_active = false").await;
    assert_eq!(search(1, json!({"query": "house kicukiro"})).await, ["Two-bedroom house in Kicukiro"]);
    let else_ = json!({"name": "search_services", "idempotency_key": "k-1", "arguments": {"query": "something else"}});
    let refused = db.rpc("run_voice_tool", with(named("s", 10), else_)).await;
    assert!(text(&refused, "/error").starts_with("this idempotency key was used with other arguments"), "{refused}");
    let other = with(
        named("s2", 10),
        json!({"name": "search_services", "idempotency_key": "k-1", "arguments": {"query": "house"}}),
    );
    assert_eq!(db.rpc("run_voice_tool", other).await["result"]["services"], json!([]));
    let p = |name: &str| with(named("s", 10), json!({"name": name, "idempotency_key": name, "arguments": {}}));
    assert_eq!(
        db.rpc("run_voice_tool", p("search_services")).await["error"],
        "query is missing: say what the caller looks for"
    );
    assert_eq!(db.rpc("run_voice_tool", p("open_the_door")).await["error"], "there is no tool open_the_door");
    assert_eq!(db.rpc("run_voice_tool", p("session_get_context")).await["ok"], true);
    let used = db
        .count("select count(*) from public.mcp_tool_calls where call_id is not null and finished_at is not null")
        .await;
    assert_eq!(used, 11);
}

#[tokio::test]
async fn a_trunk_is_what_its_relays_last_said_and_not_for_long() {
    let db = Db::new().await;
    let health = async |ms: i64| {
        db.rpc("health_check", json!({"function": "openai-realtime-sip", "now": at_text(ms)})).await["trunks"]["mtn_sip"].clone()
    };
    let status = async |ms: i64| text(&health(ms).await, "/status");
    assert_eq!(health(0).await["reason"], "never_reported");
    let report = async |relay: &str, state: &str, ms: i64| {
        let p = json!({"relay": relay, "trunks": [{"name": "mtn_sip", "status": state, "active_calls": 2}], "now": at_text(ms)});
        db.rpc("report_trunks", p).await
    };
    report("one", "active", 0).await;
    assert_eq!((status(90_000).await, health(12_000).await["age_seconds"].clone()), ("active".to_owned(), json!(12)));
    assert_eq!(status(90_001).await, "stale");
    report("two", "down", 100_000).await;
    assert_eq!(status(100_000).await, "down");
    report("one", "active", 110_000).await;
    assert_eq!(status(111_000).await, "active", "one of them can use it");
    report("one", "down", 120_000).await;
    report("one", "active", 115_000).await;
    assert_eq!(status(121_000).await, "down", "an older word changes nothing");
    let refused =
        db.try_rpc("report_trunks", json!({"relay": "r", "trunks": [{"name": "mtn_sip", "status": "great"}]})).await;
    assert!(refused.unwrap_err().message.contains("trunk_reports_state_is_known"));
}

#[tokio::test]
async fn two_columns_of_one_id_become_one_and_no_index_keeps_the_old_name() {
    let mut client = Db::empty().await;
    let earlier = "
        create table public.voice_calls (id uuid primary key default gen_random_uuid(), twilio_call_sid text unique, mtn_call_sid text);
        create index idx_voice_calls_twilio_sid on public.voice_calls (twilio_call_sid);
        insert into public.voice_calls (twilio_call_sid, mtn_call_sid) values ('CA-1', null), ('CA-2', 'M-2'), (null, 'M-3');";
    client.batch_execute(earlier).await.unwrap();
    let files = ihuza_sim::migrate::read(&crate::support::root().join("migrations")).unwrap();
    ihuza_sim::migrate::apply(&mut client, &files, false).await.unwrap();
    let sids =
        crate::support::value(&client, "select jsonb_agg(mtn_call_sid order by mtn_call_sid) from public.voice_calls")
            .await;
    assert_eq!(sids, json!(["CA-1", "M-2", "M-3"]));
    let names = "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relname ~ 'twilio'";
    assert_eq!(crate::support::lines(&client, names).await, Vec::<String>::new());

    let mut client = Db::empty().await;
    let renamed = "
        create table public.voice_calls (id uuid primary key default gen_random_uuid(), twilio_call_sid text unique);
        create index idx_voice_calls_twilio_sid on public.voice_calls (twilio_call_sid);
        insert into public.voice_calls (twilio_call_sid) values ('CA-1');";
    client.batch_execute(renamed).await.unwrap();
    ihuza_sim::migrate::apply(&mut client, &files, false).await.unwrap();
    assert_eq!(crate::support::lines(&client, names).await, Vec::<String>::new());
    let sids = crate::support::value(&client, "select jsonb_agg(mtn_call_sid) from public.voice_calls").await;
    assert_eq!(sids, json!(["CA-1"]));
}

/// What a call is told of the one before, of what is asked for and of what is booked.
fn known(opened: &Value) -> Value {
    let context = &opened["context"];
    let all = |list: &str, field: &str| -> Vec<Value> {
        context[list].as_array().unwrap().iter().map(|one| one[field].clone()).collect()
    };
    json!([
        context["call_summary"]["headline"],
        all("requests", "area"),
        all("bookings", "destination"),
        all("messages", "text")
    ])
}

#[tokio::test]
async fn a_call_begins_with_what_came_before_also_in_a_new_conversation() {
    const DAY_MS: i64 = 86_400_000;
    let db = Db::new().await;
    let first = db.rpc("open_voice_call", opening("a", 0)).await;
    let (client, profile) = (text(&first, "/client/id"), text(&first, "/profile/id"));
    db.rpc("end_voice_call", ending("a", "caller_hangup", 62_000)).await;
    db.run(&format!(
        "insert into public.call_summaries (client_id, call_id, language, headline) values ('{client}', '{}', 'en', 'House in Kimironko');
         insert into public.service_requests (client_id, profile_id, kind, area) values ('{client}', '{profile}', 'housing', 'Remera');
         insert into public.transport_bookings (client_id, profile_id, pickup, destination) values ('{client}', '{profile}', 'Remera', 'Kanombe')",
        text(&first, "/call_id")
    ))
    .await;
    // In the conversation that goes on: the call before is not the one that begins.
    let second = db.rpc("open_voice_call", opening("b", 100_000)).await;
    assert_eq!(second["session"]["id"], first["session"]["id"]);
    assert_eq!(known(&second), json!(["House in Kimironko", ["Remera"], ["Kanombe"], []]));
    // Asked again, it is told the same.
    assert_eq!(known(&db.rpc("open_voice_call", opening("b", 101_000)).await), known(&second));
    db.rpc("end_voice_call", ending("b", "caller_hangup", 162_000)).await;
    // After it has expired: another conversation, and nothing is forgotten.
    let later = db.rpc("open_voice_call", opening("c", 30 * DAY_MS)).await;
    assert_ne!(later["session"]["id"], first["session"]["id"]);
    assert_eq!((&later["session"]["created"], known(&later)), (&json!(true), known(&second)));
    assert!(!later["context"].to_string().contains("250788") && !later["context"].to_string().contains(&profile));
    // Nobody else knows of it.
    let other = db.rpc("open_voice_call", with(opening("d", 30 * DAY_MS), json!({"from": "+250788999999"}))).await;
    assert_eq!(known(&other), json!([null, [], [], []]));
}
