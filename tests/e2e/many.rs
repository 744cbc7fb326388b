//! Many at once: copies of one message, and a carrier that fails for everybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ihuza_sim::control::Fault;
use ihuza_sim::edge::client;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::json;
use tokio::task::JoinSet;

use crate::stage::Stage;

/// How many copies: `IHUZA_E2E_COPIES`, else 1,000.
fn copies() -> usize {
    std::env::var("IHUZA_E2E_COPIES").ok().and_then(|text| text.parse().ok()).unwrap_or(1000)
}

#[tokio::test]
async fn a_thousand_copies_of_one_sms_are_one_turn_and_one_answer() {
    let stage = Stage::alone("many", WorldConfig::default).await;
    let phone = stage.stranger();
    let url: Arc<str> =
        format!("{}/sms-inbound-webhook", stage.edge().unwrap().url("sms-inbound-webhook").unwrap()).into();
    let secret: Arc<str> = stage.secret("MTN_WEBHOOK_SECRET").unwrap().into();
    let body: Arc<str> = json!({"senderAddress": phone.trim_start_matches('+'), "receiverAddress": "8080", "messageId": format!("copy-{phone}"),
                                "message": "I look for a house in Remera"}).to_string().into();
    let http = client().unwrap();
    let since = Instant::now();
    let mut posts = JoinSet::new();
    for _ in 0..copies() {
        let (http, url, secret, body) = (http.clone(), url.clone(), secret.clone(), body.clone());
        posts.spawn(async move {
            let request =
                http.post(&*url).bearer_auth(secret).header("content-type", "application/json").body(body.to_string());
            request.send().await.map(|answer| answer.status().as_u16())
        });
    }
    let mut taken = 0;
    while let Some(answer) = posts.join_next().await {
        assert_eq!(answer.unwrap().unwrap(), 200);
        taken += 1;
    }
    eprintln!("counted {taken} copies of one SMS, accepted in {:?}", since.elapsed());
    // The queue has brought all of them.
    let through = async || {
        let logs = stage.logs()?;
        let skipped = logs.iter().filter(|line| line.text.contains("SMS_INBOUND_SKIPPED")).count();
        Ok((skipped + 1 >= taken).then_some(()))
    };
    stage.wait_for("every copy to be looked at", Duration::from_secs(120), through).await.unwrap();
    stage.delivered(&phone, "sms delivered 1").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1);
    assert_eq!(stage.openai().questions().len(), 1);
    for table in
        ["conversation_turns", "conversation_messages where direction = 'inbound'", "omnichannel_sessions", "profiles"]
    {
        assert_eq!(stage.count(table).await, 1, "{table}");
    }
    eprintln!("all done after {:?}", since.elapsed());
}

fn breaking() -> WorldConfig {
    WorldConfig::default().var("RETRY_BASE_SECONDS", 1)
}

/// Nobody else plays here, and what carriers did in plays before counts for no breaker.
async fn stage_of_breakers() -> Stage {
    let stage = Stage::alone("breaker", breaking).await;
    stage
        .execute("update provider_health set state = 'closed', open_until = null, probe_token = null, changed_at = clock_timestamp()", &[])
        .await
        .unwrap();
    stage
}

async fn gate(stage: &Stage, provider: &str) -> String {
    let state = stage.value(&format!("select state from provider_health where provider = '{provider}'")).await;
    state.as_str().unwrap().to_owned()
}

/// Half a minute passes.
async fn pause_is_over(stage: &Stage, provider: &str) {
    let sql =
        format!("update provider_health set open_until = now() - interval '1 second' where provider = '{provider}'");
    stage.execute(&sql, &[]).await.unwrap();
    stage
        .execute("update message_delivery_log set next_attempt_at = now() where next_attempt_at is not null", &[])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_failing_carrier_gets_a_pause_the_other_channel_carries_and_one_probe_ends_it() {
    let stage = stage_of_breakers().await;
    let seed = |phone: &str| CallSeed::new(phone).summary("House in Kimironko", &["Budget: 300k"], None);
    stage.mtn().fail_with(Fault::Status503).on("sms/outbound").always();
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let phone = stage.stranger();
        stage.told_and_done(&seed(&phone)).await;
        waiting.push(phone);
    }
    assert_eq!(gate(&stage, "mtn").await, "open");
    stage.until("select count(*) = 1 from alerts where kind = 'provider_open' and resolved_at is null").await;

    // During the pause nobody knocks: the other channel carries at once, the rest waits.
    let knocks = || stage.mtn().control().calls("sms/outbound");
    let before = knocks();
    let both = stage.stranger();
    stage.told_and_done(&seed(&both).on_whatsapp_now()).await;
    stage.delivered(&both, "sms queued 0, whatsapp delivered 1").await;
    let only = stage.stranger();
    stage.told_and_done(&seed(&only)).await;
    stage.delivered(&only, "sms queued 0").await;
    stage.cron().await.unwrap();
    assert_eq!(knocks(), before);

    // The pause is over: one probe, though eight messages wait. It fails, and the pause doubles.
    pause_is_over(&stage, "mtn").await;
    stage.cron().await.unwrap();
    assert_eq!(knocks(), before + 1, "one probe");
    let health = stage.row("select state, open_seconds from provider_health where provider = 'mtn'").await;
    assert_eq!((health["state"].as_str(), health["open_seconds"].as_u64()), (Some("open"), Some(60)));

    // The next one succeeds: the gate is closed again, and everything goes out.
    stage.mtn().control().clear_faults();
    pause_is_over(&stage, "mtn").await;
    stage.cron().await.unwrap();
    assert_eq!(gate(&stage, "mtn").await, "closed");
    stage
        .execute("update message_delivery_log set next_attempt_at = now() where next_attempt_at is not null", &[])
        .await
        .unwrap();
    stage.cron().await.unwrap();
    waiting.extend([both, only]);
    for phone in &waiting {
        stage.until(&format!("select bool_and(status = 'delivered' and not possible_duplicate) from message_delivery_log where recipient = '{phone}'")).await;
        assert_eq!(stage.mtn().messages_to(phone).len(), 1);
    }
    stage.until("select count(*) = 0 from alerts where kind = 'provider_open' and resolved_at is null").await;
}

#[tokio::test]
async fn one_sweep_reaches_what_is_due_behind_a_backlog_that_it_settles() {
    let stage = stage_of_breakers().await;
    let phone = stage.stranger();
    stage.mtn().fail_with(Fault::Status503).on(&phone);
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.until(&format!("select count(*) = 1 from message_delivery_attempts a join message_delivery_log l on l.id = a.delivery_id where l.recipient = '{phone}' and a.outcome = 'retryable'")).await;
    // Sent a second time already: there is nothing left to try with any of them.
    stage
        .execute(
            "insert into message_delivery_log (channel, provider, status, next_attempt_at, deadline_at, possible_duplicate, correlation_id)
             select 'sms', 'mtn', 'unknown', now() - interval '1 minute', now() + interval '1 hour', true, 'backlog' from generate_series(1, 60)",
            &[],
        )
        .await
        .unwrap();
    stage
        .execute("update message_delivery_log set next_attempt_at = now() where recipient = $1", &[&phone])
        .await
        .unwrap();
    stage.cron().await.unwrap();
    stage.delivered(&phone, "sms delivered 2").await;
    assert_eq!(
        stage.count("message_delivery_log where correlation_id = 'backlog' and next_attempt_at is null").await,
        60
    );
}

#[tokio::test]
async fn a_failing_model_gets_a_pause_in_which_nobody_asks_it() {
    let stage = stage_of_breakers().await;
    stage.openai().fail_with(Fault::Status500Before).always();
    for _ in 0..5 {
        stage.told_and_done(&CallSeed::new(&stage.stranger())).await;
    }
    assert_eq!(gate(&stage, "openai").await, "open");
    let before = stage.openai().questions().len();
    let phone = stage.stranger();
    stage.told_and_done(&CallSeed::new(&phone)).await;
    assert!(stage.sms_to(&phone, 1).await.contains("Thank you for calling"));
    assert_eq!(stage.openai().questions().len(), before);
    stage.openai().control().clear_faults();
    pause_is_over(&stage, "openai").await;
    let phone = stage.stranger();
    stage.told_and_done(&CallSeed::new(&phone)).await;
    assert!(stage.sms_to(&phone, 1).await.contains("300k"));
    assert_eq!(gate(&stage, "openai").await, "closed");
}

#[tokio::test]
async fn refusals_of_one_recipient_never_open_the_breaker() {
    let stage = stage_of_breakers().await;
    for _ in 0..8 {
        let phone = stage.stranger();
        // 1000: user not found.
        stage.mtn().fail_with(Fault::Code(1000)).on(&phone);
        stage.told_and_done(&CallSeed::new(&phone).summary("House", &[], None)).await;
        stage
            .until(&format!(
                "select status in ('failed', 'undeliverable') from message_delivery_log where recipient = '{phone}'"
            ))
            .await;
    }
    assert_eq!(gate(&stage, "mtn").await, "closed");
}

#[tokio::test]
async fn a_template_that_is_not_approved_costs_nobody_else_their_whatsapp() {
    let stage = stage_of_breakers().await;
    let phone = stage.stranger();
    // 132001: the template is not approved in this language.
    stage.whatsapp().fail_with(Fault::Code(132_001)).on(&phone).always();
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp failed 1").await;
    stage.until("select count(*) = 1 from alerts where kind = 'delivery_config' and resolved_at is null").await;
    assert_eq!(gate(&stage, "whatsapp").await, "closed");
    let other = stage.stranger();
    stage.told_and_done(&CallSeed::new(&other).on_whatsapp_now()).await;
    stage.delivered(&other, "sms delivered 1, whatsapp delivered 1").await;
}

/// More would wait inside the runtime while their time limit runs, and then count as unknown.
#[tokio::test]
async fn slow_carriers_are_asked_five_things_at_a_time_by_one_batch() {
    const SLOW: Duration = Duration::from_millis(1500);
    let stage = Stage::alone("slow", || WorldConfig::default().var("PROVIDER_TIMEOUT_MS", 6000)).await;
    stage.mtn().fail_with(Fault::Slow).on("outbound").delay(SLOW).always();
    stage.whatsapp().fail_with(Fault::Slow).on("messages").delay(SLOW).always();
    // The first takes the queue; the others pile up behind it and are one batch.
    for _ in 0..11 {
        stage.told(&CallSeed::new(&stage.stranger()).on_whatsapp_now()).await;
    }
    stage.until("select count(*) = 11 from call_notifications where status = 'done'").await;
    assert_eq!(stage.count("message_delivery_log where status in ('sent', 'delivered', 'read')").await, 22);
    assert_eq!(stage.count("message_delivery_attempts where outcome = 'unknown'").await, 0);
    let mut asked = stage.mtn().control().requests();
    asked.extend(stage.whatsapp().control().requests());
    let sent: Vec<_> = asked.iter().filter(|request| request.fault.is_some()).map(|request| request.at).collect();
    assert_eq!(sent.len(), 22);
    let at_once = |from: &chrono::DateTime<chrono::Utc>| {
        sent.iter().filter(|at| (0..1400).contains(&(**at - *from).num_milliseconds())).count()
    };
    assert_eq!(sent.iter().map(at_once).max(), Some(5), "{sent:?}");
}
