//! Turns: one answer for what belongs together, never two at the same time, never twice for the same message.

use std::time::Duration;

use ihuza_sim::control::Fault;
use ihuza_sim::mtn::{Inbound, Proof, Shape};
use ihuza_sim::openai::Script;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::Stage;

async fn stage() -> Stage {
    Stage::shared("conversations", WorldConfig::default).await
}

async fn alone() -> Stage {
    Stage::alone("conversations", WorldConfig::default).await
}

fn patient() -> WorldConfig {
    WorldConfig::default().var("BURST_WAIT_MS", 800)
}

/// Turns of a person, oldest first: how many messages each answered.
async fn turns(stage: &Stage, phone: &str) -> Vec<u64> {
    let rows = stage
        .rows(&format!(
            "select count(m.id) as n from conversation_turns t join profiles p on p.id = t.profile_id
               left join conversation_messages m on m.turn_id = t.id and m.direction = 'inbound'
              where p.phone_number = '{phone}' group by t.id, t.created_at order by t.created_at"
        ))
        .await
        .unwrap();
    rows.iter().map(|row| row["n"].as_u64().unwrap()).collect()
}

async fn all_answered(stage: &Stage, phone: &str, messages: usize) {
    stage
        .until(&format!(
            "select count(*) = {messages} from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{phone}' and m.direction = 'inbound' and m.handled_as = 'answered'"
        ))
        .await;
}

/// Posts the messages so that they reach the consumer at the same time: while the queue is busy with somebody else, they
/// pile up, and come as one batch, which is worked side by side.
async fn burst(stage: &Stage, phone: &str, texts: &[&str]) {
    stage.sms_from(&stage.stranger(), "Hello, who is there?").await.unwrap();
    for text in texts {
        stage.sms_from(phone, text).await.unwrap();
    }
    all_answered(stage, phone, texts.len()).await;
}

#[tokio::test]
async fn several_messages_in_a_burst_become_one_turn() {
    let stage = Stage::alone("patient", patient).await;
    let phone = stage.stranger();
    let texts = ["Good morning", "I look for a house", "in Remera", "for 400k"];
    burst(&stage, &phone, &texts).await;
    assert_eq!(turns(&stage, &phone).await, [4]);
    stage.delivered(&phone, "sms delivered 1").await;
    let questions = stage.openai().questions();
    let question = questions.last().unwrap();
    for text in texts {
        assert!(question.body.contains(text), "{text} is not in the question");
    }
}

#[tokio::test]
async fn messages_that_come_while_one_is_being_answered_are_answered_next_and_together() {
    let stage = alone().await;
    let phone = stage.stranger();
    let slow = Duration::from_millis(2500);
    stage.openai().fail_with(Fault::Slow).on("text").delay(slow).always();
    let seen = stage.openai().questions().len();
    burst(&stage, &phone, &["I look for a house with a red door", "in Remera please", "for 400k a month"]).await;
    let asked = stage.openai().questions().split_off(seen);
    stage.openai().control().clear_faults();
    let asked: Vec<_> = asked.into_iter().filter(|question| !question.body.contains("who is there?")).collect();
    let turns = turns(&stage, &phone).await;
    assert_eq!(turns.iter().sum::<u64>(), 3);
    assert!(turns.len() <= 2, "what waits is answered together: {turns:?}");
    assert_eq!(stage.mtn().messages_to(&phone).len(), turns.len(), "an answer a turn:\n{}", stage.outbox(&phone));
    assert_eq!(asked.len(), turns.len());
    for pair in asked.windows(2) {
        let between = (pair[1].at - pair[0].at).to_std().unwrap();
        assert!(between >= slow, "the second question was put {between:?} after the first, which took {slow:?}");
    }
    // The database's own word: no turn began before the one before it had ended.
    let overlaps = format!(
        "conversation_turns a join conversation_turns b using (profile_id) join profiles p on p.id = a.profile_id
          where p.phone_number = '{phone}' and a.kind = 'conversation' and b.kind = 'conversation' and a.id <> b.id
            and a.created_at <= b.created_at and b.created_at < a.finished_at"
    );
    assert_eq!(stage.count(&overlaps).await, 0);
}

/// Nobody sweeps here.
#[tokio::test]
async fn what_fails_after_a_first_answer_comes_back_by_the_queue() {
    let stage = alone().await;
    let phone = stage.stranger();
    stage.openai().fail_with(Fault::Status500Before).on("a garden").times(2);
    stage.openai().fail_with(Fault::Slow).on("text").delay(Duration::from_millis(1200)).always();
    burst(&stage, &phone, &["I look for a house with a red door", "and with a garden"]).await;
    stage.openai().control().clear_faults();
    assert_eq!(turns(&stage, &phone).await.iter().sum::<u64>(), 2);
}

#[tokio::test]
async fn what_comes_before_an_answer_can_be_recorded_is_answered_as_soon_as_it_is() {
    let stage = alone().await;
    let phone = stage.stranger();
    stage.gateway().fail_with(Fault::Status503).on("finish_sms_turn").times(3);
    stage.sms_from(&phone, "I look for a house with a red door").await.unwrap();
    stage.sms_to(&phone, 1).await;
    // The turn is open until the queue records it, and whoever answered it is gone.
    stage.sms_from(&phone, "and with a garden").await.unwrap();
    all_answered(&stage, &phone, 2).await;
    assert_eq!(turns(&stage, &phone).await, [1, 1]);
}

#[tokio::test]
async fn the_same_message_many_times_is_one_turn_and_one_answer() {
    let stage = stage().await;
    let phone = stage.stranger();
    let inbound = Inbound::new(&phone, "I look for a house in Remera").id(&format!("same-{phone}"));
    let copies = (0..8).map(|_| stage.mtn().deliver(&inbound));
    let mut posted = Vec::new();
    for copy in copies {
        posted.push(copy.await.unwrap().status);
    }
    assert_eq!(posted, [Some(200); 8]);
    all_answered(&stage, &phone, 1).await;
    stage.delivered(&phone, "sms delivered 1").await;
    assert_eq!(turns(&stage, &phone).await, [1]);
}

#[tokio::test]
async fn every_form_in_which_an_sms_may_arrive_is_answered_and_every_proof_is_taken() {
    let stage = stage().await;
    let shapes = [Shape::V3, Shape::Plain, Shape::OneApi, Shape::Form];
    let proofs = [Proof::Bearer, Proof::Signature, Proof::PathToken, Proof::Bearer];
    for (shape, proof) in shapes.into_iter().zip(proofs) {
        let phone = stage.stranger();
        let posted = stage
            .mtn()
            .deliver(&Inbound::new(&phone, "I look for a house in Remera").shape(shape).proof(proof))
            .await
            .unwrap();
        assert_eq!(posted.status, Some(200), "{shape:?} {proof:?}: {}", posted.answer);
        let answer = stage.sms_to(&phone, 1).await;
        assert!(answer.contains("Remera"), "{shape:?}: {answer}");
    }
}

#[tokio::test]
async fn the_agent_closes_the_conversation_once_even_when_the_answer_of_the_tool_is_lost() {
    let stage = alone().await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone)).await;
    let close = json!({"status": "closed", "intent": Value::Null, "note": "does not need the house any more"});
    stage.openai().next_for("text", Script::Tools(vec![("session_update_status".to_owned(), close)]));
    stage.gateway().fail_with(Fault::CutAfter).on("run_agent_tool");
    let before = stage.gateway().calls("run_agent_tool");
    let answer = stage.says(&phone, "Please close my request").await;
    assert!(!answer.is_empty());
    assert_eq!(stage.gateway().calls("run_agent_tool") - before, 2, "the call whose answer was lost, and its repeat");
    let done = stage
        .row(&format!(
            "select count(*) as calls, bool_and((c.result ->> 'ok')::boolean) as ok, min(s.status) as status,
                    bool_and(c.correlation_id = (select t.correlation_id from conversation_turns t where t.id = c.turn_id)) as traced
               from mcp_tool_calls c join call_notifications n using (session_id) join omnichannel_sessions s on s.id = n.session_id
              where n.call_id = '{}'",
            told.call.id
        ))
        .await;
    assert_eq!(Value::Object(done), json!({"calls": 1, "ok": true, "status": "closed", "traced": true}));
}

#[tokio::test]
async fn what_the_model_invents_as_a_tool_changes_nothing_and_is_answered_all_the_same() {
    let stage = alone().await;
    let phone = stage.stranger();
    let calls = vec![
        ("session_update_status".to_owned(), json!({"status": "deleted", "intent": null, "note": null})),
        ("drop_all_tables".to_owned(), json!({"really": true})),
    ];
    stage.openai().next_for("text", Script::Tools(calls));
    let answer = stage.says(&phone, "Hello, I look for a house in Remera").await;
    assert!(!answer.is_empty());
    let session = format!(
        "select s.status from omnichannel_sessions s join profiles p on p.id = s.profile_id where p.phone_number = '{phone}'"
    );
    assert_eq!(stage.value(&session).await, "active");
}
