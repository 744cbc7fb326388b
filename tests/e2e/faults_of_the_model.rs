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
