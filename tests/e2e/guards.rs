//! What stands against a message although its channel could carry it: the budget, the limits against floods, the night.

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::json;

use crate::stage::Stage;

async fn stage() -> Stage {
    let stage = Stage::alone("guards", WorldConfig::default).await;
    stage.without_breakers().await;
    stage
}

/// Channel, status and reason of all messages to a person.
fn rows(phone: &str) -> String {
    format!(
        "select jsonb_agg(jsonb_build_array(channel, status, suppress_reason, attempts) order by channel, created_at)
           from message_delivery_log where direction = 'outbound' and recipient = '{phone}'"
    )
}

#[tokio::test]
async fn over_its_budget_a_client_sends_nothing_that_costs_but_confirms_a_stop() {
    let stage = stage().await;
    stage
        .execute(
            "insert into client_budgets (client_id, currency, soft_limit, hard_limit, sms_segment_price, whatsapp_template_price)
             select id, 'RWF', 0, 30, 10, 20 from clients where is_default",
            &[],
        )
        .await
        .unwrap();
    let (first, second) = (stage.stranger(), stage.stranger());
    let short = |phone: &str| CallSeed::new(phone).summary("House in Kimironko", &[], None);
    stage.told_and_done(&short(&first)).await;
    stage.delivered(&first, "sms delivered 1").await;
    let sent = stage.value("select committed::text as v from v_budget_months").await;
    assert_eq!(sent, json!("10.000000"), "one segment: what was reserved beyond it is free again");

    // Two segments at most and a template do not fit together; WhatsApp is unknown, so that SMS alone is asked for.
    stage.told_and_done(&short(&second)).await;
    stage.delivered(&second, "sms delivered 1").await;
    let third = stage.stranger();
    stage.told_and_done(&short(&third)).await;
    assert_eq!(stage.value(&rows(&third)).await, json!([["sms", "suppressed", "budget", 0]]));
    assert_eq!(stage.mtn().messages_to(&third).len(), 0);
    let reasons = stage
        .value(&format!(
            "select m.routing -> 'suppressed' from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{third}'"
        ))
        .await;
    assert_eq!(reasons[1], json!({"channel": "sms", "reason": "budget"}), "{reasons}");
    let alerts = stage.value("select jsonb_agg(kind order by kind) from alerts where kind like 'budget%'").await;
    assert_eq!(alerts, json!(["budget_hard", "budget_soft"]));

    // The one message that is owed whatever it costs.
    assert!(stage.says(&third, "STOP").await.contains("no more SMS"));
    stage.execute("delete from client_budgets", &[]).await.unwrap();
    stage.execute("delete from budget_months", &[]).await.unwrap();
}

#[tokio::test]
async fn where_no_channel_would_carry_an_answer_the_model_is_not_asked() {
    let stage = stage().await;
    let writer = stage.stranger();
    assert!(!stage.says(&writer, "I look for a house in Remera").await.is_empty());
    let asked = stage.openai().questions().len();
    stage
        .execute(
            "insert into client_budgets (client_id, currency, hard_limit, sms_segment_price, whatsapp_template_price)
             select id, 'RWF', 0, 10, 20 from clients where is_default",
            &[],
        )
        .await
        .unwrap();
    let posted = stage.sms_from(&writer, "for 400k").await.unwrap();
    assert_eq!(posted.status, Some(200), "{}", posted.answer);
    let of_writer = format!("profile_id = (select id from profiles where phone_number = '{writer}')");
    stage
        .until(&format!("select count(*) = 1 from conversation_messages where {of_writer} and handled_as = 'suppressed' and content = 'for 400k'"))
        .await;
    assert_eq!(stage.openai().questions().len(), asked);
    let refused = format!(
        "select jsonb_agg(jsonb_build_array(channel, suppress_reason)) from message_delivery_log where {of_writer} and status = 'suppressed'"
    );
    assert_eq!(stage.value(&refused).await, json!([["sms", "budget"]]));
    assert_eq!(stage.mtn().messages_to(&writer).len(), 1);
    // On WhatsApp an answer is free, and the model sees what was written before.
    assert!(!stage.writes(&writer, "are you there?").await.is_empty());
    let question = stage.openai().questions().last().map(|question| question.body.clone()).unwrap_or_default();
    assert!(question.contains("for 400k"), "{question}");
    assert!(stage.says(&writer, "STOP").await.contains("no more SMS"), "owed whatever it costs");
    stage.execute("delete from client_budgets", &[]).await.unwrap();
    stage.execute("delete from budget_months", &[]).await.unwrap();
}

#[tokio::test]
async fn a_flood_to_numbers_that_begin_alike_is_stopped_and_told_once() {
    let stage = stage().await;
    stage
        .execute("insert into send_limits (prefix, group_digits, group_per_hour) values ('+4477009', 7, 2)", &[])
        .await
        .unwrap();
    let numbers: Vec<String> = (0..5).map(|n| format!("+44770090010{n}")).collect();
    for number in &numbers {
        stage.told_and_done(&CallSeed::new(number)).await;
    }
    for number in &numbers[..2] {
        stage.delivered(number, "sms delivered 1").await;
    }
    for number in &numbers[2..] {
        assert_eq!(stage.value(&rows(number)).await, json!([["sms", "suppressed", "rate_limited", 0]]));
        assert_eq!(stage.mtn().messages_to(number).len(), 0);
    }
    let alert = stage.row("select occurrences, details ->> 'of' as of from alerts where kind = 'send_limit'").await;
    assert_eq!((&alert["occurrences"], &alert["of"]), (&json!(3), &json!("+4477009")));
    // Everybody else is written to.
    let other = stage.stranger();
    assert!(!stage.says(&other, "I look for a house in Remera").await.is_empty());
}

/// Quiet in Kigali from an hour ago until in an hour.
const QUIET_NOW: &str =
    "update clients set settings = settings || jsonb_build_object('quiet_hours', jsonb_build_object(
    'from', to_char((now() - interval '1 hour') at time zone 'Africa/Kigali', 'HH24:MI'),
    'until', to_char((now() + interval '1 hour') at time zone 'Africa/Kigali', 'HH24:MI'))) where is_default";
const NEVER_QUIET: &str = "update clients set settings = settings - 'quiet_hours'";

#[tokio::test]
async fn at_night_a_summary_waits_and_an_answer_and_what_is_urgent_do_not() {
    let stage = stage().await;
    stage.execute(QUIET_NOW, &[]).await.unwrap();
    let (asleep, awake, urgent) = (stage.stranger(), stage.stranger(), stage.stranger());
    let told = stage.told_and_done(&CallSeed::new(&asleep).on_whatsapp_now()).await;
    stage.delivered(&asleep, "sms queued 0, whatsapp queued 0").await;
    let waits = format!(
        "select bool_and(next_attempt_at > now() + interval '50 minutes' and next_attempt_at < now() + interval '63 minutes'
                     and next_attempt_at < deadline_at and last_outcome = 'deferred') from message_delivery_log where call_id = '{}'",
        told.call.id
    );
    assert_eq!(stage.value(&waits).await, json!(true));
    let routing = format!(
        "select routing -> 'reasons' from conversation_messages where call_id = '{}' and kind = 'call_summary'",
        told.call.id
    );
    let reasons = stage.value(&routing).await;
    assert!(reasons.as_array().unwrap().contains(&json!("quiet_hours")), "{reasons}");
    let story = stage.story(&told.correlation_id);
    let routed = story.iter().find(|line| line["event"] == "DUAL_CHANNEL_ROUTING").unwrap();
    assert!(routed["reasons"].as_array().unwrap().contains(&json!("quiet_hours")), "{routed}");
    // A sweep changes nothing, not even when it is looked at too early.
    stage
        .execute("update message_delivery_log set next_attempt_at = now() where last_outcome = 'deferred'", &[])
        .await
        .unwrap();
    stage.cron().await.unwrap();
    assert_eq!(stage.value(&waits).await, json!(true));
    assert_eq!(stage.outbox(&asleep), "");

    assert!(!stage.says(&awake, "I look for a house in Remera").await.is_empty());
    let call = stage.seed_call(&CallSeed::new(&urgent)).await.unwrap();
    let answer = stage.post_call_notify_with(&json!({"callId": call.id, "urgent": true})).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    stage.delivered(&urgent, "sms delivered 1").await;

    // Morning.
    stage.execute(NEVER_QUIET, &[]).await.unwrap();
    stage
        .execute("update message_delivery_log set next_attempt_at = now() where last_outcome = 'deferred'", &[])
        .await
        .unwrap();
    stage.cron().await.unwrap();
    stage.delivered(&asleep, "sms delivered 1, whatsapp delivered 1").await;
}

#[tokio::test]
async fn too_many_messages_to_one_person_hold_up_nobody_else() {
    let stage = stage().await;
    stage
        .execute("update provider_health set state = 'closed', open_until = null, changed_at = now()", &[])
        .await
        .unwrap();
    // More than it takes to open a breaker, were it the carrier's own trouble.
    let mut people = Vec::new();
    for _ in 0..8 {
        let phone = stage.stranger();
        stage.whatsapp().fail_with(Fault::Code(131_056)).on(&phone).always();
        stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
        people.push(phone);
    }
    for phone in &people {
        // It waits by itself: 1 s at first, four times as long after each refusal.
        let waits = format!(
            "select last_outcome = 'retryable' and error_code = '131056' and next_attempt_at is not null from message_delivery_log
              where channel = 'whatsapp' and direction = 'outbound' and recipient = '{phone}'"
        );
        assert_eq!(stage.value(&waits).await, json!(true));
    }
    let health = stage.value("select state from provider_health where provider = 'whatsapp'").await;
    assert_eq!(health, json!("closed"));
    let other = stage.stranger();
    stage.told_and_done(&CallSeed::new(&other).on_whatsapp_now()).await;
    stage.delivered(&other, "sms delivered 1, whatsapp delivered 1").await;
    stage.whatsapp().control().clear_faults();
}
