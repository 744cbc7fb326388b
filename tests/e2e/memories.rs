//! What people say of themselves is remembered after a call and after a conversation in writing, and shown to the model next time.

use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::Value;

use crate::stage::Stage;

/// What the model is asked is counted.
async fn alone() -> Stage {
    Stage::alone("conversations", WorldConfig::default).await
}

/// The conversations of these people have rested for half an hour: the sweep takes them up.
async fn rested(stage: &Stage, phones: &[&str]) {
    let theirs = theirs(phones);
    stage.until(&format!("select count(*) = {} from {theirs} and x.due_at > now()", phones.len())).await;
    let sql = format!(
        "update memory_extractions set due_at = now() - interval '1 minute' where session_id in (select x.session_id from {theirs})"
    );
    stage.execute(&sql, &[]).await.unwrap();
    stage.cron().await.unwrap();
}

fn theirs(phones: &[&str]) -> String {
    format!(
        "memory_extractions x join profiles p on p.id = x.profile_id where p.phone_number in ('{}')",
        phones.join("', '")
    )
}

/// What the model was given last.
fn last_input(stage: &Stage) -> String {
    let requests = stage.openai().control().requests();
    let asked = requests.iter().rev().find_map(|request| serde_json::from_str::<Value>(&request.body).ok());
    asked.map(|body| body["input"].to_string()).unwrap_or_default()
}

async fn kept(stage: &Stage, phone: &str) -> Value {
    stage
        .value(&format!(
            "select coalesce(string_agg(m.value || ' ' || m.kind || ' ' || m.source || ' ' || (m.call_id is not null), ', ' order by m.key), '')
               from voice_memories m join profiles p on p.id = m.profile_id where p.phone_number = '{phone}'"
        ))
        .await
}

#[tokio::test]
async fn what_was_preferred_in_a_call_and_in_writing_is_known_the_next_time() {
    let stage = alone().await;
    let (phone, other) = (stage.stranger(), stage.stranger());
    let mut call = CallSeed::new(&phone);
    call.transcript = vec![
        ("assistant".into(), "Hello, this is EasyMO. How can I help?".into()),
        ("user".into(), "I look for a house. I prefer houses with a garden.".into()),
        ("assistant".into(), "I prefer to note that.".into()),
    ];
    stage.told_and_done(&call).await;
    assert_eq!(kept(&stage, &phone).await, "I prefer houses with a garden preference summary true");
    stage.says(&phone, "Hello, anything new?").await;
    assert!(last_input(&stage).contains("I prefer houses with a garden"), "{}", last_input(&stage));

    // Another person, who never called: nothing is known of them before they say it, and it is read when they have done.
    stage.says(&other, "Muraho, I prefer Kicukiro.").await;
    assert!(!last_input(&stage).contains("garden"));
    assert_eq!(kept(&stage, &other).await, "");
    let asked = stage.openai().questions().len();
    rested(&stage, &[&phone, &other]).await;
    stage
        .until(&format!(
            "select count(*) = 2 from {} and x.due_at is null and x.lease_token is null",
            theirs(&[&phone, &other])
        ))
        .await;
    assert_eq!(kept(&stage, &other).await, "Muraho, I prefer Kicukiro preference summary false");
    assert_eq!(stage.openai().questions().len(), asked + 2, "one question a conversation");
    stage.says(&other, "Anything new?").await;
    assert!(last_input(&stage).contains("I prefer Kicukiro"), "{}", last_input(&stage));
    for line in stage.logs().unwrap() {
        assert!(!line.text.contains("garden") && !line.text.contains("Kicukiro"), "{}", line.text);
    }
}

#[tokio::test]
async fn a_conversation_that_the_model_cannot_read_is_left_for_later_and_costs_nobody_an_answer() {
    let stage = alone().await;
    stage.without_breakers().await;
    let phone = stage.stranger();
    stage.says(&phone, "I prefer Kicukiro").await;
    stage.openai().fail_with(ihuza_sim::control::Fault::NonJson).on("memories").always();
    rested(&stage, &[&phone]).await;
    stage
        .until(&format!(
            "select x.tries = 1 and x.lease_token is null and x.due_at > now() + interval '10 minutes' from {}",
            theirs(&[&phone])
        ))
        .await;
    stage.openai().control().clear_faults();
    assert_eq!(kept(&stage, &phone).await, "");
    stage.says(&phone, "Hello again").await;
    stage.until(&format!("select x.tries = 0 from {}", theirs(&[&phone]))).await;
}
