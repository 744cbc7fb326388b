//! What people write on WhatsApp: who they are there, and one conversation with what they say elsewhere.

use serde_json::{Value, json};

use crate::support::{Db, all, at_text, attempt, ended_call, phone, rpc, text, token, unique, with};

const USER_ID: &str = "RW.70415296338120457711";

/// A message by number; more fields or others by [`with`].
fn wrote(phone: Option<&str>, words: &str, n: u32, ms: i64) -> Value {
    json!({"channel": "whatsapp", "provider": "whatsapp", "provider_message_id": format!("wamid.{}", unique()), "from": phone, "to": "118",
           "text": words, "received_at": at_text(ms), "correlation_id": format!("corr-{n}"), "lease_token": token(n), "now": at_text(ms)})
}

fn texted(phone: &str, words: &str, n: u32, ms: i64) -> Value {
    json!({"provider": "mtn", "provider_message_id": format!("sms-{}", unique()), "from": phone, "to": "8080", "text": words,
           "correlation_id": format!("corr-{n}"), "lease_token": token(n), "now": at_text(ms)})
}

#[tokio::test]
async fn who_writes_after_a_conversation_has_expired_is_known_with_their_last_call() {
    const DAY_MS: i64 = 86_400_000;
    let db = Db::new().await;
    let phone = phone();
    let call = ended_call(&db, &phone, -1_000).await;
    db.run(&format!(
        "insert into public.call_summaries (client_id, call_id, language, headline)
         select client_id, id, 'en', 'House in Kimironko' from public.voice_calls where id = '{call}'"
    ))
    .await;
    let asked = json!({"correlation_id": "corr", "call_ref": call, "lease_token": token(1), "now": at_text(0)});
    let claim = db.rpc("begin_call_notification", asked).await;
    let done = json!({"notification_id": claim["notification_id"], "lease_token": token(1), "outcome": "done", "now": at_text(1_000),
                      "deliveries": []});
    db.rpc("finish_call_notification", done).await;
    // A week later, and two weeks after that: two conversations, none of which began with a call.
    let mut sessions = vec![text(&claim, "/session/id")];
    for (n, day) in [(2, 7), (3, 21)] {
        let later = db.rpc("begin_sms_turn", texted(&phone, "Is it still free?", n, day * DAY_MS)).await;
        assert_eq!(text(&later, "/call_summary/headline"), "House in Kimironko", "{later}");
        assert_eq!((&later["session"]["created"], &later["history"]), (&json!(true), &json!([])));
        answer(&db, &later, n, day * DAY_MS + 1_000).await;
        sessions.push(text(&later, "/session/id"));
    }
    sessions.sort();
    sessions.dedup();
    assert_eq!(sessions.len(), 3);
    // Nobody else knows of it.
    let other = db.rpc("begin_sms_turn", texted(&super::support::phone(), "Muraho", 4, 21 * DAY_MS)).await;
    assert_eq!(other["call_summary"], Value::Null);
}

/// Answers a claimed turn on the channel it names.
async fn answer(db: &Db, claimed: &Value, n: u32, ms: i64) -> Value {
    let channel = text(claimed, "/channel");
    let delivery = json!({"id": claimed["delivery_ids"][&channel], "channel": channel, "provider": if channel == "sms" { "mtn" } else { "whatsapp" }, "purpose": "reply", "recipient": claimed["profile"]["phone_number"],
                          "content": "Yes.", "payload": {"kind": "text", "text": "Yes."}, "attempt": attempt("accepted", ms)});
    let p = json!({"turn_id": claimed["turn_id"], "lease_token": token(n), "outcome": "answered", "now": at_text(ms),
                   "reply": {"content": "Yes.", "source": "model", "agent_slug": "call-center"}, "deliveries": [delivery]});
    db.rpc("finish_sms_turn", p).await
}

#[tokio::test]
async fn a_message_opens_the_window_is_evidence_and_has_its_chat() {
    let db = Db::new().await;
    let phone = phone();
    let p = with(wrote(Some(&phone), "Muraho", 1, 5_000), json!({"user_id": USER_ID, "display_name": "Aline"}));
    let claimed = db.rpc("begin_sms_turn", p.clone()).await;
    assert_eq!((text(&claimed, "/decision"), text(&claimed, "/channel")), ("go".into(), "whatsapp".into()));
    assert_eq!(claimed["messages"][0]["channel"], "whatsapp");
    assert_eq!(
        (text(&claimed, "/profile/whatsapp"), text(&claimed, "/profile/phone_number")),
        ("yes".into(), phone.clone())
    );
    assert_eq!(text(&claimed, "/profile/whatsapp_user_id"), USER_ID);
    assert!(
        claimed["providers"]["whatsapp"].is_object() && claimed["providers"]["openai"].is_object(),
        "{}",
        claimed["providers"]
    );
    let row = db
        .value(
            "select jsonb_build_array(p.display_name, p.has_whatsapp, p.has_whatsapp_source, p.last_active_channel, t.wa_id, t.session_id = s.id,
                                      p.last_whatsapp_inbound_at = t.last_inbound_at, s.active_channels, s.primary_channel)
               from public.profiles p join public.wa_threads t on t.profile_id = p.id join public.omnichannel_sessions s on s.profile_id = p.id",
        )
        .await;
    let digits = phone.trim_start_matches('+');
    assert_eq!(row, json!(["Aline", true, "inbound", "whatsapp", digits, true, true, ["whatsapp"], "whatsapp"]));
    assert_eq!(db.rpc("begin_sms_turn", with(p, json!({"lease_token": token(2)}))).await["decision"], "duplicate");
    assert_eq!(
        db.value("select jsonb_build_array(channel, provider, sender, status) from public.message_delivery_log").await,
        json!(["whatsapp", "whatsapp", phone, "delivered"])
    );
}

#[tokio::test]
async fn an_sms_and_a_whatsapp_message_are_one_conversation_answered_where_the_newest_came_in() {
    let db = Db::new().await;
    let phone = phone();
    let first = db.rpc("begin_sms_turn", texted(&phone, "I look for a house", 1, 0)).await;
    assert_eq!(text(&first, "/channel"), "sms");
    answer(&db, &first, 1, 10).await;
    let second = db.rpc("begin_sms_turn", wrote(Some(&phone), "in Remera", 2, 1_000)).await;
    assert_eq!((&second["session"]["id"], text(&second, "/channel")), (&first["session"]["id"], "whatsapp".into()));
    let history = second["history"].as_array().unwrap();
    let said: Vec<_> = history.iter().map(|turn| (text(turn, "/channel"), text(turn, "/text"))).collect();
    assert_eq!(said, [("sms".into(), "I look for a house".into()), ("sms".to_owned(), "Yes.".to_owned())]);
    // While that is being answered, an SMS comes: stored, answered next, by SMS.
    assert_eq!(db.rpc("begin_sms_turn", texted(&phone, "or in Kimironko", 3, 1_500)).await["decision"], "stored");
    let recorded = answer(&db, &second, 2, 2_000).await;
    assert_eq!((&recorded["more"], &recorded["session_id"]), (&json!(true), &first["session"]["id"]));
    let more = json!({"session_id": recorded["session_id"], "correlation_id": "corr-4", "lease_token": token(4), "now": at_text(2_100)});
    let third = db.rpc("begin_sms_turn", more).await;
    assert_eq!((text(&third, "/channel"), third["messages"].as_array().unwrap().len()), ("sms".into(), 1));
    answer(&db, &third, 4, 2_200).await;
    let session =
        db.value("select jsonb_build_array(primary_channel, active_channels) from public.omnichannel_sessions").await;
    assert_eq!(session, json!(["sms", ["sms", "whatsapp"]]));
    assert_eq!(db.value("select to_jsonb(last_active_channel) from public.profiles").await, "sms");
}

#[tokio::test]
async fn stop_is_for_the_channel_it_came_on() {
    let db = Db::new().await;
    let phone = phone();
    let stop = |p: Value| with(p, json!({"keyword": "stop"}));
    let stopped = db.rpc("begin_sms_turn", stop(wrote(Some(&phone), "STOP", 1, 0))).await;
    assert_eq!((text(&stopped, "/keyword"), text(&stopped, "/channel")), ("stop".into(), "whatsapp".into()));
    assert_eq!(stopped["profile"]["preferences"]["allows_whatsapp"], false);
    answer(&db, &stopped, 1, 10).await;
    assert_eq!(db.rpc("begin_sms_turn", stop(wrote(Some(&phone), "STOP", 2, 20))).await["decision"], "opted_out");
    assert_eq!(db.rpc("begin_sms_turn", wrote(Some(&phone), "hello?", 3, 30)).await["decision"], "opted_out");
    let by_sms = db.rpc("begin_sms_turn", texted(&phone, "hello by SMS", 4, 40)).await;
    assert_eq!((text(&by_sms, "/decision"), text(&by_sms, "/channel")), ("go".into(), "sms".into()));
    // A message where nothing may be sent does not take the answer away from where it may.
    assert_eq!(db.rpc("begin_sms_turn", wrote(Some(&phone), "and here", 5, 50)).await["decision"], "stored");
    let again = db.rpc("begin_sms_turn", json!({"session_id": by_sms["session"]["id"], "correlation_id": "c", "lease_token": token(4), "now": at_text(60)})).await;
    assert_eq!((again["messages"].as_array().unwrap().len(), text(&again, "/channel")), (2, "sms".into()));
    answer(&db, &again, 4, 70).await;
    let started =
        db.rpc("begin_sms_turn", with(wrote(Some(&phone), "START", 6, 80), json!({"keyword": "start"}))).await;
    assert_eq!(started["profile"]["preferences"]["allows_whatsapp"], true);
    answer(&db, &started, 6, 90).await;
    assert_eq!(db.rpc("begin_sms_turn", wrote(Some(&phone), "hello again", 7, 100)).await["decision"], "go");
}

#[tokio::test]
async fn after_stop_by_sms_whatsapp_is_still_answered() {
    let db = Db::new().await;
    let phone = phone();
    let stopped = db.rpc("begin_sms_turn", with(texted(&phone, "STOP", 1, 0), json!({"keyword": "stop"}))).await;
    answer(&db, &stopped, 1, 10).await;
    assert_eq!(db.rpc("begin_sms_turn", texted(&phone, "hello?", 2, 20)).await["decision"], "opted_out");
    let claimed = db.rpc("begin_sms_turn", wrote(Some(&phone), "hello", 3, 30)).await;
    assert_eq!((text(&claimed, "/decision"), text(&claimed, "/channel")), ("go".into(), "whatsapp".into()));
}

#[tokio::test]
async fn a_reaction_is_kept_and_answered_by_nobody() {
    let db = Db::new().await;
    let p = with(wrote(Some(&phone()), "[reaction: 👍]", 1, 0), json!({"wants_answer": false}));
    assert_eq!(db.rpc("begin_sms_turn", p).await["decision"], "no_answer_wanted");
    let kept = db.value("select jsonb_build_array(content, handled_as) from public.conversation_messages").await;
    assert_eq!(kept, json!(["[reaction: 👍]", "no_answer_wanted"]));
    assert_eq!(db.count("select count(*) from public.conversation_turns").await, 0);
}

#[tokio::test]
async fn somebody_without_a_number_has_a_conversation_and_keeps_the_name_when_a_number_is_shown() {
    let db = Db::new().await;
    let hidden = |words, n, ms| with(wrote(None, words, n, ms), json!({"user_id": USER_ID}));
    let first = db.rpc("begin_sms_turn", hidden("Muraho", 1, 0)).await;
    assert_eq!((&first["decision"], &first["profile"]["phone_number"]), (&json!("go"), &Value::Null));
    assert_eq!(first["profile"]["whatsapp_user_id"], USER_ID);
    answer(&db, &first, 1, 10).await;
    let second = db.rpc("begin_sms_turn", hidden("Inzu", 2, 20)).await;
    assert_eq!(second["session"]["id"], first["session"]["id"]);
    answer(&db, &second, 2, 30).await;

    // The number of somebody who has called before: from now on the id names that person.
    let phone = phone();
    let caller = db.rpc("begin_sms_turn", texted(&phone, "by SMS", 3, 40)).await;
    answer(&db, &caller, 3, 50).await;
    let both = with(wrote(Some(&phone), "it is me", 4, 60), json!({"user_id": USER_ID}));
    let both = db.rpc("begin_sms_turn", both).await;
    assert_eq!(both["profile"]["id"], caller["profile"]["id"]);
    answer(&db, &both, 4, 70).await;
    let later = db.rpc("begin_sms_turn", hidden("and again without", 5, 80)).await;
    assert_eq!(
        (&later["profile"]["id"], &later["session"]["id"]),
        (&caller["profile"]["id"], &caller["session"]["id"])
    );
    let nobody = db.try_rpc("begin_sms_turn", wrote(None, "who?", 6, 90)).await.unwrap_err();
    assert_eq!(nobody.code, "PT400");
    let letter = with(wrote(Some(&phone), "x", 7, 100), json!({"channel": "letter"}));
    assert_eq!(db.try_rpc("begin_sms_turn", letter).await.unwrap_err().code, "PT400");
}

#[tokio::test]
async fn fifty_first_messages_at_once_of_somebody_without_a_number_are_one_person() {
    let db = Db::new().await;
    let mut connections = Vec::new();
    for _ in 0..50 {
        connections.push(db.connect().await);
    }
    let messages = connections.iter().zip(1..).map(|(connection, n)| {
        let p = with(wrote(None, "Muraho", n, 0), json!({"user_id": USER_ID}));
        rpc(connection, "begin_sms_turn", p)
    });
    let answers = all(messages).await;
    assert_eq!(answers.iter().filter(|answer| answer["decision"] == "go").count(), 1);
    for (what, sql) in [
        ("people", "select count(*) from public.profiles"),
        ("conversations", "select count(*) from public.omnichannel_sessions"),
        ("open turns", "select count(*) from public.conversation_turns"),
    ] {
        assert_eq!(db.count(sql).await, 1, "{what}");
    }
    assert_eq!(db.count("select count(*) from public.conversation_messages").await, 50);
}

fn call(sid: &str, event: &str, phone: Option<&str>, ms: i64, more: Value) -> Value {
    with(
        json!({"call_sid": sid, "event": event, "direction": "inbound", "phone": phone, "phone_number_id": "118", "occurred_at": at_text(ms)}),
        more,
    )
}

fn calls(events: &[Value], ms: i64) -> Value {
    json!({"correlation_id": "corr-call", "calls": events, "now": at_text(ms)})
}

#[tokio::test]
async fn a_whatsapp_call_is_recorded_in_any_order_and_told_of_until_somebody_begins() {
    let picked_up = json!({"answered_at": at_text(5_000), "duration_seconds": 55});
    let phone = phone();
    let connect = |sid: &str| call(sid, "connect", Some(&phone), 0, json!({}));
    let terminate = |sid: &str| call(sid, "terminate", Some(&phone), 60_000, picked_up.clone());
    for (sid, order) in [
        ("wacid.1", [connect("wacid.1"), terminate("wacid.1")]),
        ("wacid.2", [terminate("wacid.2"), connect("wacid.2")]),
    ] {
        let db = Db::new().await;
        for event in &order {
            db.rpc("record_whatsapp_calls", calls(std::slice::from_ref(event), 61_000)).await;
        }
        let again = db.rpc("record_whatsapp_calls", calls(&order, 62_000)).await;
        let row = db
            .value(
                "select jsonb_build_array(c.origin, c.provider_call_id, c.direction, c.status, c.duration_seconds, c.from_number, c.session_id = t.session_id,
                                          c.ended_at - c.answered_at = interval '55 seconds', p.last_whatsapp_inbound_at is not null)
                   from public.voice_calls c join public.profiles p on p.id = c.profile_id join public.wa_threads t on t.profile_id = p.id",
            )
            .await;
        assert_eq!(row, json!(["whatsapp", sid, "inbound", "completed", 55, phone, true, true, true]));
        let notify = again["notify"].as_array().unwrap();
        assert_eq!(notify.len(), 2, "asked for with each event until somebody begins");
        let ask = json!({"call_ref": notify[0]["call_id"], "phone_number": notify[0]["phone_number"], "correlation_id": "c", "lease_token": token(1), "now": at_text(63_000)});
        assert_eq!(db.rpc("begin_call_notification", ask).await["decision"], "go");
        let after = db.rpc("record_whatsapp_calls", calls(&order, 64_000)).await;
        assert_eq!(after["notify"], json!([]));
        assert_eq!(db.count("select count(*) from public.omnichannel_sessions").await, 1);
    }
}

#[tokio::test]
async fn a_missed_call_is_told_of_and_one_of_ours_that_nobody_took_is_not() {
    let db = Db::new().await;
    let id = json!({"user_id": USER_ID});
    let missed = call("wacid.1", "terminate", None, 0, id.clone());
    let failed = call("wacid.2", "terminate", None, 10, with(id.clone(), json!({"failed": true})));
    let ours = call("wacid.3", "terminate", Some(&phone()), 20, json!({"direction": "outbound"}));
    let recorded = db.rpc("record_whatsapp_calls", calls(&[missed, failed, ours], 100)).await;
    let mut states: Vec<_> = recorded["calls"].as_array().unwrap().iter().map(|call| text(call, "/status")).collect();
    states.sort();
    assert_eq!(states, ["failed", "no_answer", "no_answer"]);
    assert_eq!(recorded["notify"].as_array().unwrap().len(), 2);
    let call_id = &recorded["notify"][0]["call_id"];
    let ask = json!({"call_ref": call_id, "profile_ref": recorded["notify"][0]["profile_id"], "correlation_id": "c", "lease_token": token(1), "now": at_text(200)});
    let claimed = db.rpc("begin_call_notification", ask).await;
    assert_eq!((&claimed["decision"], text(&claimed, "/profile/whatsapp_user_id")), (&json!("go"), USER_ID.to_owned()));
    assert_eq!(
        db.count("select count(*) from public.profiles where last_whatsapp_inbound_at is not null").await,
        1,
        "who was called opened no window"
    );
}

#[tokio::test]
async fn whoever_chooses_a_channel_is_written_to_there_and_is_counted() {
    let db = Db::new().await;
    let phone = phone();
    let asks = |p: Value, keyword: &str| with(p, json!({"keyword": keyword}));
    let stopped = db.rpc("begin_sms_turn", asks(texted(&phone, "STOP", 1, 0), "stop")).await;
    answer(&db, &stopped, 1, 10).await;
    for (n, keyword, policy, sms) in
        [(2, "whatsapp_only", "whatsapp_only", false), (3, "sms_only", "sms_only", true), (4, "both", "both", true)]
    {
        let chosen = db.rpc("begin_sms_turn", asks(wrote(Some(&phone), keyword, n, 100 * i64::from(n)), keyword)).await;
        assert_eq!(
            (text(&chosen, "/keyword"), text(&chosen, "/profile/preferences/policy")),
            (keyword.into(), policy.into())
        );
        assert_eq!(chosen["profile"]["allows_sms"], sms, "{keyword}");
        answer(&db, &chosen, n, 100 * i64::from(n) + 10).await;
    }
    let p = db.value("select notification_preferences from public.profiles").await;
    assert_eq!((text(&p, "/policy_source"), p["policy_at"].is_string()), ("keyword".into(), true));
    // While a question is open, "both" is its answer.
    let asked = db.rpc("begin_sms_turn", texted(&phone, "I look for a house", 5, 600)).await;
    let p = json!({"turn_id": asked["turn_id"], "lease_token": token(5), "outcome": "answered", "now": at_text(610),
                   "reply": {"content": "To rent or to buy?", "source": "model"}, "deliveries": []});
    db.rpc("finish_sms_turn", p).await;
    let both = with(texted(&phone, "both", 6, 620), json!({"keyword": "both", "keyword_may_answer": true}));
    assert_eq!(db.rpc("begin_sms_turn", both).await["kind"], "conversation");
    let counted = db.value("select jsonb_agg(to_jsonb(v) - 'client_id') from public.v_channel_choices v").await;
    assert_eq!(
        counted,
        json!([{"policy": "both", "chosen": true, "source": "keyword", "people": 1, "replies_by_sms": 3, "replies_on_whatsapp": 3}])
    );
}

#[tokio::test]
async fn a_number_shown_for_the_first_time_belongs_to_whoever_showed_it() {
    let db = Db::new().await;
    let phone = phone();
    let by_id = json!({"user_id": USER_ID});
    let stop = with(wrote(None, "STOP", 1, 0), with(by_id.clone(), json!({"keyword": "stop"})));
    let hidden = db.rpc("begin_sms_turn", stop).await;
    answer(&db, &hidden, 1, 10).await;
    let shown = db.rpc("begin_sms_turn", with(wrote(Some(&phone), "with my number", 2, 20), by_id)).await;
    assert_eq!(shown["decision"], "opted_out");
    let by_sms = db.rpc("begin_sms_turn", texted(&phone, "and by SMS", 3, 30)).await;
    assert_eq!(by_sms["profile"]["id"], hidden["profile"]["id"], "one person, whose STOP on WhatsApp is remembered");
    assert_eq!(by_sms["profile"]["preferences"]["allows_whatsapp"], false);
    assert_eq!(db.count("select count(*) from public.profiles").await, 1);
}

#[tokio::test]
async fn a_message_that_comes_again_after_its_sender_became_somebody_elses_profile_is_not_answered_again() {
    let db = Db::new().await;
    let phone = phone();
    let caller = db.rpc("begin_sms_turn", with(texted(&phone, "STOP", 1, 0), json!({"keyword": "stop"}))).await;
    answer(&db, &caller, 1, 10).await;
    let first = with(wrote(None, "Muraho", 2, 20), json!({"user_id": USER_ID}));
    let hidden = db.rpc("begin_sms_turn", first.clone()).await;
    answer(&db, &hidden, 2, 30).await;
    let shown =
        db.rpc("begin_sms_turn", with(wrote(Some(&phone), "it is me", 3, 40), json!({"user_id": USER_ID}))).await;
    assert_eq!(shown["profile"]["id"], caller["profile"]["id"]);
    answer(&db, &shown, 3, 50).await;
    let again = db.rpc("begin_sms_turn", with(first, json!({"lease_token": token(4), "now": at_text(60)}))).await;
    assert_eq!(again["decision"], "duplicate");
    assert_eq!(db.count("select count(*) from public.conversation_turns").await, 3);
}

#[tokio::test]
async fn who_wrote_is_answered_under_the_name_that_wrote() {
    let db = Db::new().await;
    let phone = phone();
    let both =
        db.rpc("begin_sms_turn", with(wrote(Some(&phone), "with a number", 1, 0), json!({"user_id": USER_ID}))).await;
    assert_eq!(text(&both, "/profile/whatsapp_to"), phone);
    answer(&db, &both, 1, 10).await;
    let hidden = db.rpc("begin_sms_turn", with(wrote(None, "without", 2, 20), json!({"user_id": USER_ID}))).await;
    assert_eq!(
        (text(&hidden, "/profile/whatsapp_to"), text(&hidden, "/profile/phone_number")),
        (USER_ID.to_owned(), phone)
    );
}

#[tokio::test]
async fn what_waits_for_whatsapp_is_not_sent_after_stop_there_and_sms_does_not_fall_back_to_it() {
    let db = Db::new().await;
    let phone = phone();
    let asked = db.rpc("begin_sms_turn", wrote(Some(&phone), "hello", 1, 0)).await;
    let waits = with(attempt("deferred", 10), json!({"next_attempt_at": at_text(60_000)}));
    let delivery = json!({"id": asked["delivery_ids"]["whatsapp"], "channel": "whatsapp", "provider": "whatsapp", "purpose": "reply", "recipient": phone,
                          "content": "Yes.", "payload": {"kind": "text", "text": "Yes."}, "deadline_at": at_text(900_000), "attempt": waits});
    let p = json!({"turn_id": asked["turn_id"], "lease_token": token(1), "outcome": "answered", "now": at_text(10),
                   "reply": {"content": "Yes.", "source": "model"}, "deliveries": [delivery]});
    db.rpc("finish_sms_turn", p).await;
    let stop = db.rpc("begin_sms_turn", with(wrote(Some(&phone), "STOP", 2, 20), json!({"keyword": "stop"}))).await;
    answer(&db, &stop, 2, 30).await;
    let due = json!({"lease_token": token(3), "limit": 10, "now": at_text(61_000)});
    assert_eq!(db.rpc("claim_due_deliveries", due).await["deliveries"], json!([]));
    let log = "select to_jsonb(status) from public.message_delivery_log where content = 'Yes.' and purpose = 'reply' and channel = 'whatsapp' order by created_at limit 1";
    assert_eq!(db.value(log).await, "suppressed");

    let by_sms = db.rpc("begin_sms_turn", texted(&phone, "by SMS", 4, 62_000)).await;
    let failed = json!({"id": by_sms["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "purpose": "reply", "recipient": phone, "content": "No.",
                        "payload": {"text": "No."}, "deadline_at": at_text(900_000), "attempt": attempt("permanent", 62_010)});
    let p = json!({"turn_id": by_sms["turn_id"], "lease_token": token(4), "outcome": "answered", "now": at_text(62_010), "deliveries": [failed],
                   "reply": {"content": "No.", "source": "model", "renditions": {"whatsapp": {"kind": "text", "text": "No."}}}});
    assert_eq!(db.rpc("finish_sms_turn", p).await["fallbacks"], json!([]));
}
