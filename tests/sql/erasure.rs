//! Whoever is erased is forgotten: after it no text, number or name of theirs stands in any column of any table.

use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, ended_call, lines, text, token, with};

const PHONE: &str = "+250788123456";
/// In whatever the person says or is told.
const SECRET: &str = "inzu-y-ibanga";

/// Columns with one of the words in them, as `table.column: value`.
async fn left(db: &Db, words: &[&str]) -> Vec<String> {
    let sql = "select format('%I.%I', c.table_schema, c.table_name) || ' ' || quote_ident(c.column_name) from information_schema.columns c
                 join information_schema.tables t using (table_schema, table_name)
                where t.table_type = 'BASE TABLE' and c.table_schema in ('public', 'private')
                  and c.data_type in ('text', 'jsonb', 'json', 'character varying', 'character', 'uuid', 'ARRAY')";
    let mut found = Vec::new();
    for column in lines(&db.admin, sql).await {
        let (table, name) = column.split_once(' ').unwrap();
        for word in words {
            let sql =
                format!("select '{table}.{name}: ' || {name}::text from {table} where {name}::text ilike '%{word}%'");
            found.extend(lines(&db.admin, &sql).await);
        }
    }
    found.sort();
    found
}

/// A call with transcript and summary, a conversation with a tool, deliveries with reports, letters and jobs: all of one person.
async fn life(db: &Db, phone: &str, n: u32) -> String {
    let digits = phone.trim_start_matches('+');
    let call = ended_call(db, phone, -1000).await;
    db.run(&format!(
        "insert into public.transcripts (call_id, seq, role, text) values ('{call}', 1, 'user', '{SECRET}');
         update public.voice_calls set metadata = '{{\"from\": \"sip:{digits}@trunk\"}}', provider_call_id = 'call-{digits}', mtn_call_sid = 'sid-{n}' where id = '{call}'"
    ))
    .await;
    let wamid = format!("wamid.{digits}");
    // Another call, told of by the relay, with everything that it can leave behind.
    let sid = format!("relay-{digits}");
    let named = json!({"call_sid": sid, "from": phone, "to": "+250788000000", "correlation_id": format!("invite-{digits}"), "origin": "whatsapp",
                       "locale": "en", "started_at": at_text(-2000), "now": at_text(-1000)});
    let model = json!({"model": "gpt-realtime-2.1-mini"});
    db.rpc("open_voice_call", with(named.clone(), model)).await;
    let events = json!({"events": [
        {"seq": 1, "type": "transcript", "role": "user", "text": SECRET}, {"seq": 2, "type": "session.created", "session_id": format!("sess-{digits}")},
        {"seq": 3, "type": "consent", "state": "given", "method": "speech"}, {"seq": 4, "type": "dtmf", "digits": digits}]});
    db.rpc("record_voice_events", with(named.clone(), events)).await;
    let tool = json!({"name": "remember", "idempotency_key": "one", "arguments": {"key": "secret", "value": SECRET}});
    db.rpc("run_voice_tool", with(named.clone(), tool)).await;
    db.rpc(
        "end_voice_call",
        with(named, json!({"cause": "caller_hangup", "reason": format!("sip:{digits}@trunk"), "last_seq": 4})),
    )
    .await;
    let p = json!({"correlation_id": format!("note-{digits}"), "call_ref": call, "phone_number": phone, "lease_token": token(n), "now": at_text(0)});
    let claim = db.rpc("begin_call_notification", p).await;
    let delivery = |claim: &Value, channel: &str, provider: &str, id: &str| {
        let mut sent = attempt("accepted", 1000);
        sent["provider_message_id"] = json!(id);
        json!({"id": claim["delivery_ids"][channel], "channel": channel, "provider": provider, "recipient": phone, "content": SECRET,
               "payload": {"text": SECRET}, "deadline_at": at_text(86_400_000), "attempt": sent})
    };
    let p = json!({"notification_id": claim["notification_id"], "lease_token": token(n), "correlation_id": format!("note-{digits}"), "outcome": "done", "now": at_text(1000),
                   "summary": {"headline": SECRET, "points": [SECRET], "source": "model"}, "message": {"content": SECRET, "renditions": {"sms": {"text": SECRET}}},
                   "deliveries": [delivery(&claim, "sms", "mtn", &format!("sms-{digits}")), delivery(&claim, "whatsapp", "whatsapp", &wamid)]});
    db.rpc("finish_call_notification", p).await;
    let event = |status: &str, id: &Value| json!({"provider": "whatsapp", "provider_message_id": wamid, "delivery_ref": id, "status": status, "occurred_at": at_text(2000)});
    let report = json!({"correlation_id": format!("report-{digits}"), "events": [event("delivered", &claim["delivery_ids"]["whatsapp"])], "now": at_text(2000)});
    db.rpc("record_delivery_events", report).await;
    let bare =
        json!({"provider": "whatsapp", "provider_message_id": wamid, "status": "read", "occurred_at": at_text(2500)});
    db.rpc("record_delivery_events", json!({"correlation_id": "bare", "events": [bare], "now": at_text(2500)})).await;

    let message = |id: u32| {
        json!({"correlation_id": format!("sms-{digits}-{id}"), "provider": "mtn", "provider_message_id": format!("{digits}-{id}"), "from": phone, "to": "8080",
               "text": SECRET, "lease_token": token(n + 100 + id), "now": at_text(3000)})
    };
    let turn = db.rpc("begin_sms_turn", message(1)).await;
    let p = json!({"session_id": turn["session"]["id"], "turn_id": turn["turn_id"], "name": "session_update_status", "idempotency_key": format!("tool-{digits}"),
                   "correlation_id": format!("sms-{digits}-1"), "arguments": {"status": "active", "intent": SECRET, "note": SECRET}});
    db.rpc("run_agent_tool", p.clone()).await;
    let said = json!({"text": SECRET});
    for (name, arguments) in [
        ("service_request_save", json!({"kind": "housing", "details": SECRET, "budget": 1})),
        ("service_request_save", json!({"details": format!("{SECRET} {digits}")})),
        ("book_transport", json!({"action": "create", "pickup": SECRET, "destination": SECRET, "note": digits})),
        ("book_transport", json!({"action": "cancel"})),
        ("transfer_to_human", json!({"reason": SECRET})),
        ("messaging_send_sms", json!({"text": SECRET})),
    ] {
        let key = format!("{name}-{digits}-{}", arguments.to_string().len());
        let tool = json!({"name": name, "arguments": arguments, "idempotency_key": key, "renditions": {"sms": said, "whatsapp": said}});
        let answer = db.rpc("run_agent_tool", with(p.clone(), tool)).await;
        assert_eq!(answer["ok"], true, "{name}: {answer}");
    }
    let p = json!({"turn_id": turn["turn_id"], "lease_token": token(n + 101), "outcome": "answered", "now": at_text(4000), "reply": {"content": SECRET, "source": "model"},
                   "deliveries": [delivery(&turn, "sms", "mtn", &format!("reply-{digits}"))]});
    db.rpc("finish_sms_turn", p).await;
    // A message whose answer was never finished, and one that somebody else sent on our account.
    db.rpc("begin_sms_turn", message(2)).await;
    db.run(&format!("select public.log_message_delivery('sms', p_recipient => '{phone}', p_content => '{SECRET}', p_idempotency_key => 'own-{digits}')")).await;
    let profile = text(&turn, "/profile/id");
    db.run(&format!(
        "update public.profiles set display_name = 'Jeanne {digits}', whatsapp_jid = '{digits}@s.whatsapp.net' where id = '{profile}';
         insert into public.profile_identities (profile_id, kind, value) values ('{profile}', 'whatsapp_phone', '{digits}'), ('{profile}', 'whatsapp_user_id', 'RW.{digits}')"
    ))
    .await;
    let envelope = json!({"v": 1, "correlation_id": format!("late-{digits}"), "body": {"from": phone, "text": SECRET}});
    db.rpc(
        "enqueue_job",
        json!({"queue": "sms-inbound", "payload": envelope, "correlation_id": format!("late-{digits}")}),
    )
    .await;
    let letter = json!({"queue": "sms-inbound", "message_id": format!("letter-{digits}"), "payload": envelope, "correlation_id": format!("late-{digits}"), "reason": "retries_exhausted"});
    db.rpc("record_dead_letter", letter).await;
    let finish = json!({"kind": "record", "rpc": "finish_sms_turn", "p": {"turn_id": turn["turn_id"], "reply": {"content": SECRET}}});
    db.rpc("record_dead_letter", json!({"queue": "delivery-retry", "message_id": format!("r-{n}"), "payload": {"v": 1, "body": finish}, "reason": "retries_exhausted"})).await;
    profile
}

#[tokio::test]
async fn nothing_of_an_erased_person_is_left_anywhere_and_all_of_everybody_else() {
    let db = Db::new().await;
    let profile = life(&db, PHONE, 1).await;
    let other = "+250788999888";
    life(&db, other, 50).await;
    let reports = json!([{"delivery_ref": "00000000-0000-4000-8000-00000000abcd"}, {"provider_message_id": "wamid.250788123456"}]);
    let calls = json!([{"provider_call_id": "wacid.1", "phone": PHONE}, {"provider_call_id": "wacid.2", "phone": "+250788777666"}]);
    for (list, of_both) in [("events", reports), ("calls", calls)] {
        let job = json!({"queue": "whatsapp-updates", "payload": {"v": 1, "body": {list: of_both}}});
        db.rpc("enqueue_job", job).await;
    }
    // Of somebody whose number begins alike, and of a call whose name does.
    for (n, body) in [json!({"from": "+2507881234567"}), json!({"call_ref": "sid-12"}), json!({"call_ref": "sid-1"})]
        .iter()
        .enumerate()
    {
        let letter = json!({"queue": "sms-inbound", "message_id": format!("alike-{n}"), "payload": {"v": 1, "body": body}, "reason": "retries_exhausted"});
        db.rpc("record_dead_letter", letter).await;
    }
    let before = db.count("select count(*) from public.message_delivery_log").await;
    let of_other = left(&db, &["250788999888"]).await;
    assert!(left(&db, &["250788123456"]).await.len() > 30);

    // While somebody answers, nothing is erased.
    let erase = "select public.erase_person($1::text::uuid, 'asked_by_person')";
    db.run("update public.conversation_turns set lease_until = now() + interval '1 minute' where status = 'open'")
        .await;
    let refused = db.service.query_one(erase, &[&profile]).await.unwrap_err();
    assert_eq!(refused.as_db_error().unwrap().message(), "person_is_being_answered");
    db.run("update public.conversation_turns set lease_until = now() - interval '1 minute' where status = 'open'")
        .await;

    let counts: Value = db.service.query_one(erase, &[&profile]).await.unwrap().get(0);
    for table in [
        "jobs",
        "dead_letters",
        "transcripts",
        "call_summaries",
        "mcp_tool_calls",
        "voice_calls",
        "voice_events",
        "call_consents",
        "wa_threads",
        "voice_memories",
        "message_delivery_log",
        "conversation_messages",
    ] {
        assert!(counts[table].as_i64().unwrap() > 0, "{table}: {counts}");
    }
    let mut found = left(&db, &["250788123456", "Jeanne 250788123456", &profile]).await;
    found.retain(|line| !line.starts_with("public.erasures.profile_id: "));
    found.retain(|line| !line.contains("2507881234567"));
    let letters = db
        .value(
            "select jsonb_agg(message_id order by message_id) from public.dead_letters where message_id like 'alike%'",
        )
        .await;
    assert_eq!(letters, json!(["alike-0", "alike-1"]), "those only look alike, and the third is the call's");
    assert!(found.is_empty(), "{}", found.join("\n"));
    // The secret is everybody's; what is left of it is the other's.
    let secrets = "select count(*) from public.message_delivery_log where content is not null or payload is not null";
    assert_eq!(
        db.count(secrets).await,
        db.count(&format!("{secrets} and (recipient = '{other}' or sender = '{other}')")).await
    );
    for (table, rows) in [("transcripts", 2), ("call_summaries", 1), ("voice_memories", 1), ("voice_events", 4)] {
        assert_eq!(db.count(&format!("select count(*) from public.{table}")).await, rows, "{table}");
    }
    assert_eq!(left(&db, &["250788999888"]).await, of_other, "nobody else loses anything");
    assert_eq!(db.count("select count(*) from public.message_delivery_log").await, before, "figures stay");
    let kept = db.value("select jsonb_object_agg(list, items) from public.jobs, jsonb_each(payload -> 'body') b (list, items) where queue = 'whatsapp-updates'").await;
    let of_others = json!({"events": [{"delivery_ref": "00000000-0000-4000-8000-00000000abcd"}],
                           "calls": [{"provider_call_id": "wacid.2", "phone": "+250788777666"}]});
    assert_eq!(kept, of_others);
    let audit = db.value("select jsonb_build_array(reason, counts) from public.erasures").await;
    assert_eq!(audit, json!(["asked_by_person", counts]));
}

#[tokio::test]
async fn what_is_reported_of_an_erased_person_later_is_not_kept() {
    let db = Db::new().await;
    let profile = life(&db, PHONE, 1).await;
    let delivery = text(
        &db.value("select to_jsonb(l.id) from public.message_delivery_log l where channel = 'whatsapp'").await,
        "",
    );
    db.run("update public.conversation_turns set lease_until = now() - interval '1 minute'").await;
    db.service.query_one("select public.erase_person($1::text::uuid, 'retention')", &[&profile]).await.unwrap();
    let event = json!({"provider": "whatsapp", "provider_message_id": "wamid.250788123456", "delivery_ref": delivery, "status": "read", "occurred_at": at_text(9000)});
    let said =
        db.rpc("record_delivery_events", json!({"correlation_id": "r", "events": [event], "now": at_text(9000)})).await;
    assert_eq!((&said["ignored"], &said["orphaned"]), (&json!(1), &json!(0)));
    let result = json!({"id": delivery, "attempt": attempt("accepted", 9000)});
    db.rpc("record_delivery_results", json!({"lease_token": token(7), "results": [result], "now": at_text(9000)}))
        .await;
    assert_eq!(left(&db, &["250788123456"]).await, Vec::<String>::new());
    assert_eq!(db.count("select count(*) from public.message_delivery_attempts").await, 0);
}

#[tokio::test]
async fn a_call_that_runs_is_not_erased_under_it_and_one_that_was_erased_keeps_nothing_more() {
    let db = Db::new().await;
    let named = json!({"call_sid": "runs", "from": PHONE, "to": "+250788000000", "correlation_id": "invite"});
    let opened = db.rpc("open_voice_call", with(named.clone(), json!({"model": "m"}))).await;
    let profile = text(&opened, "/profile/id");
    let erase = "select public.erase_person($1::text::uuid, 'asked_by_person')";
    let refused = db.service.query_one(erase, &[&profile]).await.unwrap_err();
    assert_eq!(refused.as_db_error().unwrap().message(), "person_is_being_answered");
    db.rpc("end_voice_call", with(named, json!({"cause": "caller_hangup"}))).await;
    db.service.query_one(erase, &[&profile]).await.unwrap();
    let late = json!({"call_id": opened["call_id"], "events": [{"seq": 1, "type": "transcript", "role": "user", "text": PHONE}]});
    assert_eq!(db.rpc("record_voice_events", late).await["ignored"], 1);
    let tool = json!({"call_id": opened["call_id"], "name": "remember", "idempotency_key": "late", "arguments": {"key": "a", "value": PHONE}});
    assert_eq!(db.rpc("run_voice_tool", tool).await["ok"], false);
    let end = db.rpc("end_voice_call", json!({"call_id": opened["call_id"], "from": PHONE})).await;
    assert_eq!((&end["notify"], &end["phone_number"]), (&json!(false), &Value::Null));
    assert_eq!(left(&db, &["250788123456"]).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_erasure_has_a_reason_that_names_nobody_and_a_person() {
    let db = Db::new().await;
    db.run(&format!("insert into public.profiles (phone_number) values ('{PHONE}')")).await;
    let refused = async |profile: &str, reason: &str| {
        let erase = "select public.erase_person($1::text::uuid, $2)";
        let error = db.service.query_one(erase, &[&profile, &reason]).await.unwrap_err();
        error.as_db_error().unwrap().code().code().to_owned()
    };
    let profile = text(&db.value("select to_jsonb(id) from public.profiles").await, "");
    assert_eq!(refused(&profile, "Jeanne +250788123456 asked").await, "PT400");
    assert_eq!(refused("00000000-0000-4000-8000-000000000000", "asked_by_person").await, "PT404");
    assert_eq!(db.count("select count(*) from public.profiles").await, 1);
}
