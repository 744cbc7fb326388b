//! Many at once: one session, one turn, one notification, each piece of work handed out once, and no deadlock.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{Db, all, at_text, attempt, ended_call, lines, phone, rpc, text, token, try_rpc, with};

/// Connections at a time; each makes its calls one after the other.
const WORKERS: u32 = 40;

/// `each` calls of every worker, all at the same time. The closure gets the connection and a number that no other call has.
async fn together<T>(db: &Db, workers: u32, each: u32, call: impl AsyncFn(&Client, u32) -> T) -> Vec<T> {
    let call = &call;
    let clients = all((0..workers).map(|_| db.connect())).await;
    let work = clients.iter().enumerate().map(|(worker, client)| async move {
        let mut answers = Vec::new();
        for n in 0..each {
            answers.push(call(client, 1 + worker as u32 * each + n).await);
        }
        answers
    });
    all(work).await.into_iter().flatten().collect()
}

/// How often each decision was given.
fn decisions(answers: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(text(answer, "/decision")).or_default() += 1;
    }
    counts
}

fn message(id: &str, from: &str, n: u32, ms: i64) -> Value {
    json!({"correlation_id": format!("c-{n}"), "provider": "mtn", "provider_message_id": id, "from": from, "to": "8080", "text": id,
           "lease_token": token(n), "history_limit": 20, "now": at_text(ms)})
}

#[tokio::test]
async fn a_thousand_requests_for_the_session_of_a_person_make_one() {
    let db = Db::new().await;
    db.run("insert into public.profiles (phone_number) values ('+250788123456')").await;
    let sql = "select public.get_or_create_omnichannel_session((select id from public.profiles), $1)";
    let found = together(&db, WORKERS, 25, async |client, n| {
        let channel = ["sms", "whatsapp", "voice"][n as usize % 3];
        client.query_one(sql, &[&channel]).await.unwrap().get::<_, uuid::Uuid>(0)
    })
    .await;
    assert_eq!(found.len(), 1000);
    assert_eq!(found.into_iter().collect::<HashSet<_>>().len(), 1);
    assert_eq!(db.count("select count(*) from public.omnichannel_sessions").await, 1);
    assert_eq!(db.count("select count(*) from public.conversation_threads").await, 1);
    assert_eq!(db.count("select cardinality(active_channels)::bigint from public.omnichannel_sessions").await, 3);
}

#[tokio::test]
async fn an_expired_session_is_followed_by_one_however_many_ask() {
    let db = Db::new().await;
    db.run(
        "insert into public.profiles (phone_number) values ('+250788123456');
            select public.get_or_create_omnichannel_session(id) from public.profiles;
            update public.omnichannel_sessions set last_activity_at = now() - interval '4 days'",
    )
    .await;
    let sql = "select public.get_or_create_session((select id from public.profiles))";
    let found =
        together(&db, 20, 5, async |client, _| client.query_one(sql, &[]).await.unwrap().get::<_, uuid::Uuid>(0)).await;
    assert_eq!(found.into_iter().collect::<HashSet<_>>().len(), 1);
    let all = db.value("select jsonb_agg(status order by created_at) from public.omnichannel_sessions").await;
    assert_eq!(all, json!(["expired", "active"]));
}

#[tokio::test]
async fn a_thousand_copies_of_one_message_become_one_turn() {
    let db = Db::new().await;
    let found = together(&db, WORKERS, 25, async |client, n| {
        rpc(client, "begin_sms_turn", message("m-1", "+250788123456", n, 0)).await
    })
    .await;
    assert_eq!(decisions(&found), BTreeMap::from([("duplicate".to_owned(), 999), ("go".to_owned(), 1)]));
    for table in
        ["profiles", "omnichannel_sessions", "conversation_messages", "conversation_turns", "message_delivery_log"]
    {
        assert_eq!(db.count(&format!("select count(*) from public.{table}")).await, 1, "{table}");
    }
}

#[tokio::test]
async fn a_burst_of_messages_is_answered_by_one_holder_at_a_time_and_none_is_left() {
    let db = Db::new().await;
    let mut begun = together(&db, 20, 5, async |client, n| {
        rpc(client, "begin_sms_turn", message(&format!("m-{n}"), "+250788123456", n, 0)).await
    })
    .await;
    assert_eq!(decisions(&begun), BTreeMap::from([("go".to_owned(), 1), ("stored".to_owned(), 99)]));
    begun.retain(|answer| answer["decision"] == "go");
    let mut turn = begun.remove(0);
    let holder = db.value("select lease_token from public.conversation_turns").await;
    let mut answered = 0;
    loop {
        answered += turn["messages"].as_array().unwrap().len();
        let p = json!({"turn_id": turn["turn_id"], "lease_token": holder, "outcome": "answered", "now": at_text(1000), "deliveries": [],
                       "reply": {"content": "answer", "source": "model"}});
        if db.rpc("finish_sms_turn", p).await["more"] == false {
            break;
        }
        let p = json!({"session_id": turn["session"]["id"], "correlation_id": "more", "lease_token": holder, "now": at_text(1000)});
        turn = db.rpc("begin_sms_turn", p).await;
        assert_eq!(turn["decision"], "go");
    }
    assert_eq!(answered, 100, "every message in exactly one turn");
    assert_eq!(db.count("select count(*) from public.conversation_messages where handled_at is null").await, 0);
}

#[tokio::test]
async fn a_session_closed_in_mid_turn_lets_nobody_else_answer_its_person() {
    let db = Db::new().await;
    // Every fifth closes whichever session is open, as the agent's tool does while its turn runs.
    let begun = together(&db, 20, 5, async |client, n| {
        if n % 5 == 0 {
            let close = "select public.update_omnichannel_session_status(id, 'closed') from public.omnichannel_sessions where status in ('active', 'follow_up')";
            client.query(close, &[]).await.unwrap();
        }
        rpc(client, "begin_sms_turn", message(&format!("m-{n}"), "+250788123456", n, 0)).await
    })
    .await;
    assert_eq!(decisions(&begun), BTreeMap::from([("go".to_owned(), 1), ("stored".to_owned(), 99)]));
    let sessions = db.count("select count(*) from public.omnichannel_sessions").await;
    assert!(sessions > 1, "{sessions}");
    let other = with(message("other", "+250788123457", 900, 0), json!({}));
    assert_eq!(db.rpc("begin_sms_turn", other).await["decision"], "go", "somebody else need not wait");

    let mut turn = begun.into_iter().find(|answer| answer["decision"] == "go").unwrap();
    let person = text(&turn, "/profile/id");
    let holder =
        db.value(&format!("select lease_token from public.conversation_turns where profile_id = '{person}'")).await;
    let mut answered = 0;
    loop {
        answered += turn["messages"].as_array().unwrap().len();
        let p = json!({"turn_id": turn["turn_id"], "lease_token": holder, "outcome": "answered", "now": at_text(1000), "deliveries": [],
                       "reply": {"content": "answer", "source": "model"}});
        let done = db.rpc("finish_sms_turn", p).await;
        if done["more"] == false {
            break;
        }
        let p = json!({"session_id": done["session_id"], "correlation_id": "more", "lease_token": holder, "now": at_text(1000)});
        turn = db.rpc("begin_sms_turn", p).await;
        assert_eq!(turn["decision"], "go");
        let own = turn["messages"].as_array().unwrap().iter().map(|message| text(message, "/id")).collect::<Vec<_>>();
        let sessions = db
            .count(&format!(
                "select count(distinct session_id) from public.conversation_messages where id::text = any ('{{{}}}')",
                own.join(",")
            ))
            .await;
        assert_eq!(sessions, 1, "a turn answers one session");
    }
    assert_eq!(answered, 100, "every message in exactly one turn");
}

#[tokio::test]
async fn whoever_claims_for_a_person_waits_for_whoever_is_just_claiming() {
    let db = Db::new().await;
    let from = phone();
    let person = format!("profile_id = (select id from public.profiles where phone_number = '{from}')");
    // Two messages: one is answered in a session that is closed then, the other still waits in it.
    let first = db.rpc("begin_sms_turn", message("f-1", &from, 1, 0)).await;
    db.rpc("begin_sms_turn", message("f-2", &from, 2, 0)).await;
    db.run(&format!("select public.update_status('{}', 'closed')", text(&first, "/session/id"))).await;
    let finish = json!({"turn_id": first["turn_id"], "lease_token": token(1), "outcome": "answered", "now": at_text(1), "deliveries": []});
    assert_eq!(db.rpc("finish_sms_turn", finish).await["more"], true);
    // One looks after the closed session and has not committed; another has a message that opens a new one.
    let (looks_after, writes) = (db.connect().await, db.connect().await);
    looks_after.batch_execute("begin").await.unwrap();
    let session = json!({"session_id": first["session"]["id"], "correlation_id": "c", "lease_token": token(3), "now": at_text(2)});
    assert_eq!(rpc(&looks_after, "begin_sms_turn", session).await["decision"], "go");
    let waiting =
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    let answers = all([0, 1].map(|which| {
        let (looks_after, writes, db, from) = (&looks_after, &writes, &db, &from);
        async move {
            if which == 0 {
                return rpc(writes, "begin_sms_turn", message("f-3", from, 4, 3)).await;
            }
            while db.count(waiting).await == 0 {
                tokio::task::yield_now().await;
            }
            looks_after.batch_execute("commit").await.unwrap();
            Value::Null
        }
    }))
    .await;
    assert_eq!(answers[0], json!({"decision": "stored"}));
    let open = format!("select count(*) from public.conversation_turns where {person} and status = 'open'");
    assert_eq!(db.count(&open).await, 1);
}

#[tokio::test]
async fn many_requests_for_one_call_notify_once() {
    let db = Db::new().await;
    let call = ended_call(&db, &phone(), -1000).await;
    let found = together(&db, WORKERS, 5, async |client, n| {
        let p =
            json!({"correlation_id": format!("c-{n}"), "call_ref": call, "lease_token": token(n), "now": at_text(0)});
        rpc(client, "begin_call_notification", p).await
    })
    .await;
    assert_eq!(decisions(&found), BTreeMap::from([("busy".to_owned(), 199), ("go".to_owned(), 1)]));
    assert_eq!(db.count("select count(*) from public.omnichannel_sessions").await, 1);
    assert_eq!(
        db.count("select count(*) from public.notification_requests").await,
        200,
        "each can ask what became of it"
    );
}

#[tokio::test]
async fn due_deliveries_are_each_leased_to_one() {
    let db = Db::new().await;
    let insert = format!(
        "insert into public.message_delivery_log (channel, provider, recipient, next_attempt_at, last_outcome, attempts, deadline_at)
         select 'sms', 'mtn', '+25078' || 8000000 + n, '{}', 'retryable', 1, '{}' from generate_series(1, 400) n",
        at_text(0),
        at_text(3_600_000)
    );
    db.run(&insert).await;
    let found = together(&db, 16, 4, async |client, n| {
        let p = json!({"lease_token": token(n), "lease_seconds": 60, "limit": 10, "now": at_text(1000)});
        rpc(client, "claim_due_deliveries", p).await["deliveries"].as_array().unwrap().clone()
    })
    .await;
    let ids: Vec<String> = found.iter().flatten().map(|delivery| text(delivery, "/id")).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "nobody sends what another sends");
    let mut rest = Vec::new();
    for n in 1000..1100 {
        let p = json!({"lease_token": token(n), "lease_seconds": 60, "limit": 10, "now": at_text(1000)});
        let more = db.rpc("claim_due_deliveries", p).await["deliveries"].as_array().unwrap().clone();
        if more.is_empty() {
            break;
        }
        rest.extend(more);
    }
    assert_eq!(ids.len() + rest.len(), 400);
}

#[tokio::test]
async fn a_report_and_the_result_that_it_is_about_never_miss_each_other() {
    let db = Db::new().await;
    let (one, two) = (db.connect().await, db.connect().await);
    for n in 0..60 {
        let call = ended_call(&db, &phone(), -1000).await;
        let claim = db
            .rpc(
                "begin_call_notification",
                json!({"correlation_id": call, "call_ref": call, "lease_token": token(1), "now": at_text(0)}),
            )
            .await;
        let id = &claim["delivery_ids"]["sms"];
        let provider_message_id = format!("race-{n}");
        let delivery = json!({"id": id, "channel": "sms", "provider": "mtn", "recipient": "+250788123456", "purpose": "call_summary",
                              "attempt": with(attempt("accepted", 500), json!({"provider_message_id": provider_message_id}))});
        let finish = json!({"notification_id": claim["notification_id"], "lease_token": token(1), "outcome": "done", "deliveries": [delivery], "now": at_text(1000)});
        let mut event = json!({"provider": "mtn", "status": "delivered", "occurred_at": at_text(900)});
        if n % 2 == 0 {
            event["delivery_ref"] = id.clone();
        } else {
            event["provider_message_id"] = json!(provider_message_id);
        }
        let report = json!({"correlation_id": "report", "events": [event], "now": at_text(1000)});
        tokio::join!(rpc(&one, "finish_call_notification", finish), rpc(&two, "record_delivery_events", report));
        let status =
            db.value(&format!("select status from public.message_delivery_log where id = {}", sql_text(id))).await;
        assert_eq!(status, "delivered", "round {n}");
    }
    assert_eq!(db.count("select count(*) from public.message_status_events where delivery_id is null").await, 0);
}

fn sql_text(value: &Value) -> String {
    format!("'{}'", value.as_str().unwrap())
}

/// One of everything that a sweep finds, twenty times.
async fn left_behind(db: &Db) {
    for n in 0..20 {
        ended_call(db, &phone(), -300_000).await;
        // A holder of a notification that is gone, and one that gave it back.
        for (pause, is_back) in [(0, false), (0, true)] {
            let call = ended_call(db, &phone(), -300_000).await;
            let p = json!({"correlation_id": call, "call_ref": call, "lease_token": token(1), "now": at_text(-400_000 + pause)});
            let claim = db.rpc("begin_call_notification", p).await;
            if is_back {
                let p = json!({"notification_id": claim["notification_id"], "lease_token": token(1), "outcome": "released", "now": at_text(-399_000)});
                db.rpc("finish_call_notification", p).await;
            }
        }
        // A holder of a turn that is gone, and a message stored for one that answered and went.
        db.rpc("begin_sms_turn", message(&format!("gone-{n}"), &phone(), 1, -400_000)).await;
        let (from, first) = (phone(), message(&format!("first-{n}"), &phone(), 1, -400_000));
        let first = with(first, json!({"from": from}));
        let turn = db.rpc("begin_sms_turn", first).await;
        db.rpc("begin_sms_turn", message(&format!("second-{n}"), &from, 2, -399_000)).await;
        db.rpc("finish_sms_turn", json!({"turn_id": turn["turn_id"], "lease_token": token(1), "outcome": "answered", "now": at_text(-398_000)})).await;
        let payload = json!({"v": 1, "n": n});
        db.rpc("enqueue_job", json!({"queue": "sms-inbound", "payload": payload, "correlation_id": "job"})).await;
        let sql = format!(
            "insert into public.message_delivery_log (channel, provider, next_attempt_at, deadline_at) values ('sms', 'mtn', '{}', '{}')",
            at_text(-100_000),
            at_text(-50_000)
        );
        db.run(&sql).await;
        let sql = format!(
            "insert into public.profiles (phone_number) values ('{}');
             insert into public.omnichannel_sessions (profile_id, primary_channel, last_activity_at) select id, 'sms', '{}' from public.profiles
              order by created_at desc limit 1",
            phone(),
            at_text(-90 * 3_600_000)
        );
        db.run(&sql).await;
    }
    // Rows carry the real time of their insertion, which is long before the time of the tests.
}

#[tokio::test]
async fn two_sweepers_find_each_piece_of_work_once_and_a_second_sweep_finds_nothing() {
    let db = Db::new().await;
    left_behind(&db).await;
    let p = json!({"limit": 1000, "lease_seconds": 60, "unknown_wait_seconds": 120, "call_grace_seconds": 60, "now": at_text(0)});
    let mut found = together(&db, 4, 2, async |client, _| rpc(client, "sweep", p.clone()).await).await;
    // Whoever met another at it says so, rather than that there was nothing.
    found.retain(|answer| *answer != json!({"busy": true}));
    let items = |name: &str, key: &str| -> Vec<String> {
        found.iter().flat_map(|answer| answer[name].as_array().unwrap()).map(|item| text(item, key)).collect()
    };
    for (name, key, expected) in [("jobs", "/id", 20), ("notify", "/call_id", 60)] {
        let items = items(name, key);
        assert_eq!(items.iter().collect::<HashSet<_>>().len(), expected, "{name}: all of it");
        assert_eq!(items.len(), expected, "{name}: each once");
    }
    // A message that waits without a claim is offered by every sweep until somebody claims it: a claim is all it takes.
    let turns = items("turns", "/session_id");
    assert_eq!(turns.iter().collect::<HashSet<_>>().len(), 40);
    let claimed =
        lines(&db.admin, "select session_id::text from public.conversation_turns where status = 'open'").await;
    assert_eq!(claimed.len(), 20);
    for session in claimed {
        assert_eq!(turns.iter().filter(|turn| **turn == session).count(), 1, "each claim once");
    }
    let sum = |name: &str| found.iter().map(|answer| answer[name].as_i64().unwrap()).sum::<i64>();
    assert_eq!((sum("closed_sessions"), sum("expired_deliveries")), (20, 20));
    let expired =
        "select count(*) from public.message_delivery_log where status = 'expired' and next_attempt_at is null";
    assert_eq!(db.count(expired).await, 20);
    assert_eq!(db.count("select count(*) from public.alerts where kind = 'deliveries_expired'").await, 1);
}

#[tokio::test]
async fn a_sweep_that_meets_another_says_so() {
    let db = Db::new().await;
    let mut other = db.connect().await;
    let transaction = other.transaction().await.unwrap();
    transaction.execute("select public.sweep('{}')", &[]).await.unwrap();
    assert_eq!(db.rpc("sweep", json!({})).await, json!({"busy": true}));
    transaction.rollback().await.unwrap();
    assert_eq!(db.rpc("sweep", json!({})).await["due_deliveries"], 0);
}

#[tokio::test]
async fn a_sweep_whose_answer_was_lost_is_made_good_by_a_later_one() {
    let db = Db::new().await;
    left_behind(&db).await;
    let p = |ms: i64| json!({"limit": 1000, "lease_seconds": 60, "unknown_wait_seconds": 120, "call_grace_seconds": 60, "now": at_text(ms)});
    let lost = db.rpc("sweep", p(0)).await;
    let later = db.rpc("sweep", p(11 * 60_000)).await;
    for name in ["jobs", "notify", "turns"] {
        assert_eq!(
            later[name].as_array().unwrap().len(),
            lost[name].as_array().unwrap().len(),
            "{name} is offered again"
        );
    }
    assert_eq!((&later["closed_sessions"], &later["expired_deliveries"]), (&json!(0), &json!(0)));
    let ids: Vec<&Value> = later["jobs"].as_array().unwrap().iter().map(|job| &job["id"]).collect();
    assert_eq!(db.rpc("complete_jobs", json!({"ids": ids})).await["completed"], 20);
    assert_eq!(db.rpc("complete_jobs", json!({"ids": ids})).await["completed"], 0);
    assert_eq!(db.rpc("sweep", p(60 * 60_000)).await["jobs"], json!([]));
}

#[tokio::test]
async fn everything_at_once_about_a_few_people_never_locks_up() {
    let db = Db::new().await;
    // The sweep also compares with the time that rows were really written at.
    let start = chrono::Utc::now();
    let at_text = |ms: i64| (start + chrono::TimeDelta::milliseconds(ms)).to_rfc3339();
    let people: Vec<String> = (0..3).map(|_| phone()).collect();
    let refused = together(&db, 16, 40, async |client, n| {
        let from = &people[n as usize % people.len()];
        let now = i64::from(n) * 3_000;
        let mut refused = Vec::new();
        let mut call = async |name: &str, p: Value| match try_rpc(client, name, p).await {
            Ok(answer) => answer,
            Err(refusal) => {
                refused.push(format!("{name}: {} {}", refusal.code, refusal.message));
                Value::Null
            }
        };
        let turn = call("begin_sms_turn", with(message(&format!("m-{n}"), from, n, 0), json!({"now": at_text(now)}))).await;
        if turn["decision"] == "go" {
            let deliveries: Vec<Value> = [("sms", "mtn"), ("whatsapp", "whatsapp")]
                .iter()
                .map(|(channel, provider)| {
                    let outcome = ["accepted", "unknown", "permanent", "retryable"][(n as usize / 7) % 4];
                    let attempt = with(attempt(outcome, 0), json!({"started_at": at_text(now), "finished_at": at_text(now), "attempt": turn["attempt"], "provider_message_id": format!("{provider}-{n}")}));
                    json!({"id": turn["delivery_ids"][channel], "channel": channel, "provider": provider, "recipient": from, "purpose": "reply",
                           "content": "text", "deadline_at": at_text(now + 1_800_000),
                           "attempt": with(attempt, json!({"next_attempt_at": at_text(now + 1000)}))})
                })
                .collect();
            let events = |status: &str| -> Value {
                let event = |d: &Value| json!({"provider": d["provider"], "delivery_ref": d["id"], "status": status, "occurred_at": at_text(now)});
                json!({"correlation_id": "r", "events": deliveries.iter().rev().map(event).collect::<Vec<_>>(), "now": at_text(now)})
            };
            call("record_delivery_events", events("sent")).await;
            let reply = json!({"content": "a", "source": "model", "renditions": {"sms": {"text": "a"}, "whatsapp": {"kind": "text", "text": "a"}}});
            let p = json!({"turn_id": turn["turn_id"], "lease_token": token(n), "outcome": "answered", "reply": reply, "deliveries": deliveries,
                           "now": at_text(now)});
            call("finish_sms_turn", p).await;
            call("record_delivery_events", events(["delivered", "failed", "read"][n as usize % 3])).await;
        }
        match n % 4 {
            0 => {
                call("sweep", json!({"limit": 50, "now": at_text(now)})).await;
            }
            1 => {
                let due = call("claim_due_deliveries", json!({"lease_token": token(n), "limit": 5, "now": at_text(now)})).await;
                let results: Vec<Value> = due["deliveries"]
                    .as_array()
                    .unwrap_or(&Vec::new())
                    .iter()
                    .map(|d| json!({"id": d["id"], "attempt": with(attempt("accepted", 0), json!({"started_at": at_text(now), "finished_at": at_text(now), "attempt": d["attempt"]}))}))
                    .collect();
                call("record_delivery_results", json!({"lease_token": token(n), "correlation_id": "d", "results": results, "now": at_text(now)})).await;
            }
            2 => {
                let keyword = ["stop", "start", "help"][(n as usize / 4) % 3];
                call("begin_sms_turn", with(message(&format!("k-{n}"), from, n + 100_000, 0), json!({"keyword": keyword, "now": at_text(now)}))).await;
            }
            _ => {
                let sql = "select public.get_or_create_session(id, 'voice') from public.profiles where phone_number = $1";
                if let Err(error) = client.query_opt(sql, &[from]).await {
                    refused.push(crate::support::refusal(&error).message);
                }
            }
        }
        refused
    })
    .await;
    let refused: Vec<String> = refused.into_iter().flatten().filter(|said| !said.contains("claim_not_held")).collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    let open = "select coalesce(max(c), 0)::bigint from (select count(*) as c from public.omnichannel_sessions where status in ('active', 'follow_up') group by profile_id) o";
    assert_eq!(db.count(open).await, 1);
}

#[tokio::test]
async fn a_sweep_comes_to_every_message_that_waits_however_many_there_are() {
    let db = Db::new().await;
    // Thirty people's messages were stored for holders that are gone, and no claim is ever made of the first ones.
    for n in 0..30 {
        let from = phone();
        rpc(&db.service, "begin_sms_turn", message(&format!("w-{n}"), &from, n + 1, 0)).await;
    }
    db.run("update public.conversation_messages set turn_id = null; delete from public.conversation_turns").await;
    let mut seen = HashSet::new();
    for minute in 0..3 {
        let now = chrono::Utc::now() + chrono::TimeDelta::minutes(5) + chrono::TimeDelta::seconds(60 * minute);
        let found = db.rpc("sweep", json!({"limit": 10, "now": now.to_rfc3339()})).await;
        let turns = found["turns"].as_array().unwrap();
        assert_eq!(turns.len(), 10, "minute {minute}");
        seen.extend(turns.iter().map(|turn| text(turn, "/session_id")));
    }
    assert_eq!(seen.len(), 30);
}
