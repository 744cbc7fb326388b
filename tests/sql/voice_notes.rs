//! Voice notes: one listens at a time, three times at most, and what it costs is kept.

use serde_json::{Value, json};

use crate::support::{Db, at_text, text, token, unique, with};

fn begin(wamid: &str, n: u32, ms: i64) -> Value {
    json!({"provider": "whatsapp", "provider_message_id": wamid, "to": "118", "mime_type": "audio/ogg", "lease_token": token(n),
           "correlation_id": "corr", "now": at_text(ms)})
}

fn finish(wamid: &str, n: u32, ms: i64, outcome: &str) -> Value {
    json!({"provider": "whatsapp", "provider_message_id": wamid, "lease_token": token(n), "outcome": outcome, "now": at_text(ms)})
}

async fn decision(db: &Db, wamid: &str, n: u32, ms: i64) -> String {
    text(&db.rpc("begin_voice_note", begin(wamid, n, ms)).await, "/decision")
}

async fn note(db: &Db) -> Value {
    db.value("select jsonb_build_array(status, attempts, seconds, trim_scale(cost), cost_currency, lease_token) from public.voice_notes").await
}

#[tokio::test]
async fn one_listens_and_the_others_wait_until_its_lease_is_over() {
    let db = Db::new().await;
    let wamid = format!("wamid.{}", unique());
    assert_eq!(decision(&db, &wamid, 1, 0).await, "go");
    assert_eq!(decision(&db, &wamid, 1, 500).await, "go", "asked again under the same token it is the same attempt");
    let waits = db.rpc("begin_voice_note", begin(&wamid, 2, 1_000)).await;
    assert_eq!((text(&waits, "/decision"), &waits["retry_after_s"]), ("busy".into(), &json!(120)));
    // The holder is gone.
    assert_eq!(decision(&db, &wamid, 2, 121_000).await, "go");
    let told = json!({"model": "gpt-transcribe", "usage": {"type": "duration", "seconds": 39.2}, "providers": [{"provider": "openai", "outcome": "accepted"}]});
    // Whose lease is over says nothing any more.
    db.rpc("finish_voice_note", with(finish(&wamid, 1, 122_000, "failed"), told.clone())).await;
    assert_eq!(note(&db).await.get(0), Some(&json!("pending")));
    db.rpc("finish_voice_note", with(finish(&wamid, 2, 123_000, "transcribed"), told)).await;
    assert_eq!(note(&db).await, json!(["transcribed", 2, 40, 0.003, "USD", null]));
    // A copy that comes before the conversation has the words is not listened to again; the holder may have died meanwhile.
    assert_eq!(decision(&db, &wamid, 4, 124_000).await, "busy");
    assert_eq!(note(&db).await.get(1), Some(&json!(2)));
    // Nothing in it names the person: a WhatsApp id spells the number.
    assert_eq!(
        db.value("select to_jsonb(n)::text like '%' || $$wamid$$ || '%' from public.voice_notes n").await,
        json!(false)
    );
    let message = json!({"channel": "whatsapp", "provider": "whatsapp", "provider_message_id": wamid, "from": "+250788123456", "to": "118",
                         "text": "[voice message] Muraho", "correlation_id": "corr", "lease_token": token(3), "now": at_text(124_000)});
    db.rpc("begin_sms_turn", message).await;
    assert_eq!(decision(&db, &wamid, 4, 125_000).await, "known");
}

#[tokio::test]
async fn who_heard_it_and_died_is_followed_by_another() {
    let db = Db::new().await;
    let wamid = format!("wamid.{}", unique());
    assert_eq!(decision(&db, &wamid, 1, 0).await, "go");
    db.rpc("finish_voice_note", finish(&wamid, 1, 1_000, "transcribed")).await;
    let waits = db.rpc("begin_voice_note", begin(&wamid, 2, 2_000)).await;
    assert_eq!((text(&waits, "/decision"), &waits["retry_after_s"]), ("busy".into(), &json!(19)));
    assert_eq!(decision(&db, &wamid, 2, 21_001).await, "go");
}

#[tokio::test]
async fn it_is_tried_three_times_and_each_charged_attempt_is_counted() {
    let db = Db::new().await;
    let wamid = format!("wamid.{}", unique());
    for n in 1..=3 {
        assert_eq!(decision(&db, &wamid, n, i64::from(n) * 1_000).await, "go");
        let told = json!({"model": "gpt-transcribe", "usage": {"type": "duration", "seconds": 10}, "error_class": "retryable", "error_reason": "rate_limited"});
        db.rpc("finish_voice_note", with(finish(&wamid, n, i64::from(n) * 1_000 + 500, "again"), told)).await;
    }
    assert_eq!(decision(&db, &wamid, 4, 5_000).await, "given_up");
    assert_eq!(note(&db).await, json!(["failed", 3, 30, 0.00225, "USD", null]));
    // A model without a price costs nothing that we know of.
    let other = format!("wamid.{}", unique());
    assert_eq!(decision(&db, &other, 5, 6_000).await, "go");
    db.rpc(
        "finish_voice_note",
        with(
            finish(&other, 5, 7_000, "transcribed"),
            json!({"model": "new", "usage": {"type": "duration", "seconds": 4}}),
        ),
    )
    .await;
    assert_eq!(
        db.value("select jsonb_build_array(seconds, cost, cost_currency) from public.voice_notes where status = 'transcribed'").await,
        json!([4, null, null])
    );
}

#[tokio::test]
async fn during_a_pause_of_the_model_nobody_listens() {
    let db = Db::new().await;
    let wamid = format!("wamid.{}", unique());
    let until = at_text(30_000);
    db.run(&format!(
        "update public.provider_health set state = 'open', reason = 'failures', open_until = '{until}' where provider = 'openai'"
    ))
    .await;
    let waits = db.rpc("begin_voice_note", begin(&wamid, 1, 10_000)).await;
    assert_eq!((text(&waits, "/decision"), &waits["retry_after_s"]), ("busy".into(), &json!(20)));
    // The pause is over, and this is the one that tries.
    assert_eq!(decision(&db, &wamid, 1, 31_000).await, "go");
    assert_eq!(decision(&db, &format!("{wamid}2"), 2, 31_000).await, "busy");
    let told = json!({"model": "gpt-transcribe", "usage": {"type": "duration", "seconds": 1}, "providers": [{"provider": "openai", "outcome": "accepted"}]});
    db.rpc("finish_voice_note", with(finish(&wamid, 1, 32_000, "transcribed"), told)).await;
    assert_eq!(
        db.value("select to_jsonb(state) from public.provider_health where provider = 'openai'").await,
        "closed"
    );
}
