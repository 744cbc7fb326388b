//! An operator takes a conversation, answers in it, and gives it back.

use ihuza_sim::openai::Script;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::{SOON, Stage};

async fn rpc(stage: &Stage, name: &str, p: Value) -> Value {
    stage.value(&format!("select {name}('{}'::jsonb) as v", p.to_string().replace('\'', "''"))).await
}

#[tokio::test]
async fn the_agent_is_silent_while_a_colleague_answers_and_knows_afterwards_what_was_said() {
    let stage = Stage::alone("conversations", WorldConfig::default).await;
    let phone = stage.stranger();
    let reason = json!({"reason": "wants to talk about the contract", "department": null, "urgent": null});
    stage.openai().next_for("text", Script::Tools(vec![("transfer_to_human".to_owned(), reason)]));
    stage.says(&phone, "I want to speak to a person").await;
    // It waits: the agent still answers, and knows.
    stage.says(&phone, "Is somebody there?").await;
    let asked = stage.openai().control().requests().last().map(|request| request.body.clone()).unwrap_or_default();
    assert!(asked.contains("a colleague was asked to take over") && asked.contains("waiting"), "{asked}");

    let client = stage.value("select id from clients where is_default").await;
    let taken = rpc(&stage, "take_handoff", json!({"operator": "Aline", "client_id": client})).await;
    let id = taken["handoff"]["id"].clone();
    let (before, questions) = (stage.mtn().messages_to(&phone).len(), stage.openai().questions().len());
    stage.sms_from(&phone, "The contract of Gisozi, when is it ready?").await.unwrap();
    stage.until(&format!("select count(*) = 1 from conversation_messages m join profiles p on p.id = m.profile_id where p.phone_number = '{phone}' and m.handled_as = 'with_operator'")).await;
    stage.cron().await.unwrap();
    let read = rpc(&stage, "read_handoff", json!({"id": id, "operator": "Aline"})).await;
    let last = read["messages"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["text"], &last["by"]), (&json!("The contract of Gisozi, when is it ready?"), &json!("person")));
    let p = json!({"id": id, "operator": "Aline", "text": "It's ready, come at 3 pm.", "idempotency_key": "e2e-1"});
    assert_eq!(rpc(&stage, "say_in_handoff", p.clone()).await["decision"], "said");
    assert_eq!(rpc(&stage, "say_in_handoff", p).await["repeated"], true);
    stage.cron().await.unwrap();
    assert_eq!(stage.sms_to(&phone, before + 1).await, "It's ready, come at 3 pm.");
    assert_eq!(stage.mtn().messages_to(&phone).len(), before + 1, "only the colleague has written, and once");
    assert_eq!(stage.openai().questions().len(), questions, "no model was asked");

    rpc(&stage, "close_handoff", json!({"id": id, "operator": "Aline", "outcome": "told the time"})).await;
    stage.says(&phone, "What was the time again?").await;
    let look = async || {
        let asked = stage.openai().control().requests().last().map(|request| request.body.clone()).unwrap_or_default();
        Ok((asked.contains("A colleague wrote to the person")
            && asked.contains("come at 3 pm")
            && asked.contains("The contract of Gisozi"))
        .then_some(()))
    };
    stage.wait_for("the model sees what both have said", SOON, look).await.unwrap();
    for line in stage.logs().unwrap() {
        assert!(
            !line.text.contains("Gisozi") && !line.text.contains("3 pm") && !line.text.contains("Aline"),
            "{}",
            line.text
        );
    }
}
