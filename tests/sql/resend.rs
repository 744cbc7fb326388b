//! An operator has a summary sent once more: it goes out, the old messages stay as they were, and nothing comes twice by
//! accident.

use serde_json::{Value, json};

use crate::support::{Db, Refusal, at, at_text, attempt, ended_call, phone, text, token, with};

/// One notification: claimed by `n` at `ms`.
async fn begin(db: &Db, call: &str, n: u32, ms: i64) -> Value {
    let p = json!({"call_ref": call, "correlation_id": format!("c-{n}"), "lease_token": token(n), "lease_seconds": 60,
                   "unknown_wait_seconds": 120, "now": at_text(ms)});
    db.rpc("begin_call_notification", p).await
}

/// One SMS with `outcome`, and whatever else is known of the attempt.
async fn finish(db: &Db, claim: &Value, n: u32, ms: i64, outcome: &str, more: Value) -> Value {
    let delivery = json!({"id": claim["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "purpose": "call_summary",
                          "recipient": claim["profile"]["phone_number"], "content": format!("text {n}"), "deadline_at": at_text(ms + 86_400_000),
                          "attempt": with(attempt(outcome, ms), more)});
    let p = json!({"notification_id": claim["notification_id"], "lease_token": token(n), "correlation_id": format!("c-{n}"),
                   "outcome": "done", "message": {"content": format!("text {n}")}, "deliveries": [delivery], "now": at_text(ms)});
    db.rpc("finish_call_notification", p).await
}

async fn report(db: &Db, delivery_id: &Value, status: &str, ms: i64) {
    let event = json!({"provider": "mtn", "delivery_ref": delivery_id, "status": status, "occurred_at": at_text(ms)});
    db.rpc("record_delivery_events", json!({"correlation_id": "report", "events": [event], "now": at_text(ms)})).await;
}

async fn resend(db: &Db, call: &str, reason: &str, ms: i64) -> Result<Value, Refusal> {
    let call = uuid::Uuid::parse_str(call).unwrap();
    let sql = "select public.resend_call_notification($1, $2, $3)";
    match db.service.query_one(sql, &[&call, &reason, &at(ms)]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) => {
            let error = error.as_db_error().unwrap();
            Err(Refusal { code: error.code().code().to_owned(), message: error.message().to_owned() })
        }
    }
}

async fn deliveries(db: &Db, call: &str) -> Value {
    db.value(&format!(
        "select coalesce(jsonb_agg(jsonb_build_array(content, status, possible_duplicate, correlation_id) order by queued_at), '[]')
           from public.message_delivery_log where call_id = '{call}'"
    ))
    .await
}

#[tokio::test]
async fn whoever_has_another_idle_time_says_so() {
    let db = Db::new().await;
    let call = ended_call(&db, &phone(), -1000).await;
    let first = begin(&db, &call, 1, 0).await;
    finish(&db, &first, 1, 1_000, "accepted", json!({})).await;
    let again = format!(
        "select public.resend_call_notification('{call}', 'lost', '{}', p_idle_hours => 1)",
        at_text(2 * 3_600_000)
    );
    db.value(&again).await;
    let session = format!("select session_id from public.call_notifications where call_id = '{call}'");
    assert_ne!(db.value(&session).await, first["session"]["id"], "two hours are long for a conversation here");
}

#[tokio::test]
async fn a_summary_is_sent_once_more_as_a_new_message_and_the_old_one_stays() {
    let db = Db::new().await;
    let call = ended_call(&db, &phone(), -1000).await;
    let first = begin(&db, &call, 1, 0).await;
    finish(&db, &first, 1, 1_000, "accepted", json!({})).await;
    report(&db, &first["delivery_ids"]["sms"], "sent", 2_000).await;

    let answer = resend(&db, &call, "  she deleted it ", 3_600_000).await.unwrap();
    let correlation = text(&answer, "/correlation_id");
    assert_eq!(answer["possible_duplicate"], true);
    // The next sweep puts it onto the queue, once.
    let found = db.rpc("sweep", json!({"now": at_text(3_600_001)})).await;
    assert_eq!(
        (found["notify"].as_array().unwrap().len(), text(&found, "/notify/0/correlation_id")),
        (1, correlation.clone())
    );

    let second = begin(&db, &call, 2, 3_601_000).await;
    assert_eq!(
        (&second["decision"], &second["attempt"], &second["already_sent"]),
        (&json!("go"), &json!(1), &json!([]))
    );
    assert_eq!(text(&second, "/correlation_id"), correlation);
    assert_ne!(first["delivery_ids"], second["delivery_ids"]);
    let told = finish(&db, &second, 2, 3_602_000, "accepted", json!({})).await;
    assert_eq!((&told["status"], told["deliveries"].as_array().unwrap().len()), (&json!("done"), 1));
    assert_eq!(begin(&db, &call, 3, 3_603_000).await["decision"], "duplicate", "once more is not for ever");

    // Reports find the message that they are about, late ones too.
    report(&db, &first["delivery_ids"]["sms"], "delivered", 3_700_000).await;
    assert_eq!(
        deliveries(&db, &call).await,
        json!([["text 1", "delivered", false, "c-1"], ["text 2", "sent", true, "c-2"]])
    );
    let messages = format!("select count(*) from public.conversation_messages where call_id = '{call}'");
    assert_eq!(db.count(&messages).await, 2);
    for id in ["c-1", correlation.as_str()] {
        let page = db.rpc("notification_status", json!({"correlation_id": id})).await;
        assert_eq!(text(&page, "/call_id"), call, "{page}");
    }

    // And it is known who wanted it, and why.
    let kept = "select jsonb_build_array(reason, requested_by, correlation_id, previous ->> 'status', previous ->> 'sms_delivery_id')
                  from public.call_notification_resends";
    assert_eq!(
        db.value(kept).await,
        json!(["she deleted it", "postgres", correlation, "done", first["delivery_ids"]["sms"]])
    );
    for change in
        ["update public.call_notification_resends set reason = 'x'", "delete from public.call_notification_resends"]
    {
        assert!(db.service.batch_execute(change).await.is_err(), "{change}");
    }

    // A third time works like the second.
    resend(&db, &call, "and lost it again", 7_200_000).await.unwrap();
    let third = begin(&db, &call, 4, 7_201_000).await;
    finish(&db, &third, 4, 7_202_000, "accepted", json!({})).await;
    assert_eq!(deliveries(&db, &call).await.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn work_that_crashed_twice_may_be_done_again_and_given_up_again() {
    let db = Db::new().await;
    let call = ended_call(&db, &phone(), -1000).await;
    let letters = format!("select count(*) from public.dead_letters where message_id like 'call:{call}%'");
    let mut now = 0;
    for (round, letters_then) in [(0, 1), (1, 2)] {
        for n in 1..=3 {
            now += 181_000;
            begin(&db, &call, round * 10 + n, now).await;
        }
        let status = format!("select status from public.call_notifications where call_id = '{call}'");
        assert_eq!(db.value(&status).await, "unknown");
        assert_eq!(db.count(&letters).await, letters_then);
        let answer = resend(&db, &call, "nobody heard of it", now).await.unwrap();
        assert_eq!(answer["possible_duplicate"], true, "nobody knows what was sent");
    }
    now += 1_000;
    let claim = begin(&db, &call, 30, now).await;
    finish(&db, &claim, 30, now, "accepted", json!({})).await;
    assert_eq!(deliveries(&db, &call).await, json!([["text 30", "sent", true, "c-30"]]));
    let open = format!(
        "select count(*) from public.dead_letters where message_id like 'call:{call}%' and replayed_at is null"
    );
    assert_eq!(db.count(&open).await, 0);
}

#[tokio::test]
async fn nothing_is_sent_again_while_something_is_on_its_way_or_without_a_reason() {
    let db = Db::new().await;
    let refused = async |call: &str, reason: &str, ms: i64| {
        let refusal = resend(&db, call, reason, ms).await.unwrap_err();
        format!("{} {}", refusal.code, refusal.message)
    };
    let call = ended_call(&db, &phone(), -1000).await;
    assert_eq!(refused(&call, " ", 0).await, "PT400 field reason is missing");
    assert_eq!(refused(&token(404), "x", 0).await, "PT404 call not found");
    assert_eq!(refused(&call, "x", 0).await, "PT404 notification not found");
    let claim = begin(&db, &call, 1, 0).await;
    assert_eq!(refused(&call, "x", 1_000).await, "PT409 notification_in_work");
    finish(&db, &claim, 1, 2_000, "retryable", json!({"next_attempt_at": at_text(60_000)})).await;
    assert_eq!(refused(&call, "x", 3_000).await, "PT409 delivery_pending", "it would come twice");
    let nobody = ended_call(&db, &phone(), -1000).await;
    db.run(&format!("update public.voice_calls set from_number = 'anonymous' where id = '{nobody}'")).await;
    assert_eq!(begin(&db, &nobody, 2, 0).await["decision"], "no_recipient");
    assert_eq!(refused(&nobody, "x", 1_000).await, "PT409 no_recipient");
    // Once the number is known it is an ordinary sending.
    db.run(&format!("update public.voice_calls set from_number = '{}' where id = '{nobody}'", phone())).await;
    assert_eq!(resend(&db, &nobody, "the trunk named her", 2_000).await.unwrap()["possible_duplicate"], false);
    let claim = begin(&db, &nobody, 3, 3_000).await;
    assert_eq!((&claim["decision"], &claim["possible_duplicate"]), (&json!("go"), &json!(false)));
    assert_eq!(
        db.count("select count(*) from public.call_notification_resends").await,
        1,
        "what was refused left nothing"
    );
}
