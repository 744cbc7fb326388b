//! What we send is limited a number and a group of numbers, as a small reference written from the comments of `send_limits`
//! counts: a message goes out when none of its counters is full, and only then it counts.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Db, all, at, at_text, check_cases, phone, rpc, text, token, with};

/// Per hour and day for a number, per hour and day for a group.
type Limits = [Option<i64>; 4];

/// The rows of a test: those of everybody, and of numbers that begin with +44.
async fn limit(db: &Db, digits: usize, everybody: Limits, with_44: Limits) {
    db.run("delete from public.send_limits; delete from public.rate_limits").await;
    for (prefix, limits) in [("", everybody), ("+44", with_44)] {
        let [number_hour, number_day, group_hour, group_day] =
            limits.map(|limit| limit.map_or("null".to_owned(), |limit| limit.to_string()));
        db.run(&format!(
            "insert into public.send_limits (prefix, group_digits, number_per_hour, number_per_day, group_per_hour, group_per_day)
             values ('{prefix}', {digits}, {number_hour}, {number_day}, {group_hour}, {group_day})"
        ))
        .await;
    }
}

#[derive(Default)]
struct Reference(HashMap<(String, i64), i64>);

impl Reference {
    /// Whether the message goes out at `ms` since the epoch.
    fn send(&mut self, limits: Limits, digits: usize, channel: &str, number: &str, ms: i64) -> bool {
        let group: String = number.chars().take(digits + 1).collect();
        let hour = ms.div_euclid(3_600_000);
        let day = ms.div_euclid(86_400_000);
        let mut counters = Vec::new();
        for (limit, of, window) in [
            (limits[0], format!("{channel} {number} hour"), hour),
            (limits[1], format!("{channel} {number} day"), day),
            (limits[2].filter(|_| channel == "sms"), format!("group {group} hour"), hour),
            (limits[3].filter(|_| channel == "sms"), format!("group {group} day"), day),
        ] {
            counters.extend(limit.map(|limit| (limit, (of, window))));
        }
        if counters.iter().any(|(limit, key)| self.0.get(key).copied().unwrap_or(0) >= *limit) {
            return false;
        }
        for (_, key) in counters {
            *self.0.entry(key).or_default() += 1;
        }
        true
    }
}

const NUMBERS: [&str; 5] = ["+447700900001", "+447700900002", "+447800900003", "+12025550104", "+12025550105"];

#[test]
fn messages_go_out_as_the_reference_says() {
    let some = || prop::option::of(0_i64..6);
    let limits = || (some(), some(), some(), some()).prop_map(|(a, b, c, d)| [a, b, c, d]);
    let sends = prop::collection::vec((0..NUMBERS.len(), any::<bool>(), 0_i64..2_000_000), 1..60);
    check_cases(30, (1_usize..12, limits(), limits(), sends), async |db, (digits, everybody, with_44, sends)| {
        limit(db, digits, everybody, with_44).await;
        let mut reference = Reference::default();
        let mut now = 0;
        // Two at a time, as a claim asks for both channels.
        for pair in sends.chunks(2) {
            now += pair.iter().map(|(_, _, pause)| pause).sum::<i64>();
            let mut wanted = Vec::new();
            let mut expected = BTreeMap::new();
            for (number, sms, _) in pair {
                let (number, channel) = (NUMBERS[*number], if *sms { "sms" } else { "whatsapp" });
                let id = Uuid::new_v4().to_string();
                let limits = if number.starts_with("+44") { with_44 } else { everybody };
                if !reference.send(limits, digits, channel, number, at(now).timestamp_millis()) {
                    expected.insert(id.clone(), "rate_limited");
                }
                // WhatsApp writes numbers without their plus.
                let number = if *sms { number } else { &number[1..] };
                wanted.push(json!({"id": id, "channel": channel, "number": number}));
            }
            let sql = format!("select private.take_send_limits('{}', '{}') -> 'refused'", json!(wanted), at(now));
            prop_assert_eq!(db.value(&sql).await, json!(expected), "{:?} at {}", wanted, now);
        }
        Ok(())
    });
}

async fn turn(db: &Db, n: u32, from: &str) -> Value {
    let p = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": format!("m-{n}"), "from": from, "to": "8080", "text": "hello",
                   "lease_token": token(n), "now": at_text(0)});
    let claim = db.rpc("begin_sms_turn", p).await;
    let finish = json!({"turn_id": claim["turn_id"], "lease_token": token(n), "outcome": "answered", "now": at_text(1), "deliveries": []});
    db.rpc("finish_sms_turn", finish).await;
    claim["guards"]["refused"].clone()
}

#[tokio::test]
async fn numbers_that_begin_alike_are_stopped_together_with_one_alert_a_window() {
    let db = Db::new().await;
    limit(&db, 6, [Some(9), None, Some(3), None], [Some(1), None, None, None]).await;
    for n in 0..6 {
        let refused = if n < 3 { json!({}) } else { json!({"sms": "rate_limited"}) };
        assert_eq!(turn(&db, n, &format!("+12025550{n:03}")).await, refused, "{n}");
    }
    assert_eq!(turn(&db, 10, "+33612345678").await, json!({}), "others are not held up");
    let alerts = "select jsonb_agg(jsonb_build_array(kind, severity, dedupe_key, occurrences, details ->> 'of')) from public.alerts";
    assert_eq!(
        db.value(alerts).await,
        json!([["send_limit", "warning", "send_limit:sms:+120255:2030-01-01T08:00:00+00:00", 3, "+120255"]])
    );
    // A number of its own: told without saying which.
    assert_eq!(turn(&db, 20, "+447700900001").await, json!({}));
    assert_eq!(
        turn(&db, 21, "+447700900001").await,
        json!({"sms": "rate_limited", "whatsapp": "rate_limited"}),
        "an answer may be mirrored there"
    );
    let said = db.value("select jsonb_agg(a)::text from public.alerts a where dedupe_key like '%number%'").await;
    assert!(text(&said, "").contains("\"of\": \"number\"") && !text(&said, "").contains("7700900001"), "{said}");
    let buckets = db.value("select string_agg(bucket, ' ') from public.rate_limits where bucket like 'sent:%'").await;
    assert!(!text(&buckets, "").contains("7700900001"), "{buckets}");
}

#[tokio::test]
async fn a_stop_is_confirmed_over_every_limit() {
    let db = Db::new().await;
    limit(&db, 6, [Some(0), None, None, None], [None; 4]).await;
    let p = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": "stop", "from": phone(), "to": "8080", "text": "STOP",
                   "keyword": "stop", "lease_token": token(1), "now": at_text(0)});
    assert_eq!(db.rpc("begin_sms_turn", p).await["guards"]["refused"], json!({}));
}

#[tokio::test]
async fn the_same_claim_counts_once_and_old_permits_go() {
    let db = Db::new().await;
    limit(&db, 6, [Some(1), None, None, None], [None; 4]).await;
    let p = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": "m", "from": "+250788123456", "to": "8080", "text": "hello",
                   "lease_token": token(1), "now": at_text(0)});
    for _ in 0..3 {
        assert_eq!(db.rpc("begin_sms_turn", p.clone()).await["guards"]["refused"], json!({}));
    }
    assert_eq!(db.count("select count(*) from public.send_permits").await, 2, "one a channel");
    let later = json!({"correlation_id": "d", "provider": "mtn", "provider_message_id": "n", "from": "+250788123457", "to": "8080", "text": "hello",
                       "lease_token": token(2), "now": at_text(4 * 86_400_000)});
    db.rpc("begin_sms_turn", later).await;
    assert_eq!(db.count("select count(*) from public.send_permits").await, 2, "those of the first are gone");
}

#[tokio::test]
async fn many_at_once_send_no_more_than_a_group_may_and_nobody_waits_in_a_circle() {
    let db = Db::new().await;
    limit(&db, 6, [None, Some(40), Some(70), None], [None; 4]).await;
    // Messages of several groups that are due, beside turns of the same numbers.
    for n in 0..60 {
        db.run(&format!(
            "insert into public.message_delivery_log (channel, provider, recipient, segments, next_attempt_at, deadline_at)
             values ('sms', 'mtn', '+1202555{:04}', 1, '{at}', '{until}'), ('sms', 'mtn', '+3361234{:04}', 1, '{at}', '{until}')",
            n % 7,
            n % 5,
            at = at_text(0),
            until = at_text(3_600_000),
        ))
        .await;
    }
    let here = &db;
    let worker = |worker: u32| async move {
        let client = here.connect().await;
        let mut sent = BTreeMap::<String, usize>::new();
        for n in 0..12 {
            let k = worker * 100 + n;
            let from =
                if k.is_multiple_of(2) { format!("+1202555{:04}", k % 7) } else { format!("+3361234{:04}", k % 5) };
            let p = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": format!("p-{k}"), "from": from, "to": "8080",
                           "text": "hello", "lease_token": token(k), "now": at_text(0)});
            let claim = rpc(&client, "begin_sms_turn", p).await;
            if claim["decision"] == "go" {
                if claim["guards"]["refused"] == json!({}) {
                    *sent.entry(from[..7].to_owned()).or_default() += 1;
                }
                let finish = json!({"turn_id": claim["turn_id"], "lease_token": token(k), "outcome": "answered", "now": at_text(1), "deliveries": []});
                rpc(&client, "finish_sms_turn", finish).await;
            }
            let p = json!({"lease_token": token(10_000 + k), "limit": 3, "now": at_text(1000)});
            let due = rpc(&client, "claim_due_deliveries", p).await;
            for delivery in due["deliveries"].as_array().unwrap() {
                *sent.entry(text(delivery, "/recipient")[..7].to_owned()).or_default() += 1;
            }
        }
        sent
    };
    let mut sent = BTreeMap::<String, usize>::new();
    for (group, count) in all((0..10).map(worker)).await.into_iter().flatten() {
        *sent.entry(group).or_default() += count;
    }
    let left = db.count("select count(*) from public.message_delivery_log where status = 'queued'").await;
    assert_eq!(left, 0, "all that was due was claimed or kept back");
    assert!(sent.values().all(|count| *count <= 70), "{sent:?}");
    assert_eq!(sent.values().copied().max(), Some(70), "the limit is used: {sent:?}");
}

/// What comes from the queue: an SMS of `from`, with what the edge said of it.
async fn written(db: &Db, n: u32, id: &str, from: &str, more: Value) -> Value {
    let p = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": id, "from": from, "to": "8080", "text": "hello",
                   "lease_token": token(n), "now": at_text(i64::from(n))});
    db.rpc("begin_sms_turn", with(p, more)).await
}

fn over(what: &str) -> Value {
    json!({ "over_limit": what })
}

#[tokio::test]
async fn what_the_edge_found_too_much_is_kept_without_an_answer_and_told_once_an_hour() {
    let db = Db::new().await;
    let limited = json!({"decision": "rate_limited"});
    for n in 0..3 {
        let from = format!("+44770090000{n}");
        assert_eq!(written(&db, n, &format!("m-{n}"), &from, over("prefix")).await, limited);
    }
    assert_eq!(written(&db, 3, "m-3", "+250788123456", over("sender")).await, limited);
    let kept = db
        .value(
            "select jsonb_agg(distinct jsonb_build_array(content, handled_as, routing)) from public.conversation_messages where direction = 'inbound'",
        )
        .await;
    let said = |reason: &str| json!({"channels": [], "reasons": [reason], "suppressed": [{"channel": "sms", "reason": "rate_limited"}]});
    let row = |reason: &str| json!(["hello", "rate_limited", said(reason)]);
    assert_eq!(kept, json!([row("edge_prefix_limit"), row("edge_sender_limit")]));
    assert_eq!(db.count("select count(*) from public.message_delivery_log where direction = 'inbound'").await, 4);
    assert_eq!(db.count("select count(*) from public.conversation_turns").await, 0, "nobody is asked");
    let alerts =
        "select jsonb_agg(jsonb_build_array(kind, dedupe_key, occurrences) order by occurrences) from public.alerts";
    assert_eq!(
        db.value(alerts).await,
        json!([
            ["inbound_flood", "inbound_flood:sms:sender:2030-01-01T08", 1],
            ["inbound_flood", "inbound_flood:sms:+447700:2030-01-01T08", 3],
        ])
    );
    // Beside the flood, and behind it, people are answered; they are shown what they wrote before.
    assert_eq!(written(&db, 4, "m-4", "+447700900009", json!({})).await["decision"], "go");
    let next = written(&db, 5, "m-5", "+250788123456", json!({})).await;
    assert_eq!((&next["messages"].as_array().unwrap().len(), &next["history"][0]["text"]), (&1, &json!("hello")));
}

#[tokio::test]
async fn a_stop_is_obeyed_in_any_flood_and_confirmed_where_nobody_is_paid_for_it() {
    let db = Db::new().await;
    let (alone, many, chat) = ("+250788123456", "+447700900001", "+447700900002");
    for (n, from) in [(1, alone), (2, many), (3, chat)] {
        written(&db, n, &format!("before-{n}"), from, json!({})).await;
    }
    let stop = |over: &str| json!({"text": "STOP", "keyword": "stop", "over_limit": over});
    let confirmed = written(&db, 4, "m-4", alone, stop("sender")).await;
    assert_eq!((&confirmed["decision"], &confirmed["keyword"]), (&json!("go"), &json!("stop")));
    assert_eq!(written(&db, 5, "m-5", many, stop("prefix")).await, json!({"decision": "rate_limited"}));
    let on_whatsapp = with(stop("prefix"), json!({"channel": "whatsapp", "provider": "whatsapp", "to": "1022"}));
    assert_eq!(written(&db, 6, "m-6", chat, on_whatsapp).await["keyword"], "stop", "an answer there costs nothing");
    let silent = "select jsonb_agg(not allows_sms or notification_preferences ->> 'allows_whatsapp' = 'false') from public.profiles";
    assert_eq!(db.value(silent).await, json!([true, true, true]));
}

#[tokio::test]
async fn of_copies_the_one_within_the_limit_is_answered_whichever_comes_first() {
    let db = Db::new().await;
    let from = "+250788123456";
    let decision = async |n, id: &str, more| text(&written(&db, n, id, from, more).await, "/decision");
    assert_eq!(decision(1, "m", over("sender")).await, "rate_limited");
    assert_eq!(decision(2, "m", over("sender")).await, "duplicate");
    assert_eq!(decision(3, "m", json!({})).await, "go");
    assert_eq!(decision(4, "m", json!({})).await, "duplicate", "it is being answered");
    assert_eq!(decision(5, "m", over("sender")).await, "duplicate");
    assert_eq!(db.count("select count(*) from public.conversation_turns").await, 1);
    // A copy that comes long after is a repetition, and nothing to answer any more.
    assert_eq!(decision(6, "late", over("sender")).await, "rate_limited");
    assert_eq!(decision(600_007, "late", json!({})).await, "duplicate");
    // What the database itself refused stays refused.
    let own = json!({"rate_limit_per_hour": 0});
    assert_eq!(decision(7, "own", own).await, "rate_limited");
    assert_eq!(decision(8, "own", json!({})).await, "duplicate");
}
