//! Which channel carries a summary, as people and clients want it: SMS after WhatsApp, the cheaper one.

use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::{SOON, Stage, Told};

/// Only what a test reports is reported.
async fn stage() -> Stage {
    let stage = Stage::shared("channel_policy", WorldConfig::default).await;
    stage.mtn().set_reports(ihuza_sim::mtn::Reports::never());
    stage.whatsapp().set_statuses(ihuza_sim::whatsapp::Statuses::never());
    stage
}

/// Tells of a call of somebody who wants it so.
async fn told(stage: &Stage, seed: &CallSeed, phone: &str, preferences: Value) -> Told {
    let call = stage.seed_call(seed).await.unwrap();
    stage.prefers(phone, &preferences).await;
    let told = stage.ask(&call).await;
    stage.done(&told).await;
    told
}

async fn told_then_sms(stage: &Stage, phone: &str) -> Told {
    let wish = json!({"policy": "whatsapp_then_sms", "after": 600});
    let told = told(stage, &CallSeed::new(phone).on_whatsapp_now(), phone, wish).await;
    stage.delivered(phone, "sms queued 0, whatsapp sent 1").await;
    told
}

fn status(stage: &Stage, phone: &str, status: &str) -> Value {
    let sent = stage.whatsapp().messages_to(phone).remove(0);
    let mut report = json!({"id": sent.wamid, "status": status, "timestamp": chrono::Utc::now().timestamp().to_string(),
                            "recipient_id": phone.trim_start_matches('+'), "biz_opaque_callback_data": sent.biz_opaque_callback_data});
    if status == "failed" {
        report["errors"] = json!([{"code": 131026, "title": "Message undeliverable"}]);
    }
    report
}

/// The ten minutes have passed.
async fn time_passes(stage: &Stage, phone: &str) {
    let due =
        "update message_delivery_log set next_attempt_at = now() where recipient = $1 and next_attempt_at is not null";
    stage.execute(due, &[&phone]).await.unwrap();
    stage.cron().await.unwrap();
}

/// What the log says was decided, and why.
async fn routing(stage: &Stage, told: &Told) -> Value {
    let find = async || {
        let mut story = stage.story(&told.correlation_id).into_iter();
        Ok(story.find(|line| line["event"] == "DUAL_CHANNEL_ROUTING"))
    };
    stage.wait_for("the line about the channels", SOON, find).await.unwrap()
}

#[tokio::test]
async fn no_sms_where_whatsapp_delivers_in_time() {
    let stage = stage().await;
    let phone = stage.stranger();
    let told = told_then_sms(&stage, &phone).await;
    let line = routing(&stage, &told).await;
    assert_eq!(line["reasons"], json!(["service_window_open", "sms_waits_for_whatsapp"]));
    assert_eq!(line["sms_waits"], json!({"after": 600, "until": "delivered"}));
    let waits = "select extract(epoch from next_attempt_at - queued_at) between 590 and 610 from message_delivery_log
                  where recipient = '{phone}' and channel = 'sms'";
    assert_eq!(stage.value(&waits.replace("{phone}", &phone)).await, true);
    stage.cron().await.unwrap();
    stage.delivered(&phone, "sms queued 0, whatsapp sent 1").await;
    stage.whatsapp().report(vec![status(&stage, &phone, "delivered")]).await.unwrap();
    stage.delivered(&phone, "sms suppressed 0, whatsapp delivered 1").await;
    let reason =
        format!("select suppress_reason from message_delivery_log where recipient = '{phone}' and channel = 'sms'");
    assert_eq!(stage.value(&reason).await, "whatsapp_reached");
    time_passes(&stage, &phone).await;
    stage.delivered(&phone, "sms suppressed 0, whatsapp delivered 1").await;
    assert!(stage.mtn().messages_to(&phone).is_empty(), "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn the_sms_goes_when_its_time_has_come_and_whatsapp_has_not_delivered() {
    let stage = stage().await;
    let phone = stage.stranger();
    told_then_sms(&stage, &phone).await;
    time_passes(&stage, &phone).await;
    stage.delivered(&phone, "sms sent 1, whatsapp sent 1").await;
    assert!(stage.sms_to(&phone, 1).await.contains("EasyMO"));
    stage.whatsapp().report(vec![status(&stage, &phone, "delivered")]).await.unwrap();
    stage.delivered(&phone, "sms sent 1, whatsapp delivered 1").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1);
}

#[tokio::test]
async fn the_sms_goes_at_once_and_once_when_a_status_says_that_whatsapp_failed() {
    let stage = stage().await;
    let phone = stage.stranger();
    told_then_sms(&stage, &phone).await;
    for _ in 0..3 {
        stage.whatsapp().report(vec![status(&stage, &phone, "failed")]).await.unwrap();
    }
    // Nobody waits for the sweep.
    stage.delivered(&phone, "sms sent 1, whatsapp undeliverable 1").await;
    time_passes(&stage, &phone).await;
    stage.delivered(&phone, "sms sent 1, whatsapp undeliverable 1").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1, "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn the_sms_goes_at_once_when_whatsapp_refuses_the_message() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.whatsapp().not_on_whatsapp(&phone, ihuza_sim::whatsapp::Refused::AtOnce);
    let wish = json!({"policy": "whatsapp_then_sms"});
    told(&stage, &CallSeed::new(&phone).on_whatsapp_now(), &phone, wish).await;
    stage.delivered(&phone, "sms sent 1, whatsapp undeliverable 1").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1, "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn the_cheaper_channel_carries_the_summary_alone() {
    let stage = stage().await;
    let prices = "insert into channel_prices (provider, kind, prefix, price, currency, valid_from) values
                    ('mtn', 'segment', '+250', 12, 'RWF', '2026-01-01'), ('whatsapp', 'utility', '+250', 90, 'RWF', '2026-01-01')
                  on conflict do nothing";
    stage.execute(prices, &[]).await.unwrap();
    let wish = || json!({"policy": "cheapest"});
    let in_window = stage.stranger();
    let told_there = told(&stage, &CallSeed::new(&in_window).on_whatsapp_now(), &in_window, wish()).await;
    stage.delivered(&in_window, "whatsapp sent 1").await;
    assert_eq!(routing(&stage, &told_there).await["reasons"][0], "whatsapp_is_free");
    let outside = stage.stranger();
    let told_by_sms = told(&stage, &CallSeed::new(&outside).has_whatsapp(true), &outside, wish()).await;
    stage.delivered(&outside, "sms sent 1").await;
    assert_eq!(routing(&stage, &told_by_sms).await["reasons"], json!(["sms_is_cheaper", "policy_cheapest", "sms"]));
}

#[tokio::test]
async fn a_policy_that_nobody_understands_is_the_clients_and_told_in_the_log() {
    let stage = stage().await;
    let phone = stage.stranger();
    let wish = json!({"policy": "by smoke", "after": -1});
    let told = told(&stage, &CallSeed::new(&phone).on_whatsapp_now(), &phone, wish).await;
    stage.delivered(&phone, "sms sent 1, whatsapp sent 1").await;
    assert_eq!(routing(&stage, &told).await["reasons"], json!(["policy_not_understood", "service_window_open", "sms"]));
}

/// What Meta says of the summary's template in French, through the webhook.
async fn meta_says(stage: &Stage, field: &str, said: Value) {
    let mut value = json!({"message_template_id": 1, "message_template_name": "call_summary_v1", "message_template_language": "fr"});
    value.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
    let posted = stage.whatsapp().post(json!([{"field": field, "value": value}])).await.unwrap();
    assert_eq!((posted.status, &posted.json()["templates"]), (Some(200), &json!(1)), "{}", posted.answer);
}

/// A French summary outside the window: over what it went, and by which template.
async fn french_summary(stage: &Stage) -> (String, Value) {
    let phone = stage.stranger();
    let seed = CallSeed::new(&phone).has_whatsapp(true).locale("fr").summary("Une maison", &["Deux chambres"], None);
    told(stage, &seed, &phone, json!({"policy": "whatsapp_only"})).await;
    let form = "select m.routing -> 'whatsapp_form' as form from conversation_messages m join profiles p on p.id = m.profile_id
                 where p.phone_number = '{phone}' and m.kind = 'call_summary'";
    (stage.deliveries(&phone).await, stage.value(&form.replace("{phone}", &phone)).await)
}

#[tokio::test]
async fn a_template_that_meta_pauses_is_not_chosen_and_one_that_it_files_elsewhere_raises_an_alert() {
    let stage = stage().await;
    let form =
        |category: &str| json!({"kind": "template", "name": "call_summary_v1", "language": "fr", "category": category});
    let by_whatsapp = |category: &str| ("whatsapp sent 1".to_owned(), form(category));
    assert_eq!(french_summary(&stage).await, by_whatsapp("utility"), "as the setting says");
    let is =
        |what: &str| format!("select {what} from message_templates where name = 'call_summary_v1' and language = 'fr'");
    meta_says(&stage, "message_template_status_update", json!({"event": "PAUSED", "reason": "NONE"})).await;
    stage.until(&is("status = 'paused'")).await;
    assert_eq!(stage.count("alerts where kind = 'template_status' and resolved_at is null").await, 1);
    assert_eq!(french_summary(&stage).await, ("sms sent 1".to_owned(), Value::Null));
    meta_says(&stage, "message_template_status_update", json!({"event": "APPROVED"})).await;
    stage.until(&is("status = 'approved'")).await;
    let moved = json!({"previous_category": "UTILITY", "new_category": "MARKETING"});
    meta_says(&stage, "template_category_update", moved.clone()).await;
    meta_says(&stage, "template_category_update", moved).await;
    meta_says(&stage, "message_template_quality_update", json!({"new_quality_score": "YELLOW"})).await;
    stage.until(&is("category = 'marketing' and previous_category = 'utility' and quality = 'yellow'")).await;
    assert_eq!(stage.count("alerts where kind = 'template_category' and resolved_at is null").await, 1);
    assert_eq!(stage.count("alerts where kind = 'template_status' and resolved_at is null").await, 0);
    assert_eq!(french_summary(&stage).await, by_whatsapp("marketing"));
}
