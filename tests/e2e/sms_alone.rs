//! A deployment that has no account at Meta: everything goes by SMS, and it says so.

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::Stage;

fn without_whatsapp() -> WorldConfig {
    ["WHATSAPP_ACCESS_TOKEN", "WHATSAPP_PHONE_NUMBER_ID", "WHATSAPP_APP_SECRET", "WHATSAPP_VERIFY_TOKEN"]
        .iter()
        .fold(WorldConfig::default(), |config, name| config.var(name, ""))
}

#[tokio::test]
async fn without_an_account_at_meta_everything_goes_by_sms_and_the_reason_is_kept() {
    let stage = Stage::alone("sms-alone", without_whatsapp).await;
    stage.without_breakers().await;
    for function in ["call-summary", "conversation", "delivery-retry", "whatsapp-webhook"] {
        let url = format!("{}/{function}/health", stage.edge().unwrap().url(function).unwrap());
        let health: Value = ihuza_sim::edge::client().unwrap().get(url).send().await.unwrap().json().await.unwrap();
        assert_eq!((&health["status"], &health["missing_settings"]), (&json!("ok"), &json!([])), "{health}");
        assert_eq!(health["dependencies"]["whatsapp"], json!({"configured": false}), "{health}");
        let said = health["warnings"].as_array().unwrap().iter().filter_map(Value::as_str);
        assert!(said.into_iter().any(|warning| warning.starts_with("WhatsApp is off: SMS alone")), "{health}");
    }

    // Whatever is known of the person.
    let phone = stage.stranger();
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.delivered(&phone, "sms delivered 1").await;
    assert!(!stage.says(&phone, "My budget is 400k").await.is_empty());
    stage.delivered(&phone, "sms delivered 1, sms delivered 1").await;
    let reasons = stage
        .value(&format!(
            "select m.routing -> 'reasons' from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{phone}' and m.kind = 'call_summary'"
        ))
        .await;
    assert_eq!(reasons, json!(["whatsapp_not_configured", "sms"]));

    // Nor does a message that SMS cannot carry try the other channel later.
    let unlucky = stage.stranger();
    stage.mtn().fail_with(Fault::Code(5001)).on(&unlucky).always();
    stage.told_and_done(&CallSeed::new(&unlucky).on_whatsapp_now()).await;
    stage.cron().await.unwrap();
    stage.delivered(&unlucky, "sms failed 1").await;
    assert_eq!(stage.whatsapp().control().requests().len(), 0);
}
