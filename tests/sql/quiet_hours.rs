//! Quiet hours: when they begin and end where somebody is, and that what waits through them is sent after them.

use serde_json::{Value, json};

use crate::support::{Db, at, attempt, ended_call, phone, text, token, with};

/// Until when the default client's people are not to be woken at `now`.
async fn quiet(db: &Db, now: &str) -> String {
    let sql = format!(
        "select coalesce(to_char(private.quiet_until(private.default_client_id(), (select id from public.profiles limit 1), '{now}') at time zone 'UTC',
                'MM-DD HH24:MI'), '-')"
    );
    text(&db.value(&sql).await, "")
}

async fn client(db: &Db, terms: Value) {
    let settings = json!({ "quiet_hours": terms });
    db.run(&format!("update public.clients set settings = settings || '{settings}' where is_default")).await;
}

async fn person(db: &Db, terms: Value) {
    let preferences = json!({ "quiet_hours": terms });
    db.run(&format!("update public.profiles set notification_preferences = '{preferences}'")).await;
}

#[tokio::test]
async fn they_begin_and_end_to_the_minute_also_over_midnight() {
    let db = Db::new().await;
    db.run("insert into public.profiles (phone_number) values ('+250788123456')").await;
    assert_eq!(quiet(&db, "2030-01-01T22:00:00Z").await, "-", "off until somebody sets them");
    // Kigali is two hours ahead of UTC, always.
    client(&db, json!({"from": "21:00", "until": "07:00"})).await;
    for (now, until) in [
        ("2030-01-01T18:59:59.999Z", "-"),
        ("2030-01-01T19:00:00Z", "01-02 05:00"),
        ("2030-01-01T21:59:59Z", "01-02 05:00"),
        ("2030-01-01T22:00:00Z", "01-02 05:00"),
        ("2030-01-02T04:59:59.999Z", "01-02 05:00"),
        ("2030-01-02T05:00:00Z", "-"),
        ("2030-01-02T12:00:00Z", "-"),
        ("2030-12-31T20:00:00Z", "01-01 05:00"),
    ] {
        assert_eq!(quiet(&db, now).await, until, "{now}");
    }
    client(&db, json!({"from": "12:00", "until": "14:30"})).await;
    for (now, until) in [
        ("2030-01-01T09:59:59Z", "-"),
        ("2030-01-01T10:00:00Z", "01-01 12:30"),
        ("2030-01-01T12:29:59Z", "01-01 12:30"),
        ("2030-01-01T12:30:00Z", "-"),
        ("2030-01-01T22:00:00Z", "-"),
    ] {
        assert_eq!(quiet(&db, now).await, until, "{now}");
    }
    client(&db, json!({"from": "09:00", "until": "09:00"})).await;
    assert_eq!(quiet(&db, "2030-01-01T07:00:00Z").await, "-", "no time at all");
}

#[tokio::test]
async fn a_person_has_hours_and_a_zone_of_their_own() {
    let db = Db::new().await;
    db.run("insert into public.profiles (phone_number) values ('+33612345678')").await;
    client(&db, json!({"from": "21:00", "until": "07:00"})).await;
    person(&db, json!({"from": "22:00", "until": "08:00", "time_zone": "Europe/Paris"})).await;
    // One hour ahead of UTC in winter, two in summer; the clocks go forward on 31 March 2030.
    assert_eq!(quiet(&db, "2030-01-01T20:59:59Z").await, "-");
    assert_eq!(quiet(&db, "2030-01-01T21:00:00Z").await, "01-02 07:00");
    assert_eq!(quiet(&db, "2030-07-01T20:00:00Z").await, "07-02 06:00");
    assert_eq!(quiet(&db, "2030-03-30T22:30:00Z").await, "03-31 06:00", "an hour shorter");
    person(&db, json!(false)).await;
    assert_eq!(quiet(&db, "2030-01-01T22:00:00Z").await, "-", "at any time");
    for nonsense in
        [json!("night"), json!({"from": "25:00", "until": "07:00"}), json!({"from": "21:00"}), json!(null), json!([1])]
    {
        person(&db, nonsense.clone()).await;
        assert_eq!(quiet(&db, "2030-01-01T22:00:00Z").await, "01-02 05:00", "{nonsense} says nothing: the client's");
    }
    let nowhere = json!({"from": "21:00", "until": "07:00", "time_zone": "Mars/Olympus"});
    person(&db, nowhere.clone()).await;
    assert_eq!(quiet(&db, "2030-01-01T22:00:00Z").await, "01-02 05:00");
    let settings = json!({ "quiet_hours": nowhere });
    let refused =
        db.admin.batch_execute(&format!("update public.clients set settings = '{settings}'")).await.unwrap_err();
    assert_eq!(refused.as_db_error().unwrap().constraint(), Some("clients_quiet_hours_are_times"));
}

async fn begin(db: &Db, n: u32, now: &str, more: Value) -> Value {
    let call = ended_call(db, &phone(), -1000).await;
    let p = json!({"correlation_id": format!("q-{n}"), "call_ref": call, "lease_token": token(n), "now": now});
    db.rpc("begin_call_notification", with(p, more)).await
}

#[tokio::test]
async fn a_claim_says_until_when_it_is_quiet_and_that_it_is_urgent_also_after_a_crash() {
    let db = Db::new().await;
    client(&db, json!({"from": "21:00", "until": "07:00"})).await;
    let guards = async |n, now: &str, more| begin(&db, n, now, more).await["guards"].clone();
    let night = guards(1, "2030-01-01T20:00:00Z", json!({})).await;
    assert_eq!(night, json!({"refused": {}, "quiet_until": "2030-01-02T05:00:00+00:00", "urgent": false}));
    let day = guards(2, "2030-01-01T10:00:00Z", json!({})).await;
    assert_eq!(day, json!({"refused": {}, "quiet_until": null, "urgent": false}));
    let urgent = guards(3, "2030-01-01T20:00:00Z", json!({"urgent": true})).await;
    assert_eq!(urgent["urgent"], true);
    // Whoever takes it up knows only the call.
    let call = db.value("select call_id from public.call_notifications where urgent").await;
    let p =
        json!({"correlation_id": "later", "call_ref": call, "lease_token": token(4), "now": "2030-01-01T20:30:00Z"});
    assert_eq!(db.rpc("begin_call_notification", p).await["guards"]["urgent"], true);
}

#[tokio::test]
async fn a_retry_that_falls_into_the_night_waits_for_the_morning_and_an_answer_does_not() {
    let db = Db::new().await;
    client(&db, json!({"from": "10:01", "until": "11:00"})).await;
    // The tests' time is 08:00 UTC, 10:00 in Kigali.
    let finish = async |n: u32, more: Value, deadline: i64| {
        let claim = begin(&db, n, "2030-01-01T08:00:00Z", more).await;
        let attempt = with(attempt("retryable", 0), json!({"next_attempt_at": at(90_000)}));
        let sms = json!({"id": claim["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "recipient": claim["profile"]["phone_number"],
                         "purpose": "call_summary", "segments": 1, "payload": {"text": "hello"}, "deadline_at": at(deadline), "attempt": attempt});
        let p = json!({"notification_id": claim["notification_id"], "lease_token": token(n), "outcome": "done", "now": at(0), "deliveries": [sms]});
        db.rpc("finish_call_notification", p).await;
        text(&claim, "/delivery_ids/sms")
    };
    let waits = finish(1, json!({}), 86_400_000).await;
    let urgent = finish(2, json!({"urgent": true}), 86_400_000).await;
    let stale = finish(3, json!({}), 3_600_000).await;
    db.run(&format!(
        "insert into public.message_delivery_log (channel, provider, recipient, purpose, segments, next_attempt_at, deadline_at)
         values ('sms', 'mtn', '+250788123456', 'reply', 1, '{}', '{}')",
        at(90_000),
        at(1_800_000)
    ))
    .await;
    let due = db.rpc("claim_due_deliveries", json!({"lease_token": token(9), "now": at(90_000)})).await;
    let mut sent: Vec<String> = due["deliveries"].as_array().unwrap().iter().map(|d| text(d, "/purpose")).collect();
    sent.sort();
    assert_eq!(sent, ["call_summary", "reply"]);
    assert!(due["deliveries"].as_array().unwrap().iter().any(|d| d["id"] == urgent.as_str()));
    let row = async |id: &str| {
        let sql = format!(
            "select jsonb_build_array(status, suppress_reason, next_attempt_at >= '2030-01-01T09:00:00Z' and next_attempt_at < '2030-01-01T09:02:00Z')
               from public.message_delivery_log where id = '{id}'"
        );
        db.value(&sql).await
    };
    assert_eq!(row(&waits).await[2], true);
    assert_eq!(row(&stale).await, json!(["suppressed", "quiet_hours", null]), "it ends when the night does");
    let morning =
        db.rpc("claim_due_deliveries", json!({"lease_token": token(10), "now": "2030-01-01T09:02:00Z"})).await;
    assert!(morning["deliveries"].as_array().unwrap().iter().any(|d| d["id"] == waits.as_str()), "{morning}");
}
