//! Delivery reports: early, late, twice, in any order. A status never goes backwards.

use std::time::Duration;

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::whatsapp::Refused;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::{SOON, Stage};

async fn stage() -> Stage {
    Stage::shared("reports", WorldConfig::default).await
}

/// Only what a test reports is reported.
fn silent() -> WorldConfig {
    WorldConfig::default()
}

async fn silent_stage() -> Stage {
    let stage = Stage::shared("silent", silent).await;
    stage.mtn().set_reports(ihuza_sim::mtn::Reports::never());
    stage.whatsapp().set_statuses(ihuza_sim::whatsapp::Statuses::never());
    stage
}

fn dlr(reference: &str, status: &str) -> Value {
    json!({"clientCorrelatorId": reference, "deliveryStatus": status, "error": "000", "senderAddress": "EasyMO",
           "completedDate": "2026-11-21T04:00:07"})
}

/// The delivery of the person on a channel.
async fn delivery(stage: &Stage, phone: &str, channel: &str) -> (String, String) {
    let row = stage
        .row(&format!(
            "select id, status from message_delivery_log where recipient = '{phone}' and channel = '{channel}' and direction = 'outbound'"
        ))
        .await;
    (row["id"].as_str().unwrap().to_owned(), row["status"].as_str().unwrap().to_owned())
}

/// Waits until so many events of the provider are with the delivery.
async fn events(stage: &Stage, id: &str, count: usize) {
    stage
        .until(&format!(
            "select count(*) = {count} from message_status_events where delivery_id = '{id}' and source = 'provider'"
        ))
        .await;
}

#[tokio::test]
async fn a_report_may_come_before_the_answer_to_the_request() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.mtn().fail_with(Fault::EarlyReport).on(&phone);
    stage.whatsapp().fail_with(Fault::EarlyReport).on(&phone);
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
}

#[tokio::test]
async fn a_report_of_delivery_may_come_before_the_message_is_recorded() {
    let stage = stage().await;
    let phone = stage.stranger();
    // The recording waits for the slower channel; the faster one is reported as delivered meanwhile.
    stage.whatsapp().fail_with(Fault::Slow).on(&phone).delay(Duration::from_secs(2));
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
    let (id, _) = delivery(&stage, &phone, "sms").await;
    let early = format!(
        "select bool_or(e.created_at < l.created_at) as early from message_status_events e join message_delivery_log l on l.id = e.delivery_id
          where l.id = '{id}' and e.source = 'provider'"
    );
    assert_eq!(stage.value(&early).await, true, "the case this test is about did not occur");
}

#[tokio::test]
async fn reports_may_come_twice_and_in_the_wrong_order() {
    let stage = stage().await;
    for fault in [Fault::Duplicate, Fault::Reorder] {
        let phone = stage.stranger();
        stage.mtn().fail_with(fault).on(&phone);
        stage.whatsapp().fail_with(fault).on(&phone);
        stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
        stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
        for channel in ["sms", "whatsapp"] {
            let (id, _) = delivery(&stage, &phone, channel).await;
            events(&stage, &id, 2).await;
        }
    }
}

#[tokio::test]
async fn an_sms_status_never_goes_backwards() {
    let stage = silent_stage().await;
    let orders: [(&[&str], &str); 6] = [
        (&["ACCEPTD", "DELIVERED"], "delivered"),
        (&["DELIVERED", "ACCEPTD"], "delivered"),
        (&["DELIVERED", "UNDELIVERED", "EXPIRED", "REJECTED"], "delivered"),
        (&["UNDELIVERED", "ACCEPTD", "DELIVERED"], "delivered"),
        (&["EXPIRED", "ACCEPTD"], "expired"),
        (&["REJECTED", "ACCEPTD", "REJECTED"], "failed"),
    ];
    let ranks = ["queued", "sending", "unknown", "sent", "failed", "delivered", "read"];
    let rank = |status: &str| {
        let status = if ["undeliverable", "expired", "suppressed"].contains(&status) { "failed" } else { status };
        ranks.iter().position(|known| *known == status).unwrap()
    };
    for (reports, last) in orders {
        let phone = stage.stranger();
        stage.told_and_done(&CallSeed::new(&phone)).await;
        let (id, status) = delivery(&stage, &phone, "sms").await;
        assert_eq!(status, "sent");
        let mut highest = rank(&status);
        let mut seen = std::collections::BTreeSet::new();
        for report in reports {
            stage.mtn().report(&dlr(&id, report)).await.unwrap();
            seen.insert(*report);
            events(&stage, &id, seen.len()).await;
            let (_, status) = delivery(&stage, &phone, "sms").await;
            assert!(rank(&status) >= highest, "{reports:?}: {report} made it {status}");
            highest = rank(&status);
        }
        assert_eq!(delivery(&stage, &phone, "sms").await.1, last, "{reports:?}");
    }
}

#[tokio::test]
async fn a_whatsapp_status_never_goes_backwards() {
    let stage = silent_stage().await;
    let phone = stage.stranger();
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    let (id, _) = delivery(&stage, &phone, "whatsapp").await;
    let sent = stage.whatsapp().messages_to(&phone).remove(0);
    let status = |name: &str, at: i64| {
        json!({"id": sent.wamid, "status": name, "timestamp": at.to_string(), "recipient_id": phone.trim_start_matches('+'),
               "biz_opaque_callback_data": sent.biz_opaque_callback_data})
    };
    let now = chrono::Utc::now().timestamp();
    // All in one webhook, the last first; then again one by one.
    stage
        .whatsapp()
        .report(vec![status("read", now), status("delivered", now - 1), status("sent", now - 2)])
        .await
        .unwrap();
    events(&stage, &id, 3).await;
    assert_eq!(delivery(&stage, &phone, "whatsapp").await.1, "read");
    for name in ["delivered", "sent"] {
        stage.whatsapp().report(vec![status(name, now + 5)]).await.unwrap();
    }
    events(&stage, &id, 5).await;
    assert_eq!(delivery(&stage, &phone, "whatsapp").await.1, "read");
}

#[tokio::test]
async fn a_report_about_a_message_nobody_knows_is_kept_and_harms_nothing() {
    let stage = silent_stage().await;
    let stranger = uuid::Uuid::new_v4().to_string();
    assert_eq!(stage.mtn().report(&dlr(&stranger, "DELIVERED")).await.unwrap().status, Some(200));
    stage
        .until(&format!(
            "select count(*) = 1 from message_status_events where delivery_ref = '{stranger}' and delivery_id is null"
        ))
        .await;
}

#[tokio::test]
async fn not_on_whatsapp_is_learnt_from_a_late_report_and_sms_carries_the_message() {
    let stage = stage().await;
    let phone = stage.stranger();
    let seed = CallSeed::new(&phone).on_whatsapp_now();
    stage.whatsapp().not_on_whatsapp(&phone, Refused::Later);
    let call = stage.seed_call(&seed).await.unwrap();
    stage.whatsapp_only(&phone).await;
    // Meta's timestamps are whole seconds: what was known a moment ago would be newer.
    let sql = "update profiles set has_whatsapp_at = now() - interval '1 minute' where phone_number = $1";
    stage.execute(sql, &[&phone]).await.unwrap();
    let told = stage.ask(&call).await;
    stage.delivered(&phone, "sms delivered 1 fallback, whatsapp undeliverable 1").await;
    assert!(stage.sms_to(&phone, 1).await.starts_with("EasyMO summary:"));
    // Whoever learnt it, the message in its place is told of under the id of the work.
    told_once(&stage, &told.correlation_id, &["WHATSAPP_SEND_SUCCESS", "FALLBACK_QUEUED", "SMS_SEND_SUCCESS"]).await;
    traced(&stage, &phone, &told.correlation_id).await;
    let profile = stage
        .row(&format!("select has_whatsapp, has_whatsapp_source from profiles where phone_number = '{phone}'"))
        .await;
    assert_eq!(Value::Object(profile), json!({"has_whatsapp": false, "has_whatsapp_source": "not_on_whatsapp"}));
    // The next one is not even tried there.
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.delivered(&phone, "sms delivered 1 fallback, sms delivered 1, whatsapp undeliverable 1").await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 1);
}

#[tokio::test]
async fn not_on_whatsapp_in_the_answer_lets_sms_carry_the_message_once() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.whatsapp().not_on_whatsapp(&phone, Refused::AtOnce);
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp undeliverable 1").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1, "SMS carried it already");
    assert_eq!(stage.value(&format!("select has_whatsapp from profiles where phone_number = '{phone}'")).await, false);
}

#[tokio::test]
async fn a_window_that_meta_holds_for_closed_lets_sms_carry_the_message() {
    let stage = stage().await;
    let phone = stage.stranger();
    let call = stage.seed_call(&CallSeed::new(&phone).on_whatsapp_now()).await.unwrap();
    stage.whatsapp_only(&phone).await;
    stage.whatsapp().close_window(&phone);
    stage.ask(&call).await;
    stage.delivered(&phone, "sms delivered 1 fallback, whatsapp failed 1").await;
    assert_eq!(
        stage.value(&format!("select has_whatsapp from profiles where phone_number = '{phone}'")).await,
        true,
        "a closed window says nothing about WhatsApp"
    );
}

/// Each event is told once under this correlation id. A line takes a moment from the function to the log.
async fn told_once(stage: &Stage, id: &str, events: &[&str]) {
    let count = |event: &str| stage.story(id).iter().filter(|line| line["event"] == event).count();
    let look = async || Ok(events.iter().all(|event| count(event) > 0).then_some(()));
    let waited = stage.wait_for("a line about each event", SOON, look).await;
    for event in events {
        assert_eq!(count(event), 1, "{event}: {waited:?} {:#?}", stage.story(id));
    }
}

/// Reports the delivery of a message; the log tells of it under the id of the work that the message belongs to.
async fn report_is_told(stage: &Stage, id: &str, delivery: &str, channel: &str) {
    let look = async || {
        let story = stage.story(id);
        let mut lines = story.iter().filter(|line| line["event"] == "DELIVERY_STATUS_APPLIED");
        Ok(lines.any(|line| line["delivery_id"] == delivery && line["status"] == "delivered").then_some(()))
    };
    let waited = stage.wait_for("a line about the report", SOON, look).await;
    assert!(waited.is_ok(), "{channel}: {:#?}", stage.story(id));
}

#[tokio::test]
async fn one_correlation_id_leads_from_the_request_to_the_delivery_report() {
    let stage = silent_stage().await;
    let phone = stage.stranger();
    let call = stage.seed_call(&CallSeed::new(&phone).on_whatsapp_now()).await.unwrap();
    let key = format!("Bearer {}", stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap());
    let id = format!("trace-{}", call.id.simple());
    let headers =
        [("authorization", key.as_str()), ("content-type", "application/json"), ("x-correlation-id", id.as_str())];
    let answer = stage.post("post-call-notify", "", &headers, json!({"callId": call.id}).to_string()).await.unwrap();
    assert_eq!((answer.status, answer.correlation_id()), (202, Some(id.as_str())));
    assert!(answer.headers.contains(&("x-correlation-id".to_owned(), id.clone())), "{:?}", answer.headers);
    stage.delivered(&phone, "sms sent 1, whatsapp sent 1").await;

    let rows = format!("message_delivery_log where correlation_id = '{id}' and recipient = '{phone}'");
    assert_eq!(stage.count(&rows).await, 2);
    let events = [
        "POST_CALL_NOTIFY_START",
        "DUAL_CHANNEL_ROUTING",
        "SMS_SEND_SUCCESS",
        "WHATSAPP_SEND_SUCCESS",
        "POST_CALL_NOTIFY_DONE",
    ];
    told_once(&stage, &id, &events).await;
    let (sms, _) = delivery(&stage, &phone, "sms").await;
    stage.mtn().report(&dlr(&sms, "DELIVERED")).await.unwrap();
    report_is_told(&stage, &id, &sms, "sms").await;
    let (whatsapp, _) = delivery(&stage, &phone, "whatsapp").await;
    let sent = stage.whatsapp().messages_to(&phone).remove(0);
    let status = json!({"id": sent.wamid, "status": "delivered", "timestamp": chrono::Utc::now().timestamp().to_string(),
                        "recipient_id": phone.trim_start_matches('+')});
    stage.whatsapp().report(vec![status]).await.unwrap();
    report_is_told(&stage, &id, &whatsapp, "whatsapp").await;
}

/// Every message to the person, and every sending of one, is under this id.
async fn traced(stage: &Stage, phone: &str, id: &str) {
    let others = format!(
        "message_delivery_log l left join message_delivery_attempts a on a.delivery_id = l.id
          where l.recipient = '{phone}' and l.direction = 'outbound' and (l.correlation_id <> '{id}' or a.correlation_id <> '{id}')"
    );
    assert_eq!(stage.count(&others).await, 0);
}

#[tokio::test]
async fn one_correlation_id_leads_through_a_retry_to_the_delivery_report() {
    let stage = silent_stage().await;
    let phone = stage.stranger();
    stage.mtn().fail_with(Fault::Status503).on(&phone);
    let told = stage.told_and_done(&CallSeed::new(&phone)).await;
    let id = told.correlation_id;
    told_once(&stage, &id, &["SMS_SEND_FAILED"]).await;
    let due = "update message_delivery_log set next_attempt_at = now() where recipient = $1";
    stage.execute(due, &[&phone]).await.unwrap();
    stage.cron().await.unwrap();
    stage.delivered(&phone, "sms sent 2").await;
    told_once(&stage, &id, &["SMS_SEND_FAILED", "SMS_SEND_SUCCESS"]).await;
    traced(&stage, &phone, &id).await;
    let (sms, _) = delivery(&stage, &phone, "sms").await;
    stage.mtn().report(&dlr(&sms, "DELIVERED")).await.unwrap();
    report_is_told(&stage, &id, &sms, "sms").await;
}

#[tokio::test]
async fn one_correlation_id_leads_from_an_sms_to_the_delivery_report_of_its_answer() {
    let stage = silent_stage().await;
    let phone = stage.stranger();
    let posted = stage.sms_from(&phone, "I look for a house in Remera").await.unwrap();
    let id = posted.json()["correlation_ids"][0].as_str().unwrap().to_owned();
    stage.delivered(&phone, "sms sent 1").await;
    let events = [
        "SMS_INBOUND_RECEIVED",
        "SESSION_CREATED",
        "AGENT_REPLY",
        "DUAL_CHANNEL_ROUTING",
        "SMS_SEND_SUCCESS",
        "SMS_TURN_DONE",
    ];
    told_once(&stage, &id, &events).await;
    let (sms, _) = delivery(&stage, &phone, "sms").await;
    stage.mtn().report(&dlr(&sms, "DELIVERED")).await.unwrap();
    report_is_told(&stage, &id, &sms, "sms").await;
}
