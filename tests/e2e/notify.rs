//! Requests for a notification: found late or never, asked for twice, and where the summary comes from.

use ihuza_sim::control::Fault;
use ihuza_sim::openai::Script;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::json;
use uuid::Uuid;

use crate::stage::{SOON, Stage};

fn impatient() -> WorldConfig {
    WorldConfig::default().var("CALL_WAIT_SECONDS", 2)
}

async fn stage() -> Stage {
    Stage::shared("notify", impatient).await
}

/// Asks for the notification of whatever `call_id` names; its correlation id.
async fn ask_for(stage: &Stage, call_id: &str, phone: &str) -> String {
    let answer = stage.post_call_notify_with(&json!({"call_id": call_id, "phone_number": phone})).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.correlation_id().unwrap().to_owned()
}

/// Waits until the status page of the request says `expected`, and returns it.
async fn page(stage: &Stage, correlation_id: &str, expected: &str) -> serde_json::Value {
    let look = async || {
        let page = stage.notification(correlation_id).await?;
        Ok((page.body["status"] == expected).then_some(page.body))
    };
    stage.wait_for(format!("the status {expected}"), SOON, look).await.unwrap()
}

#[tokio::test]
async fn a_call_whose_row_is_late_is_waited_for_and_told() {
    // Patience as it is in production: how late the row is here depends on how busy the machine is.
    let stage = Stage::shared("conversations", WorldConfig::default).await;
    let phone = stage.stranger();
    let late = format!("late-{}", Uuid::new_v4().simple());
    assert_eq!(stage.notification("never-asked").await.unwrap().status, 404);
    let correlation_id = ask_for(&stage, &late, &phone).await;
    page(&stage, &correlation_id, "call_not_found").await;
    let call = stage.seed_call(&CallSeed::new(&phone)).await.unwrap();
    stage.execute("update voice_calls set provider_call_id = $1 where id = $2", &[&late, &call.id]).await.unwrap();
    let page = page(&stage, &correlation_id, "done").await;
    assert_eq!(page["call_id"], call.id.to_string());
    assert_eq!(page["error"], serde_json::Value::Null);
    stage.delivered(&phone, "sms delivered 1").await;
}

#[tokio::test]
async fn a_call_that_never_appears_becomes_a_dead_letter_with_an_alert_that_names_what_was_tried() {
    let stage = stage().await;
    let correlation_id = ask_for(&stage, &Uuid::new_v4().to_string(), &stage.stranger()).await;
    let page = page(&stage, &correlation_id, "failed").await;
    assert_eq!(page["error"], "call_not_found");
    let letter = stage
        .row(&format!("select id, queue, reason from dead_letters where correlation_id = '{correlation_id}'"))
        .await;
    assert_eq!(letter["queue"], "post-call-notify");
    assert_eq!(letter["reason"], "call_not_found");
    let alert =
        stage.row("select severity, details from alerts where kind = 'dead_letter' and resolved_at is null").await;
    assert_eq!(alert["severity"], "critical");
    assert!(
        alert["details"]["tried"].as_array().unwrap().contains(&json!("voice_calls.provider_call_id")),
        "{alert:?}"
    );
    let look = async || {
        let said = stage.story(&correlation_id);
        let mut lines = said.iter().filter(|line| line["event"] == "CALL_NOT_FOUND");
        Ok(lines.any(|line| line["level"] == "error").then_some(()))
    };
    stage.wait_for("an error line about the call", SOON, look).await.unwrap();
}

#[tokio::test]
async fn a_call_is_told_once_however_often_it_is_asked_for() {
    let stage = stage().await;
    let phone = stage.stranger();
    let call = stage.seed_call(&CallSeed::new(&phone)).await.unwrap();
    let mut asked = Vec::new();
    for _ in 0..5 {
        asked.push(stage.ask(&call).await.correlation_id);
    }
    stage
        .until(&format!(
            "select count(*) = 4 from notification_requests where call_id = '{}' and status = 'duplicate'",
            call.id
        ))
        .await;
    stage.delivered(&phone, "sms delivered 1").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1);
    let mut firsts = 0;
    for correlation_id in &asked {
        let page = page(&stage, correlation_id, "done").await;
        if page["duplicate_of"].is_null() {
            firsts += 1;
        } else {
            assert!(asked.iter().any(|id| page["duplicate_of"] == *id.as_str()), "{page}");
        }
    }
    assert_eq!(firsts, 1);
}

#[tokio::test]
async fn an_operator_has_a_summary_sent_once_more() {
    let stage = stage().await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.delivered(&phone, "sms delivered 1").await;
    assert_eq!(stage.ask(&told.call).await.call.id, told.call.id);
    stage.delivered(&phone, "sms delivered 1").await;
    let again = "select public.resend_call_notification($1, 'she lost her phone')";
    stage.execute(again, &[&told.call.id]).await.unwrap();
    stage.cron().await.unwrap();
    stage.delivered(&phone, "sms delivered 1, sms delivered 1 possible-duplicate").await;
    let texts: Vec<String> = stage.mtn().messages_to(&phone).into_iter().map(|sms| sms.text).collect();
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[0], texts[1], "the summary is not made anew");
    let correlation = stage.value("select correlation_id from call_notification_resends").await;
    page(&stage, correlation.as_str().unwrap(), "done").await;
}

#[tokio::test]
async fn both_spellings_and_every_kind_of_id_name_the_same_call() {
    let stage = stage().await;
    for by in ["summary", "call", "provider", "mtn"] {
        let phone = stage.stranger();
        let seed = CallSeed::new(&phone).has_whatsapp(false).summary("House in Remera", &["Budget: 300k"], None);
        let call = stage.seed_call(&seed).await.unwrap();
        let id = match by {
            "summary" => {
                let id = stage.value(&format!("select id from call_summaries where call_id = '{}'", call.id)).await;
                id.as_str().unwrap().to_owned()
            }
            "call" => call.id.to_string(),
            "provider" => call.provider_call_id.clone(),
            _ => {
                let sid = format!("mtn-{}", call.id.simple());
                stage
                    .execute("update voice_calls set mtn_call_sid = $1 where id = $2", &[&sid, &call.id])
                    .await
                    .unwrap();
                sid
            }
        };
        let body = if by == "call" {
            json!({"callId": id, "profileId": call.profile_id, "phoneNumber": phone, "correlationId": format!("mine-{by}")})
        } else {
            json!({"call_id": id, "profile_id": call.profile_id, "phone_number": phone, "correlation_id": format!("mine-{by}")})
        };
        let answer = stage.post_call_notify_with(&body).await.unwrap();
        assert_eq!(
            (answer.status, answer.correlation_id()),
            (202, Some(format!("mine-{by}").as_str())),
            "{}",
            answer.body
        );
        let text = stage.sms_to(&phone, 1).await;
        assert!(text.contains("House in Remera") && text.contains("Budget: 300k"), "{by}: {text}");
        page(&stage, &format!("mine-{by}"), "done").await;
    }
}

#[tokio::test]
async fn without_number_or_profile_the_caller_is_told_and_nobody_where_there_is_no_number() {
    let stage = stage().await;
    let phone = stage.stranger();
    let call = stage.seed_call(&CallSeed::new(&phone)).await.unwrap();
    let answer = stage.post_call_notify_with(&json!({"callId": call.id})).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    stage.sms_to(&phone, 1).await;

    let call = stage.seed_call(&CallSeed::new("anonymous")).await.unwrap();
    let answer = stage.post_call_notify_with(&json!({"callId": call.id})).await.unwrap();
    page(&stage, answer.correlation_id().unwrap(), "no_recipient").await;
}

async fn summary_source(stage: &Stage, call: Uuid) -> String {
    let source = stage.value(&format!("select source from call_summaries where call_id = '{call}'")).await;
    source.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_summary_in_the_database_is_sent_as_it_is_without_asking_the_model() {
    let stage = stage().await;
    let phone = stage.stranger();
    let seed = CallSeed::new(&phone).summary(
        "Wants to list a plot",
        &["Plot of 600 m2 in Bugesera"],
        Some("We call on Monday"),
    );
    let told = stage.told_and_done(&seed).await;
    let text = stage.sms_to(&phone, 1).await;
    for fact in ["Wants to list a plot", "Plot of 600 m2 in Bugesera", "We call on Monday"] {
        assert!(text.contains(fact), "{text}");
    }
    let call = told.call.id.to_string();
    assert!(!stage.openai().questions().iter().any(|q| q.body.contains("Bugesera") || q.body.contains(&call)));
}

#[tokio::test]
async fn the_model_writes_the_summary_from_the_transcript() {
    let stage = stage().await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone)).await;
    assert!(stage.sms_to(&phone, 1).await.contains("300k"));
    assert_eq!(summary_source(&stage, told.call.id).await, "model");
}

#[tokio::test]
async fn a_call_without_a_transcript_is_summarised_from_its_facts() {
    let stage = stage().await;
    let phone = stage.stranger();
    let told = stage.told_and_done(&CallSeed::new(&phone).transcript(&[])).await;
    assert!(stage.sms_to(&phone, 1).await.contains("EasyMO"));
    assert_eq!(summary_source(&stage, told.call.id).await, "facts");
}

#[tokio::test]
async fn whatever_is_wrong_with_the_model_the_person_gets_a_plain_summary() {
    let stage = Stage::alone("notify", impatient).await;
    stage.without_breakers().await;
    let openai = stage.openai();
    let wrong: [(&str, &dyn Fn()); 9] = [
        ("500", &|| drop(openai.fail_with(Fault::Status500Before).on("call_summary").times(2))),
        ("503", &|| drop(openai.fail_with(Fault::Status503).on("call_summary").times(2))),
        ("429", &|| drop(openai.fail_with(Fault::Status429).on("call_summary").times(2))),
        ("cut", &|| drop(openai.fail_with(Fault::CutBefore).on("call_summary").times(2))),
        ("no JSON", &|| drop(openai.fail_with(Fault::NonJson).on("call_summary").times(2))),
        ("truncated", &|| drop(openai.fail_with(Fault::Truncated).on("call_summary").times(2))),
        ("a refusal", &|| openai.next_for("call_summary", Script::Refusal("I cannot".to_owned()))),
        ("half an answer", &|| openai.next_for("call_summary", Script::Incomplete("{\"headline\": \"Ho".to_owned()))),
        ("another schema", &|| openai.next_for("call_summary", Script::Json(json!({"weather": "fine"})))),
    ];
    for (what, order) in wrong {
        let phone = stage.stranger();
        order();
        let told = stage.told_and_done(&CallSeed::new(&phone)).await;
        let text = stage.sms_to(&phone, 1).await;
        assert!(text.contains("Thank you for calling EasyMO"), "{what}: {text}");
        assert_eq!(summary_source(&stage, told.call.id).await, "facts", "{what}");
        openai.control().clear_faults();
    }
    // One failure is made good by the second try.
    for fault in [Fault::Status500Before, Fault::Status429, Fault::CutBefore, Fault::NonJson] {
        let phone = stage.stranger();
        openai.fail_with(fault).on("call_summary");
        let told = stage.told_and_done(&CallSeed::new(&phone)).await;
        assert_eq!(summary_source(&stage, told.call.id).await, "model", "{fault}");
    }
    assert_eq!(
        openai.questions().iter().filter(|q| q.status == Some(400)).count(),
        0,
        "the model refused the form of a request"
    );
}
