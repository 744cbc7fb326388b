//! Tokens of MCP clients: whose conversation they reach, how long, for which tools; and that a repeated call acts once.

use serde_json::{Value, json};

use crate::support::{Db, all, at_text, lines, phone, text, unique, with};

/// A conversation with somebody new; its id.
async fn session(db: &Db) -> String {
    let message = json!({"correlation_id": format!("mcp-{}", unique()), "provider": "mtn", "provider_message_id": format!("m-{}", unique()), "from": phone(),
                         "to": "8080", "text": "Muraho", "lease_token": crate::support::token(1), "now": at_text(0)});
    text(&db.rpc("begin_sms_turn", message).await, "/session/id")
}

/// A token as the database tells it, and the hash by which it is asked about.
async fn issue(db: &Db, session: &str, more: Value) -> (Value, String) {
    let p = json!({"session_id": session, "scopes": ["session:read", "session:write"], "purpose": "a_test", "now": at_text(0)});
    let issued = db.rpc("issue_agent_tool_token", with(p, more)).await;
    let token = text(&issued, "/token");
    (issued, ihuza_core::mcp::token_hash(&token).expect("a token in the form that the function takes"))
}

fn status(hash: &str, to: &str, fingerprint: &str, ms: i64) -> Value {
    json!({"token_hash": hash, "name": "session_update_status", "scope": "session:write", "arguments": {"status": to}, "changes": true,
           "fingerprint": fingerprint, "correlation_id": "mcp", "now": at_text(ms)})
}

async fn runs(db: &Db, session: &str) -> i64 {
    db.count(&format!("select count(*) from public.mcp_tool_calls where session_id = '{session}'")).await
}

#[tokio::test]
async fn a_token_is_told_once_and_known_by_its_hash_alone() {
    let db = Db::new().await;
    let session = session(&db).await;
    let (issued, hash) =
        issue(&db, &session, json!({"scopes": ["session:write", "forget", "forget"], "ttl_seconds": 600})).await;
    assert_eq!((&issued["scopes"], &issued["max_calls"]), (&json!(["forget", "session:write"]), &json!(200)));
    assert!(text(&issued, "/expires_at").starts_with("2030-01-01T08:10:00"), "{issued}");
    let (other, _) = issue(&db, &session, json!({})).await;
    assert_ne!(issued["token"], other["token"]);
    let stored = lines(&db.admin, "select t::text from public.agent_tool_tokens t").await.join("\n");
    assert!(stored.contains(&hash) && !stored.contains("mcpt_"), "{stored}");
    for (p, why) in [
        (json!({"scopes": []}), "scopes must be"),
        (json!({"scopes": null}), "scopes must be"),
        (json!({"scopes": "messages"}), "scopes must be"),
        (json!({"scopes": ["*"]}), "agent_tool_tokens_scopes_are_words"),
        (json!({"scopes": ["messages "]}), "agent_tool_tokens_scopes_are_words"),
        (json!({"scopes": ["messages\n*"]}), "agent_tool_tokens_scopes_are_words"),
        (json!({"scopes": [null]}), "agent_tool_tokens_scopes_are_words"),
        (json!({"ttl_seconds": 59}), "ttl_seconds must be"),
        (json!({"ttl_seconds": 86401}), "ttl_seconds must be"),
        (json!({"max_calls": 0}), "agent_tool_tokens_calls_are_counts"),
        (json!({"purpose": "For +250788123456"}), "agent_tool_tokens_purpose_is_a_word"),
        (json!({"purpose": null}), "purpose is missing"),
        (json!({"session_id": "00000000-0000-4000-8000-000000000000"}), "session not found"),
    ] {
        let asked = with(json!({"session_id": session, "scopes": ["messages"], "purpose": "a_test"}), p.clone());
        let refused = db.try_rpc("issue_agent_tool_token", asked).await;
        assert!(refused.as_ref().is_err_and(|refusal| refusal.message.contains(why)), "{p}: {refused:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_none_any_more_is_refused_like_one_that_never_was() {
    let db = Db::new().await;
    let session = session(&db).await;
    let (_, hash) = issue(&db, &session, json!({"ttl_seconds": 60})).await;
    let check =
        async |hash: &str, ms: i64| db.rpc("run_mcp_tool", json!({"token_hash": hash, "now": at_text(ms)})).await;
    let granted = check(&hash, 59_999).await;
    assert_eq!(granted["scopes"], json!(["session:read", "session:write"]));
    assert!(granted["tools"].as_array().unwrap().contains(&json!("session_get_context")), "{granted}");
    let refused = json!({"refused": "token"});
    assert_eq!(check(&"0".repeat(64), 0).await, refused);
    assert_eq!(check(&hash, 60_000).await, refused, "expired");
    assert_eq!(db.rpc("run_mcp_tool", status(&hash, "closed", "a", 60_000)).await, refused);
    let (issued, revoked) = issue(&db, &session, json!({})).await;
    let (_, same_session) = issue(&db, &session, json!({})).await;
    assert_eq!(
        db.rpc("revoke_agent_tool_tokens", json!({"token_id": issued["token_id"]})).await,
        json!({"revoked": 1})
    );
    assert_eq!(check(&revoked, 0).await, refused);
    assert_eq!(db.rpc("run_mcp_tool", status(&revoked, "closed", "a", 0)).await, refused);
    assert!(check(&same_session, 0).await.get("scopes").is_some(), "its neighbour stays");
    assert_eq!(db.rpc("revoke_agent_tool_tokens", json!({"session_id": session})).await, json!({"revoked": 2}));
    assert_eq!(check(&same_session, 0).await, refused);
    assert!(db.try_rpc("revoke_agent_tool_tokens", json!({})).await.is_err(), "not all of them by an oversight");
    assert_eq!(runs(&db, &session).await, 0);
}

#[tokio::test]
async fn a_token_runs_the_tools_of_its_scopes_in_its_own_conversation() {
    let db = Db::new().await;
    let (mine, theirs) = (session(&db).await, session(&db).await);
    let (_, hash) = issue(&db, &mine, json!({"scopes": ["session_update_status"]})).await;
    // Whatever else stands in the request, it is the token that says whose tools they are.
    let p = with(
        status(&hash, "follow_up", "a", 1),
        json!({"session_id": theirs, "scope": "no:scope", "tools": [], "turn_id": theirs}),
    );
    assert_eq!(db.rpc("run_mcp_tool", p).await.pointer("/ran/ok"), Some(&json!(true)));
    let status_of =
        async |id: &str| db.value(&format!("select status from public.omnichannel_sessions where id = '{id}'")).await;
    assert_eq!((status_of(&mine).await, status_of(&theirs).await), (json!("follow_up"), json!("active")));
    let call =
        db.value("select jsonb_build_array(m.session_id, m.correlation_id, m.name) from public.mcp_tool_calls m").await;
    assert_eq!(call, json!([mine, "mcp", "session_update_status"]));

    let refused = json!({"refused": "scope"});
    let read = json!({"token_hash": hash, "name": "session_get_context", "scope": "session:read", "now": at_text(2)});
    assert_eq!(db.rpc("run_mcp_tool", read.clone()).await, refused);
    assert_eq!(db.rpc("run_mcp_tool", with(read, json!({"scope": null}))).await, refused);
    assert_eq!(runs(&db, &mine).await, 1);
    // What the function has found wrong with the arguments is recorded, and not run.
    let p = with(status(&hash, "closed", "b", 3), json!({"refused": "argument status is missing"}));
    assert_eq!(db.rpc("run_mcp_tool", p).await["ran"], json!({"ok": false, "error": "argument status is missing"}));
    assert_eq!((status_of(&mine).await, runs(&db, &mine).await), (json!("follow_up"), 2));
}

#[tokio::test]
async fn the_same_request_acts_once_for_two_minutes_and_the_same_key_for_ever() {
    let db = Db::new().await;
    let session = session(&db).await;
    let (_, hash) = issue(&db, &session, json!({})).await;
    // The run's own clock, since its row carries it or the server's.
    let now: i64 = db.count("select (extract(epoch from clock_timestamp()) * 1000)::bigint").await;
    let at = |ms: i64| chrono::DateTime::from_timestamp_millis(now + ms).unwrap().to_rfc3339();
    let (_, live) = issue(&db, &session, json!({"now": at(0)})).await;
    let run = async |fingerprint: &str, ms: i64, more: Value| {
        let p = with(status(&live, "follow_up", fingerprint, 0), with(json!({"now": at(ms)}), more));
        assert_eq!(db.rpc("run_mcp_tool", p).await.pointer("/ran/ok"), Some(&json!(true)));
        runs(&db, &session).await
    };
    assert_eq!(run("a", 0, json!({})).await, 1);
    assert_eq!(run("a", 90_000, json!({})).await, 1, "a repeat, whether or not a window has ended meanwhile");
    assert_eq!(run("b", 90_000, json!({})).await, 2, "another id, tool or argument");
    assert_eq!(run("a", 400_000, json!({})).await, 3, "a client that counts anew");
    assert_eq!(run("c", 0, json!({"idempotency_key": "k"})).await, 4);
    assert_eq!(run("d", 3_000_000, json!({"idempotency_key": "k"})).await, 4);
    // What only tells, tells what is true now.
    assert_eq!(run("e", 0, json!({"changes": false})).await, 5);
    assert_eq!(run("e", 0, json!({"changes": false})).await, 6);
    // A token has keys of its own.
    let other = status(&hash, "follow_up", "c", 10_000);
    db.rpc("run_mcp_tool", with(other, json!({"idempotency_key": "k"}))).await;
    assert_eq!(runs(&db, &session).await, 7);

    let clients = [db.connect().await, db.connect().await, db.connect().await];
    let p = with(status(&live, "active", "f", 0), json!({"now": at(0)}));
    let answers = all(clients.iter().map(|client| crate::support::rpc(client, "run_mcp_tool", p.clone()))).await;
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    assert_eq!(runs(&db, &session).await, 8, "three at once act once");
}

#[tokio::test]
async fn a_repeat_waits_for_the_first_also_where_a_window_ends_between_them() {
    let db = Db::new().await;
    let session = session(&db).await;
    let (_, hash) = issue(&db, &session, json!({})).await;
    let (first, second) = (db.connect().await, db.connect().await);
    first.batch_execute("begin").await.unwrap();
    // The tests' clock begins with a window of two minutes.
    let told = crate::support::rpc(&first, "run_mcp_tool", status(&hash, "follow_up", "a", 119_000)).await;
    let (again, ()) =
        tokio::join!(crate::support::rpc(&second, "run_mcp_tool", status(&hash, "follow_up", "a", 121_000)), async {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            first.batch_execute("commit").await.unwrap();
        });
    assert_eq!((again, runs(&db, &session).await), (told, 1));
}

#[tokio::test]
async fn a_token_makes_so_many_calls_and_no_more() {
    let db = Db::new().await;
    let session = session(&db).await;
    let (_, hash) = issue(&db, &session, json!({"max_calls": 2})).await;
    let ok = async |n: i64| {
        let answer = db.rpc("run_mcp_tool", status(&hash, "follow_up", &format!("f{n}"), n)).await;
        text(&answer, "/ran/ok")
    };
    assert_eq!([ok(1).await, ok(2).await, ok(3).await], ["true", "true", "false"]);
    assert_eq!(runs(&db, &session).await, 2);
    assert!(
        db.rpc("run_mcp_tool", json!({"token_hash": hash, "now": at_text(4)})).await.get("scopes").is_some(),
        "it may still ask what there is"
    );
}

#[tokio::test]
async fn tokens_go_with_the_person_and_when_they_are_long_over() {
    let db = Db::new().await;
    let kept = session(&db).await;
    let gone = session(&db).await;
    let (_, hash) = issue(&db, &gone, json!({"ttl_seconds": 86_400})).await;
    issue(&db, &kept, json!({})).await;
    let count = "select count(*) from public.agent_tool_tokens";
    issue(&db, &kept, json!({"now": at_text(86_400_000 * 29)})).await;
    assert_eq!(db.count(count).await, 3);
    issue(&db, &kept, json!({"now": at_text(86_400_000 * 32)})).await;
    assert_eq!(db.count(count).await, 2, "made a month and more ago, and over since");
    let (_, hash_now) = issue(&db, &gone, json!({"now": at_text(86_400_000 * 32)})).await;
    let person = db.value(&format!("select profile_id from public.omnichannel_sessions where id = '{gone}'")).await;
    db.run("update public.conversation_turns set lease_until = '2020-01-01', status = 'answered'").await;
    db.run(&format!("select private.erase_person('{}', 'asked_by_person')", person.as_str().unwrap())).await;
    assert_eq!(db.count(count).await, 2);
    for hash in [hash, hash_now] {
        let answer = db.rpc("run_mcp_tool", json!({"token_hash": hash, "now": at_text(0)})).await;
        assert_eq!(answer, json!({"refused": "token"}));
    }
}

#[tokio::test]
async fn a_call_has_a_token_for_its_agents_tools_that_ends_with_it() {
    let db = Db::new().await;
    let opening = |sid: &str, from: &str| json!({"call_sid": sid, "origin": "openai_sip", "from": from, "to": "+250788000000", "model": "gpt-realtime-2.1", "correlation_id": "c", "now": at_text(0)});
    let wanted =
        json!({"mcp": {"tools": ["session_get_context", "search_services", "no_such_tool"], "ttl_seconds": 3900}});
    let without = db.rpc("open_voice_call", opening("a", &phone())).await;
    assert_eq!(without["mcp"], Value::Null, "nobody asked for one");
    let hidden = db.rpc("open_voice_call", with(opening("b", "anonymous"), wanted.clone())).await;
    assert_eq!(hidden["mcp"], Value::Null, "nobody knows whose it would be");
    db.run("update public.ai_agents set voice_tools = voice_tools - 'search_services' where slug = 'call-center'")
        .await;
    let opened = db.rpc("open_voice_call", with(opening("c", &phone()), wanted.clone())).await;
    assert_eq!(opened["mcp"]["tools"], json!(["session_get_context"]), "what the agent has of them");
    let hash = ihuza_core::mcp::token_hash(&text(&opened, "/mcp/token")).unwrap();
    let check = async |ms: i64| db.rpc("run_mcp_tool", json!({"token_hash": hash, "now": at_text(ms)})).await;
    assert_eq!(check(1_000).await["scopes"], json!(["session_get_context"]));
    assert_eq!(check(3_900_000).await, json!({"refused": "token"}), "no longer than a session of the model");
    let ran = json!({"token_hash": hash, "name": "session_get_context", "scope": "session:read", "arguments": {}, "changes": false, "now": at_text(2_000)});
    let ran = db.rpc("run_mcp_tool", ran).await;
    assert_eq!(ran["ran"]["ok"], true, "{ran}");
    let ending = json!({"call_sid": "c", "origin": "openai_sip", "cause": "caller_hangup", "ended_at": at_text(60_000), "now": at_text(60_000)});
    db.rpc("end_voice_call", ending).await;
    assert_eq!(check(61_000).await, json!({"refused": "token"}), "the call is over");
    let stored = lines(&db.admin, "select t::text from public.agent_tool_tokens t").await.join("\n");
    assert!(!stored.contains("mcpt_"), "{stored}");
}
