//! The queue refuses, the database is away, the model is away: nothing that was accepted is lost.

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;

use crate::stage::Stage;

const QUEUES: [&str; 2] = ["post-call-notify", "sms-inbound"];

fn without_queues() -> WorldConfig {
    WorldConfig { withhold_queues: QUEUES.map(str::to_owned).to_vec(), ..WorldConfig::default() }
}

#[tokio::test]
async fn what_the_queue_refuses_is_a_job_row_and_what_both_refuse_stays_with_the_sender() {
    let stage = Stage::alone("no-queues", without_queues).await;
    let (caller, writer) = (stage.stranger(), stage.stranger());

    // The queue is away: Postgres keeps the work.
    stage.told(&CallSeed::new(&caller)).await;
    assert_eq!(stage.sms_from(&writer, "I look for a house in Remera").await.unwrap().status, Some(200));
    assert_eq!(stage.count("jobs where status = 'pending'").await, 2);
    assert_eq!(stage.mtn().messages().len(), 0);

    // A sweep while the queue is still away loses nothing.
    stage.cron().await.unwrap();
    assert_eq!(stage.count("jobs where status = 'pending'").await, 2);

    // Both are away: the sender is told to keep it, and when to come again.
    stage.gateway_server().go_down().await;
    let refused = stage.sms_from(&writer, "for 400k").await.unwrap();
    assert_eq!(refused.status, Some(503), "{}", refused.answer);
    let call = stage.seed_call(&CallSeed::new(&caller)).await.unwrap();
    let answer = stage.post_call_notify(&call).await.unwrap();
    assert_eq!(answer.status, 503, "{}", answer.body);
    let header = |name: &str| answer.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert!(
        header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok_and(|s| s > 0)),
        "{:?}",
        answer.headers
    );
    assert_eq!(header("content-type"), Some("application/problem+json"));
    stage.gateway_server().come_back().await.unwrap();
    assert_eq!(stage.count("jobs").await, 2, "what was refused is not stored");

    // All is well again: the sweep puts the rows onto their queues.
    stage.edge().unwrap().withhold(&[]).await.unwrap();
    stage.execute("update jobs set lease_until = null", &[]).await.unwrap();
    stage.cron().await.unwrap();
    stage.delivered(&caller, "sms delivered 1").await;
    stage.delivered(&writer, "sms delivered 1").await;
    assert!(stage.sms_to(&writer, 1).await.contains("Remera"));
    assert_eq!(stage.count("jobs where status = 'done'").await, 2);
}

#[tokio::test]
async fn a_job_row_that_no_queue_can_take_becomes_a_dead_letter() {
    let stage = Stage::alone("too-large", without_queues).await;
    let sql = "insert into jobs (queue, payload, correlation_id) values ('sms-inbound',
                 jsonb_build_object('v', 1, 'correlation_id', 'too-large', 'first_seen_at', now(), 'body', jsonb_build_object('text', repeat('x', 200000))), 'too-large')";
    stage.execute(sql, &[]).await.unwrap();
    stage.cron().await.unwrap();
    let letter = stage.row("select queue, reason, message_id like 'job:%' as of_job from dead_letters where correlation_id = 'too-large'").await;
    assert_eq!(
        (letter["queue"].as_str(), letter["reason"].as_str(), letter["of_job"].as_bool()),
        (Some("sms-inbound"), Some("too_large_for_its_queue"), Some(true))
    );
    assert_eq!(stage.count("jobs where status = 'done'").await, 1);
    stage.until("select count(*) = 1 from alerts where kind = 'dead_letter' and resolved_at is null").await;
}

#[tokio::test]
async fn what_a_queue_gave_up_is_a_dead_letter_whatever_it_holds() {
    let stage = Stage::alone("given-up", WorldConfig::default).await;
    let envelope =
        r#"{"v": 1, "correlation_id": "given-up", "first_seen_at": "2026-11-21T08:00:00Z", "body": {"text": "x"}}"#;
    let absurd = r#"{"correlation_id": "absurd", "body": 1e999999}"#;
    for text in [envelope, absurd, "no JSON at all", "{\"nul\": \"\\u0000\"}"] {
        stage.edge().unwrap().enqueue("delivery-retry", "SMS_INBOUND_DLQ", text).await.unwrap();
    }
    stage
        .until("select count(*) = 4 from dead_letters where queue = 'sms-inbound' and reason = 'retries_exhausted'")
        .await;
    let letter = stage.row("select payload, attempts from dead_letters where correlation_id = 'given-up'").await;
    assert_eq!(letter["payload"]["body"]["text"], "x");
    assert_eq!(letter["attempts"], 101);
    let kept = stage.value("select jsonb_agg(payload #>> '{}' order by payload #>> '{}') from dead_letters where jsonb_typeof(payload) = 'string'").await;
    assert!(kept.as_array().unwrap().iter().any(|text| text == "no JSON at all"), "{kept}");
    assert!(kept.as_array().unwrap().iter().any(|text| text.as_str().unwrap().contains("1e999999")), "{kept}");
    // One that is open is told again, not made again.
    assert_eq!(
        stage.value("select occurrences from alerts where kind = 'dead_letter' and resolved_at is null").await,
        4
    );
}

#[tokio::test]
async fn while_the_model_is_away_an_answer_is_tried_again_and_then_apologised_for() {
    let stage = Stage::alone("no-model", WorldConfig::default).await;
    stage.without_breakers().await;
    let phone = stage.stranger();
    stage.openai().fail_with(Fault::Status500Before).on("text").always();
    stage.sms_from(&phone, "I look for a house in Remera").await.unwrap();
    stage.until("select bool_and(status = 'released' and claims = 1) from conversation_turns").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 0, "not yet");
    // Keywords need no model.
    let other = stage.stranger();
    assert!(stage.says(&other, "HELP").await.contains("STOP"));

    let apology = stage.sms_to(&phone, 1).await;
    assert!(apology.contains("sorry"), "{apology}");
    stage.delivered(&phone, "sms delivered 1").await;
    let turn = stage
        .row("select claims, status from conversation_turns where kind = 'conversation' and owed_for is null")
        .await;
    assert_eq!((&turn["claims"], &turn["status"]), (&3.into(), &"answered".into()));
    let source = stage
        .value("select source from conversation_messages where direction = 'outbound' and kind = 'conversation'")
        .await;
    assert_eq!(source, "fallback");

    // One that is away for a moment costs a pause, not the answer.
    stage.openai().control().clear_faults();
    stage.openai().fail_with(Fault::Status500Before).on("text").times(2);
    let answer = stage.says(&phone, "My budget is 400k").await;
    assert!(answer.contains("400k") || answer.contains("Remera"), "{answer}");
}
