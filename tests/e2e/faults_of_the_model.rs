//! The model's faults: whatever it does, the person gets one summary and one answer.

use std::time::Duration;

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;

use crate::stage::Stage;

fn quick() -> WorldConfig {
    WorldConfig::default().var("MODEL_TIMEOUT_MS", 4000).var("SUMMARY_TIMEOUT_MS", 4000)
}

async fn stage() -> Stage {
    let stage = Stage::alone("model", quick).await;
    stage.without_breakers().await;
    stage
}

/// What one such fault costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// The question is put a second time, within the same work.
    Second,
    /// So much time that there is none for a second question: the facts, or a pause.
    Time,
    Nothing,
}

use Cost::{Nothing, Second, Time};

const FAULTS: [(Fault, Cost); 12] = [
    (Fault::Status429, Second),
    (Fault::Status429RetryAfter, Second),
    (Fault::Status500Before, Second),
    (Fault::Status500After, Second),
    (Fault::Status503, Second),
    (Fault::CutBefore, Second),
    (Fault::CutAfter, Second),
    (Fault::Truncated, Second),
    (Fault::NonJson, Second),
    (Fault::TimeoutBefore, Time),
    (Fault::TimeoutAfter, Time),
    (Fault::Slow, Nothing),
];

fn order(stage: &Stage, fault: Fault, subject: &str) {
    let order = stage.openai().fail_with(fault).on(subject);
    drop(match fault {
        Fault::Slow => order.delay(Duration::from_millis(300)),
        Fault::Status429RetryAfter | Fault::Status503 => order.delay(Duration::from_millis(500)),
        _ => order,
    });
}

#[tokio::test]
async fn one_fault_of_the_model_costs_a_summary_a_second_question_or_its_words() {
    let stage = stage().await;
    for (fault, cost) in FAULTS {
        let phone = stage.stranger();
        let before = stage.openai().questions().len();
        order(&stage, fault, "call_summary");
        let told = stage.told_and_done(&CallSeed::new(&phone)).await;
        stage.delivered(&phone, "sms delivered 1").await;
        let source =
            stage.value(&format!("select source from call_summaries where call_id = '{}'", told.call.id)).await;
        let questions = stage.openai().questions().len() - before;
        let expected = match cost {
            Second => ("model", 2),
            Time => ("facts", 1),
            Nothing => ("model", 1),
        };
        assert_eq!((source.as_str().unwrap(), questions), expected, "{fault}");
        assert_eq!(stage.mtn().messages_to(&phone).len(), 1, "{fault}");
    }
}

#[tokio::test]
async fn one_fault_of_the_model_costs_an_answer_a_second_question() {
    let stage = stage().await;
    for (fault, cost) in FAULTS.into_iter().filter(|(_, cost)| *cost != Time) {
        let phone = stage.stranger();
        let before = stage.openai().questions().len();
        order(&stage, fault, "text");
        let answer = stage.says(&phone, "I look for a house in Remera").await;
        assert!(answer.contains("Remera"), "{fault}: {answer}");
        stage.delivered(&phone, "sms delivered 1").await;
        let questions = stage.openai().questions().len() - before;
        assert_eq!(questions, if cost == Second { 2 } else { 1 }, "{fault}");
    }
}

#[tokio::test]
async fn a_silent_model_costs_an_answer_a_pause() {
    let stage = stage().await;
    let people = [stage.stranger(), stage.stranger()];
    order(&stage, Fault::TimeoutBefore, "text");
    order(&stage, Fault::TimeoutAfter, "text");
    for phone in &people {
        stage.sms_from(phone, "I look for a house in Remera").await.unwrap();
    }
    for phone in &people {
        assert!(stage.sms_to(phone, 1).await.contains("Remera"));
        stage.delivered(phone, "sms delivered 1").await;
        let turn = format!(
            "select t.claims, t.status from conversation_turns t join profiles p on p.id = t.profile_id where p.phone_number = '{phone}'"
        );
        let turn = stage.row(&turn).await;
        assert_eq!((&turn["claims"], &turn["status"]), (&2.into(), &"answered".into()));
    }
}

/// Turns of a person, oldest first: `state source`, and `owed` before that of an answer that made an apology good.
async fn turns(stage: &Stage, phone: &str) -> String {
    let sql = format!(
        "select coalesce(string_agg(concat_ws(' ', case when t.owed_for is not null then 'owed' end, t.status,
                  (select m.source from conversation_messages m where m.turn_id = t.id and m.direction = 'outbound')), ', '
                  order by t.created_at, t.owed_for nulls first), '') as turns
           from conversation_turns t join profiles p on p.id = t.profile_id where p.phone_number = '{phone}'"
    );
    stage.value(&sql).await.as_str().unwrap().to_owned()
}

async fn until_turns(stage: &Stage, phone: &str, expected: &str) {
    let look = async || Ok((turns(stage, phone).await == expected).then_some(()));
    if let Err(trouble) = stage.wait_for(expected, crate::stage::SOON, look).await {
        panic!("the turns are `{}`, not `{expected}`: {trouble:?}", turns(stage, phone).await);
    }
}

/// As if the pause before the next try were over.
async fn sweep_now(stage: &Stage) {
    stage
        .execute(
            "update conversation_turns set next_attempt_at = now(), swept_at = null where owed_for is not null and status = 'released'",
            &[],
        )
        .await
        .unwrap();
    stage.cron().await.unwrap();
}

async fn tried_once(stage: &Stage, phone: &str) {
    stage
        .until(&format!(
            "select bool_and(t.status = 'released' and t.claims = 1) from conversation_turns t join profiles p on p.id = t.profile_id
              where p.phone_number = '{phone}' and t.owed_for is not null"
        ))
        .await;
}

async fn apologised(stage: &Stage, phone: &str) {
    order_down(stage);
    stage.sms_from(phone, "I look for a house in Remera").await.unwrap();
    assert!(stage.sms_to(phone, 1).await.contains("sorry"));
    until_turns(stage, phone, "answered fallback, owed released").await;
}

fn order_down(stage: &Stage) {
    drop(stage.openai().fail_with(Fault::Status500Before).on("text").always());
}

#[tokio::test]
async fn after_an_apology_the_real_answer_comes_when_the_model_is_back() {
    let stage = stage().await;
    let phone = stage.stranger();
    apologised(&stage, &phone).await;
    // Still away: nothing is said a second time.
    let asked = stage.openai().questions().len();
    sweep_now(&stage).await;
    tried_once(&stage, &phone).await;
    assert!(stage.openai().questions().len() > asked, "it was asked");
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1);
    // Back.
    stage.openai().control().clear_faults();
    sweep_now(&stage).await;
    let answer = stage.sms_to(&phone, 2).await;
    assert!(answer.contains("Remera"), "{answer}");
    until_turns(&stage, &phone, "answered fallback, owed answered model").await;
    stage.delivered(&phone, "sms delivered 1, sms delivered 1").await;
    // Once.
    stage.cron().await.unwrap();
    assert_eq!(stage.mtn().messages_to(&phone).len(), 2, "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn when_the_model_stays_away_the_apology_was_the_answer() {
    let stage = stage().await;
    let phone = stage.stranger();
    apologised(&stage, &phone).await;
    sweep_now(&stage).await;
    tried_once(&stage, &phone).await;
    stage.execute("update conversation_turns set owed_until = now() where owed_for is not null", &[]).await.unwrap();
    sweep_now(&stage).await;
    until_turns(&stage, &phone, "answered fallback, owed abandoned").await;
    stage.openai().control().clear_faults();
    stage.cron().await.unwrap();
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1, "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn who_writes_on_after_an_apology_gets_one_answer_to_both() {
    let stage = stage().await;
    let phone = stage.stranger();
    apologised(&stage, &phone).await;
    stage.openai().control().clear_faults();
    let answer = stage.says(&phone, "My budget is 400k").await;
    let question = stage.openai().questions().pop().unwrap().body;
    assert!(question.contains("Remera") && question.contains("400k"), "{question}");
    until_turns(&stage, &phone, "answered fallback, owed abandoned, answered model").await;
    sweep_now(&stage).await;
    stage.delivered(&phone, "sms delivered 1, sms delivered 1").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 2, "one after {answer}");
}
