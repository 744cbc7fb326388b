//! What a piece of work costs the database.

use expect_test::expect;
use ihuza_sim::openai::Script;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::json;

use crate::stage::Stage;

#[tokio::test]
async fn a_notification_costs_two_calls_of_the_database_and_a_turn_two_and_one_a_tool() {
    let stage = Stage::alone("conversations", WorldConfig::default).await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
    expect![[r#"["begin_call_notification", "finish_call_notification"]"#]]
        .assert_eq(&format!("{:?}", stage.rpcs(&told.correlation_id)));

    let turn = async |text: &str| {
        let before = stage.mtn().messages_to(&phone).len();
        stage.gateway().clear();
        let posted = stage.sms_from(&phone, text).await.unwrap();
        let id = posted.json()["correlation_ids"][0].as_str().unwrap().to_owned();
        stage.sms_to(&phone, before + 1).await;
        stage
            .until(&format!(
                "select count(*) = 1 from conversation_turns where correlation_id = '{id}' and status = 'answered'"
            ))
            .await;
        let all = stage.gateway().requests();
        // By this name the gateway knows them, and lets them ask only what all versions of PostgREST answer alike.
        assert!(all.iter().all(|request| request.headers["user-agent"] == "ihuza/1.0"), "{all:?}");
        let names = all.iter().filter_map(|request| request.path.rsplit('/').next().map(str::to_owned));
        // Reports of the answer come whenever the carrier likes.
        format!("{:?}", names.filter(|name| name != "record_delivery_events").collect::<Vec<_>>())
    };
    expect![[r#"["begin_sms_turn", "finish_sms_turn"]"#]].assert_eq(&turn("Is the house still free?").await);
    expect![[r#"["begin_sms_turn", "finish_sms_turn"]"#]].assert_eq(&turn("HELP").await);
    let tool = || ("session_update_status".to_owned(), json!({"status": "follow_up", "intent": null, "note": null}));
    let context = || ("session_get_context".to_owned(), json!({"limit": 5}));
    stage.openai().next_for("text", Script::Tools(vec![tool(), context()]));
    expect![[r#"["begin_sms_turn", "run_agent_tool", "run_agent_tool", "finish_sms_turn"]"#]]
        .assert_eq(&turn("What did I ask for?").await);
}
