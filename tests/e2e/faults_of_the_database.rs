//! PostgREST's faults: each RPC refused, cut, lost after its commit, carried out twice; once, and for longer than anybody
//! tries. Everything accepted ends as it should, and nobody gets anything twice.

use std::time::Duration;

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::{ServiceKey, WorldConfig};

use crate::stage::Stage;

fn quick() -> WorldConfig {
    WorldConfig::default().var("DATABASE_TIMEOUT_MS", 1200).var("RETRY_BASE_SECONDS", 1)
}

/// The same with the other kind of service key.
fn opaque() -> WorldConfig {
    WorldConfig { service_key: ServiceKey::Opaque, ..quick() }
}

/// Tries of one RPC within one piece of work.
const TRIES: u32 = 3;

const FAULTS: [Fault; 14] = [
    Fault::Status401,
    Fault::Status429,
    Fault::Status500Before,
    Fault::Status500After,
    Fault::Status503,
    Fault::Status504,
    Fault::Pgrst002,
    Fault::TimeoutBefore,
    Fault::TimeoutAfter,
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::Truncated,
    Fault::NonJson,
    Fault::Duplicate,
];

/// A call is told about, and the answer is in the database.
async fn call(stage: &Stage, phone: &str) {
    let seed = CallSeed::new(phone).on_whatsapp_now().summary("House in Kimironko", &["Budget: 300k"], None);
    let told = stage.told_and_done(&seed).await;
    stage.delivered(phone, "sms delivered 1, whatsapp delivered 1").await;
    let claim = stage
        .row(&format!("select attempt, possible_duplicate from call_notifications where call_id = '{}'", told.call.id))
        .await;
    assert_eq!((&claim["attempt"], &claim["possible_duplicate"]), (&1.into(), &false.into()));
}

async fn message(stage: &Stage, phone: &str) {
    assert!(stage.says(phone, "I look for a house in Remera").await.contains("Remera"));
    stage.delivered(phone, "sms delivered 1").await;
    let turn = format!(
        "conversation_turns t join profiles p on p.id = t.profile_id where p.phone_number = '{phone}' and t.status = 'answered'"
    );
    stage.until(&format!("select count(*) = 1 from {turn}")).await;
}

/// Nobody was sent anything twice, nobody was forgotten, and nothing is left open.
async fn all_is_well(stage: &Stage, phone: &str, what: &str) {
    let (sms, whatsapp) = (stage.mtn().messages_to(phone).len(), stage.whatsapp().messages_to(phone).len());
    assert_eq!((sms, whatsapp <= 1), (1, true), "{what}: {}", stage.outbox(phone));
    assert_eq!(stage.count("message_delivery_log where possible_duplicate").await, 0, "{what}");
    assert_eq!(stage.count("dead_letters").await, 0, "{what}");
}

#[tokio::test]
async fn one_fault_of_the_database_at_any_call_of_a_notification_costs_nothing() {
    let stage = Stage::alone("database", quick).await;
    for rpc in ["begin_call_notification", "finish_call_notification", "record_delivery_events"] {
        for fault in FAULTS {
            let phone = stage.stranger();
            stage.gateway().fail_with(fault).on(rpc);
            call(&stage, &phone).await;
            all_is_well(&stage, &phone, &format!("{rpc} {fault}")).await;
            stage.gateway().clear_faults();
        }
    }
}

#[tokio::test]
async fn one_fault_of_the_database_at_any_call_of_a_turn_costs_nothing() {
    let stage = Stage::alone("database-2", opaque).await;
    for rpc in ["begin_sms_turn", "finish_sms_turn"] {
        for fault in FAULTS {
            let phone = stage.stranger();
            stage.gateway().fail_with(fault).on(rpc);
            message(&stage, &phone).await;
            all_is_well(&stage, &phone, &format!("{rpc} {fault}")).await;
            stage.gateway().clear_faults();
        }
    }
}

#[tokio::test]
async fn a_database_that_is_away_for_longer_than_anybody_tries_costs_time_only() {
    let stage = Stage::alone("database", quick).await;
    let mut people = Vec::new();
    for fault in [Fault::Status503, Fault::Pgrst002, Fault::CutAfter] {
        for rpc in ["begin_call_notification", "finish_call_notification", "begin_sms_turn", "finish_sms_turn"] {
            let phone = stage.stranger();
            stage.gateway().fail_with(fault).on(rpc).times(TRIES);
            if rpc.contains("sms") {
                stage.sms_from(&phone, "I look for a house in Remera").await.unwrap();
            } else {
                stage.told(&CallSeed::new(&phone).summary("House in Kimironko", &[], None)).await;
            }
            // One after the other, so that each fault meets the work it is meant for.
            let look = async || {
                let left = stage
                    .gateway()
                    .requests()
                    .iter()
                    .filter(|r| r.fault.as_deref() == Some(fault.to_string().as_str()))
                    .count();
                Ok((left >= (people.len() % 4 + 1) * TRIES as usize).then_some(()))
            };
            stage.wait_for(format!("{rpc} met {fault}"), Duration::from_secs(20), look).await.unwrap();
            people.push((phone, format!("{rpc} {fault}")));
        }
    }
    for (phone, what) in &people {
        stage.delivered(phone, "sms delivered 1").await;
        all_is_well(&stage, phone, what).await;
    }
    stage.until("select not exists (select from conversation_turns where status <> 'answered') and not exists (select from call_notifications where status <> 'done')").await;
}

#[tokio::test]
async fn while_the_database_is_gone_everything_is_accepted_and_done_when_it_is_back() {
    let stage = Stage::alone("database-2", opaque).await;
    let (caller, writer) = (stage.stranger(), stage.stranger());
    let call = stage.seed_call(&CallSeed::new(&caller)).await.unwrap();
    stage.gateway_server().go_down().await;
    stage.ask(&call).await;
    assert_eq!(stage.sms_from(&writer, "I look for a house in Remera").await.unwrap().status, Some(200));
    let retried = async || {
        let logs = stage.logs()?;
        Ok((logs.iter().filter(|line| line.event().as_deref() == Some("WORK_RETRIED")).count() >= 2).then_some(()))
    };
    stage.wait_for("both to be put back onto their queues", crate::stage::SOON, retried).await.unwrap();
    stage.gateway_server().come_back().await.unwrap();
    stage.delivered(&caller, "sms delivered 1").await;
    stage.delivered(&writer, "sms delivered 1").await;
}

#[tokio::test]
async fn a_retry_is_recorded_once_whatever_the_database_does_to_its_calls() {
    let stage = Stage::alone("database", quick).await;
    stage.without_breakers().await;
    for rpc in ["claim_due_deliveries", "record_delivery_results", "sweep"] {
        for fault in [Fault::Status503, Fault::CutBefore, Fault::CutAfter, Fault::Truncated, Fault::Duplicate] {
            let phone = stage.stranger();
            stage.mtn().fail_with(Fault::Status503).on(&phone);
            stage.told_and_done(&CallSeed::new(&phone).summary("House in Kimironko", &[], None)).await;
            stage.gateway().fail_with(fault).on(rpc);
            let look = async || {
                stage.cron().await?;
                Ok((stage.deliveries(&phone).await == "sms delivered 2").then_some(()))
            };
            let waited = stage.wait_for("the retry", crate::stage::SOON, look).await;
            assert!(waited.is_ok(), "{rpc} {fault}: {}", stage.deliveries(&phone).await);
            all_is_well(&stage, &phone, &format!("{rpc} {fault}")).await;
            stage.gateway().clear_faults();
        }
    }
}
