//! What people go through: a call ends, the summary comes, they write, and are answered in the same conversation.

use expect_test::expect;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;

use crate::stage::{Stage, Told};

fn config() -> WorldConfig {
    WorldConfig::default()
}

async fn stage() -> Stage {
    Stage::shared("journeys", config).await
}

/// The reply is answered in the session of the call, and the answer shows that the call is remembered.
async fn reply_is_answered(stage: &Stage, told: &Told) {
    let phone = told.call.phone.as_str();
    let answer = stage.says(phone, "Change budget to 250k").await;
    assert!(answer.contains("250k") && answer.contains("300k"), "{answer}");
    stage
        .until(&format!(
            "select count(*) = 1 from conversation_turns t join call_notifications n using (session_id)
              where n.call_id = '{}' and t.status = 'answered'",
            told.call.id
        ))
        .await;
    let session = stage
        .row(&format!(
            "select s.status, s.primary_channel, s.active_channels from omnichannel_sessions s
               join call_notifications n on n.session_id = s.id where n.call_id = '{}'",
            told.call.id
        ))
        .await;
    assert_eq!(session["status"], "active");
    let conversation = stage
        .rows(&format!(
            "select m.direction, m.kind, m.channel from conversation_messages m join call_notifications n using (session_id)
              where n.call_id = '{}' order by m.seq",
            told.call.id
        ))
        .await
        .unwrap();
    let conversation: Vec<String> = conversation
        .iter()
        .map(|m| format!("{} {}", m["direction"].as_str().unwrap(), m["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(conversation, ["outbound call_summary", "inbound conversation", "outbound conversation"]);
}

#[tokio::test]
async fn somebody_without_whatsapp_gets_the_summary_by_sms_and_is_answered_by_sms() {
    let stage = stage().await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone)).await;
    expect![[r#"
        SMS from EasyMO:
        EasyMO summary:
        1) Looking for: house in Kimironko
        2) Budget: 300k RWF/month
        3) 2 bedrooms
        4) We will send you matching houses today
        Reply by SMS to 8080
    "#]]
    .assert_eq(&stage.outbox(&phone));
    let status = stage
        .value(&format!(
            "select s.status from omnichannel_sessions s join call_notifications n on n.session_id = s.id where n.call_id = '{}'",
            told.call.id
        ))
        .await;
    assert_eq!(status, "follow_up");
    stage.delivered(&phone, "sms delivered 1").await;
    reply_is_answered(&stage, &told).await;
    stage.delivered(&phone, "sms delivered 1, sms delivered 1").await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 0);
}

#[tokio::test]
async fn somebody_on_whatsapp_within_the_window_gets_the_summary_as_text_and_by_sms() {
    let stage = stage().await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    expect![[r#"
        SMS from EasyMO:
        EasyMO summary:
        1) Looking for: house in Kimironko
        2) Budget: 300k RWF/month
        3) 2 bedrooms
        4) We will send you matching houses today
        Reply by SMS to 8080

        WhatsApp:
        📞 EasyMO Call Summary:
        ✓ Looking for: house in Kimironko
        • Budget: 300k RWF/month
        • 2 bedrooms
        ➡️ Next: We will send you matching houses today
        Reply to continue!
    "#]]
    .assert_eq(&stage.outbox(&phone));
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
    reply_is_answered(&stage, &told).await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 1, "the answer goes where the question came from");
}

#[tokio::test]
async fn somebody_on_whatsapp_outside_the_window_gets_a_template_with_the_same_facts() {
    let stage = stage().await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone).has_whatsapp(true)).await;
    let sent = stage.whatsapp().messages_to(&phone).remove(0);
    assert_eq!((sent.template.as_deref(), sent.language.as_deref()), (Some("call_summary_v1"), Some("en")));
    let sms = stage.sms_to(&phone, 1).await;
    for fact in ["house in Kimironko", "300k RWF/month", "2 bedrooms", "We will send you matching houses today"] {
        assert!(sent.shown.contains(fact) && sms.contains(fact), "{fact} is not in both of\n{}\n{sms}", sent.shown);
    }
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
    reply_is_answered(&stage, &told).await;
}

#[tokio::test]
async fn somebody_who_never_called_writes_and_is_answered() {
    let stage = stage().await;
    let phone = stage.stranger();
    let answer = stage.says(&phone, "Hello, I want a house in Remera").await;
    assert!(answer.contains("Remera"), "{answer}");
    let answer = stage.says(&phone, "My budget is 400k").await;
    assert!(answer.contains("Remera") || answer.contains("400k"), "{answer}");
    let sessions =
        format!("omnichannel_sessions s join profiles p on p.id = s.profile_id where p.phone_number = '{phone}'");
    assert_eq!(stage.count(&sessions).await, 1);
    stage.delivered(&phone, "sms delivered 1, sms delivered 1").await;
}

#[tokio::test]
async fn a_second_call_goes_on_in_the_same_conversation() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.told_and_done(&CallSeed::new(&phone)).await;
    let sessions =
        format!("omnichannel_sessions s join profiles p on p.id = s.profile_id where p.phone_number = '{phone}'");
    assert_eq!(stage.count(&sessions).await, 1);
    stage.delivered(&phone, "sms delivered 1, sms delivered 1").await;
}
