//! What stands against a message although its channel could carry it: the budget, the limits against floods, the night.

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
