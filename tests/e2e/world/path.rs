//! The main road, and the files that tell of it.

use std::time::Duration;

use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::{ServiceKey, World, WorldConfig};
use serde_json::Value;

const PHONE: &str = "+250788123456";
const WAIT: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_call_becomes_messages_and_a_reply_is_answered() {
    // The newer of the two kinds of keys: not a token, and sent in another header.
    let config = WorldConfig { service_key: ServiceKey::Opaque, ..WorldConfig::default() };
    let world = World::start(config).await.unwrap();
    let call = world.seed_call(&CallSeed::new(PHONE).on_whatsapp_now()).await.unwrap();
    assert_eq!(world.post_call_notify(&call).await.unwrap().status, 202);
    world
        .wait_for_sql(
            "select count(*) = 2 from message_delivery_log where purpose = 'call_summary' and status = 'delivered'",
            WAIT,
        )
        .await
        .unwrap();
    assert!(world.mtn().messages_to(PHONE)[0].text.contains("Budget: 300k RWF/month"));
    assert_eq!(world.whatsapp().messages_to(PHONE).len(), 1);

    assert_eq!(world.sms_from(PHONE, "Change budget to 250k").await.unwrap().status, Some(200));
    let answer = async || Ok(world.mtn().messages_to(PHONE).get(1).cloned());
    let answer = world.wait_for("an answer by SMS", WAIT, answer).await.unwrap();
    assert!(answer.text.contains("250k RWF/month instead of 300k"), "{}", answer.text);

    let schema =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/local-world.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    for (name, file) in [("ready_file", world.ready_file()), ("report", world.report().await.unwrap())] {
        let described = &schema["$defs"][name];
        for field in described["required"].as_array().unwrap() {
            assert!(!file[field.as_str().unwrap()].is_null(), "{name} without {field}");
        }
        for field in file.as_object().unwrap().keys() {
            assert!(
                !described["properties"][field].is_null(),
                "{name} has {field}, which the schema does not describe"
            );
        }
    }
    world.cron().await.unwrap();
    for line in world.logs().unwrap() {
        assert!(!line.text.contains(PHONE), "a whole number was logged: {}", line.text);
    }
}
