//! The carriers' faults: one table of channel, situation and fault, every cell of it asserted.
//!
//! What is asserted: how many requests the carrier received, how many messages it really took, what became of each of our
//! messages and after how many attempts, and whether one that may arrive twice is marked. All cells of a half run side by
//! side in one world; they are read when the world is at rest, so that nothing can still be sent again.

use std::collections::BTreeMap;
use std::time::Duration;

use ihuza_sim::control::{Control, Fault};
use ihuza_sim::mtn::Reports;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::whatsapp::Statuses;
use ihuza_sim::world::WorldConfig;

use crate::stage::Stage;

/// Everything quick, so that a retry, a lease and a wait fit into a test.
fn quick() -> WorldConfig {
    let config = WorldConfig { cron_every: Some(Duration::from_millis(500)), ..WorldConfig::default() };
    config
        .var("LEASE_SECONDS", 8)
        .var("UNKNOWN_WAIT_SECONDS", 2)
        .var("PROVIDER_TIMEOUT_MS", 1500)
        .var("RETRY_BASE_SECONDS", 1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Channel {
    Sms,
    Whatsapp,
}

use Channel::{Sms, Whatsapp};

/// What else could carry the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Situation {
    /// Nothing.
    Alone,
    /// The other channel, which goes out at the same time.
    Beside,
    /// The other channel, should this one fail.
    Instead,
}

use Situation::{Alone, Beside, Instead};

/// What a fault means, however it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Certainly not taken.
    Refused,
    /// Not taken, and nobody can know.
    Lost,
    /// Taken, and nobody can know before a report comes.
    Taken,
    /// Nothing is wrong.
    Fine,
}

use Meaning::{Fine, Lost, Refused, Taken};

const FAULTS: [(Fault, Meaning); 13] = [
    (Fault::Status429, Refused),
    (Fault::Status429RetryAfter, Refused),
    (Fault::Status503, Refused),
    (Fault::Status500Before, Lost),
    (Fault::TimeoutBefore, Lost),
    (Fault::CutBefore, Lost),
    (Fault::Status500After, Taken),
    (Fault::TimeoutAfter, Taken),
    (Fault::CutAfter, Taken),
    (Fault::Truncated, Taken),
    (Fault::NonJson, Taken),
    (Fault::Duplicate, Fine),
    (Fault::Slow, Fine),
];

/// What must be true of a cell in the end.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Requests that the carrier of the fault received, and messages that it took.
    requests: usize,
    taken: usize,
    /// The message on the channel of the fault.
    here: String,
    /// The message on the other one; empty where there is none.
    there: String,
    /// Every request to the carrier had the same correlator.
    one_correlator: bool,
}

/// DESIGN: `refused` is sent again; `lost` and `taken` are not, before a report or the end of the wait; then the other
/// channel carries the message, or where there is none, it is sent once more and marked.
fn expected(situation: Situation, meaning: Meaning, reported: bool) -> Outcome {
    let good = if reported { "delivered" } else { "sent" };
    let there = match situation {
        Alone | Instead => String::new(),
        Beside => format!("{good} 1"),
    };
    let (requests, taken, here, there) = match (meaning, situation) {
        (Refused, _) => (2, 1, format!("{good} 2"), there),
        (Fine, _) => (1, 1, format!("{good} 1"), there),
        (Taken, _) if reported => (1, 1, "delivered 1".to_owned(), there),
        (Lost, Alone) => (2, 1, format!("{good} 2 possible-duplicate"), there),
        (Taken, Alone) => (2, 2, "sent 2 possible-duplicate".to_owned(), there),
        (Lost, Beside) => (1, 0, "unknown 1".to_owned(), there),
        (Taken, Beside) => (1, 1, "unknown 1".to_owned(), there),
        (Lost, Instead) => (1, 0, "unknown 1".to_owned(), format!("{good} 1 fallback")),
        (Taken, Instead) => (1, 1, "unknown 1".to_owned(), format!("{good} 1 fallback")),
    };
    Outcome { requests, taken, here, there, one_correlator: true }
}

struct Cell {
    channel: Channel,
    situation: Situation,
    fault: Fault,
    meaning: Meaning,
    phone: String,
}

impl Cell {
    /// Orders the fault and sends a message to the person of the cell.
    async fn begin(&self, stage: &Stage) {
        let order = match self.channel {
            Sms => stage.mtn().fail_with(self.fault),
            Whatsapp => stage.whatsapp().fail_with(self.fault),
        };
        let order = order.on(&self.phone);
        drop(match self.fault {
            Fault::Slow => order.delay(Duration::from_millis(500)),
            Fault::Status429RetryAfter => order.delay(Duration::from_secs(1)),
            _ => order,
        });
        let seed = CallSeed::new(&self.phone).summary("House in Kimironko", &["Budget: 300k"], None);
        let seed = match (self.channel, self.situation) {
            (Sms, Alone) => seed.has_whatsapp(false),
            (Whatsapp, Alone) => seed.on_whatsapp_now().allows_sms(false),
            _ => seed.on_whatsapp_now(),
        };
        let call = stage.seed_call(&seed).await.unwrap();
        if self.channel == Whatsapp && self.situation != Beside {
            stage.whatsapp_only(&self.phone).await;
        }
        if self.channel == Sms && self.situation == Instead {
            // An answer goes where the question came from; WhatsApp could carry it.
            stage.sms_from(&self.phone, "I look for a house in Kimironko").await.unwrap();
        } else {
            stage.ask(&call).await;
        }
    }

    async fn outcome(&self, stage: &Stage) -> Outcome {
        let deliveries = stage.deliveries(&self.phone).await;
        let on = |channel: &str| {
            let lines = deliveries.split(", ").filter_map(|line| line.strip_prefix(channel));
            lines.map(str::trim).collect::<Vec<_>>().join(" + ")
        };
        let digits = self.phone.trim_start_matches('+');
        let requests = |control: &Control| -> Vec<String> {
            let all = control.requests();
            // One that met a withdrawn token is made again at once, and no fault.
            let ours = all.iter().filter(|r| r.body.contains(digits) && r.status != Some(401));
            ours.map(|r| correlator(&r.json())).collect()
        };
        let (sms, whatsapp) =
            (stage.mtn().messages_to(&self.phone).len(), stage.whatsapp().messages_to(&self.phone).len());
        let (requests, taken, here, there) = match self.channel {
            Sms => (requests(stage.mtn().control()), sms, on("sms"), on("whatsapp")),
            Whatsapp => (requests(stage.whatsapp().control()), whatsapp, on("whatsapp"), on("sms")),
        };
        let one_correlator = requests.windows(2).all(|pair| pair[0] == pair[1] && !pair[0].is_empty());
        Outcome { requests: requests.len(), taken, here, there, one_correlator }
    }
}

fn correlator(body: &serde_json::Value) -> String {
    let found = body["clientCorrelatorId"].as_str().or(body["biz_opaque_callback_data"].as_str());
    found.unwrap_or_default().to_owned()
}

/// Until nothing waits, is leased or is still to be told: nothing will be sent any more.
async fn at_rest(stage: &Stage) {
    stage
        .until(
            "select not exists (select from message_delivery_log where next_attempt_at is not null)
               and not exists (select from call_notifications where status in ('open', 'released'))
               and not exists (select from conversation_turns where status in ('open', 'released'))
               and not exists (select from conversation_messages where handled_at is null)",
        )
        .await;
}

/// Every cell, with or without reports of the carriers.
async fn table(stage: &Stage, reported: bool) {
    let mut cells = Vec::new();
    for channel in [Sms, Whatsapp] {
        for situation in [Alone, Beside, Instead] {
            for (fault, meaning) in FAULTS {
                cells.push(Cell { channel, situation, fault, meaning, phone: stage.stranger() });
            }
        }
    }
    for cell in &cells {
        cell.begin(stage).await;
    }
    // All asked for is begun, and then ended.
    let calls = cells.iter().filter(|cell| (cell.channel, cell.situation) != (Sms, Instead)).count();
    stage
        .until(&format!(
            "select (select count(*) from call_notifications n join profiles p on p.id = n.profile_id
                      where p.phone_number between '{0}' and '{1}') = {calls}
                and (select count(*) from conversation_turns t join profiles p on p.id = t.profile_id
                      where p.phone_number between '{0}' and '{1}') = {2}",
            cells[0].phone,
            cells[cells.len() - 1].phone,
            cells.len() - calls
        ))
        .await;
    at_rest(stage).await;
    if reported {
        // The last reports are on their way.
        let sql = "select count(*) = 0 from message_delivery_log where direction = 'outbound' and status = 'sent'";
        stage.until(sql).await;
    }
    let mut wrong = BTreeMap::new();
    for cell in &cells {
        let expected = expected(cell.situation, cell.meaning, reported);
        let outcome = cell.outcome(stage).await;
        if outcome != expected {
            let name = format!("{:?} {:?} {}", cell.channel, cell.situation, cell.fault);
            wrong.insert(name, format!("{outcome:?}\n    instead of {expected:?}"));
        }
    }
    let shown: Vec<String> = wrong.iter().map(|(cell, why)| format!("{cell}:\n    {why}")).collect();
    assert!(wrong.is_empty(), "{} of {} cells:\n{}", wrong.len(), cells.len(), shown.join("\n"));
}

#[tokio::test]
async fn every_fault_on_every_channel_while_the_carriers_report() {
    let stage = Stage::alone("failing-carriers", quick).await;
    stage.without_breakers().await;
    table(&stage, true).await;
}

#[tokio::test]
async fn every_fault_on_every_channel_while_the_carriers_are_silent() {
    let stage = Stage::alone("silent-carriers", quick).await;
    stage.without_breakers().await;
    stage.mtn().set_reports(Reports::never());
    stage.whatsapp().set_statuses(Statuses::never());
    table(&stage, false).await;
}

#[tokio::test]
async fn a_carrier_that_cannot_be_reached_gets_the_message_when_it_is_back() {
    let stage = Stage::alone("failing-carriers", quick).await;
    stage.without_breakers().await;
    // The token is there already.
    stage.told_and_done(&CallSeed::new(&stage.stranger())).await;
    let phone = stage.stranger();
    stage.mtn().server().go_down().await;
    stage.told_and_done(&CallSeed::new(&phone)).await;
    let deliveries = stage.deliveries(&phone).await;
    stage.mtn().server().come_back().await.unwrap();
    // The runtime does not tell a refused connection from one that was cut, so the cautious reading is taken.
    assert_eq!(deliveries, "sms unknown 1");
    stage.delivered(&phone, "sms delivered 2 possible-duplicate").await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1);
}

#[tokio::test]
async fn what_is_refused_until_its_deadline_expires_with_an_alert() {
    let stage = Stage::alone("failing-carriers", quick).await;
    stage.without_breakers().await;
    let phone = stage.stranger();
    stage.mtn().fail_with(Fault::Status503).on(&phone).always();
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage
        .execute(
            "update message_delivery_log set deadline_at = now() + interval '3 seconds' where recipient = $1",
            &[&phone],
        )
        .await
        .unwrap();
    stage.until(&format!("select status = 'expired' and next_attempt_at is null from message_delivery_log where recipient = '{phone}'")).await;
    let requests =
        stage.mtn().control().requests().iter().filter(|r| r.body.contains(phone.trim_start_matches('+'))).count();
    assert!(requests >= 2, "{requests}");
    assert_eq!(stage.mtn().messages_to(&phone).len(), 0);
}

#[tokio::test]
async fn wrong_credentials_raise_an_alert_and_cost_no_message() {
    let stage = Stage::alone("failing-carriers", quick).await;
    let phone = stage.stranger();
    // Twice: a token may have been withdrawn, so one new one is tried first.
    stage.mtn().fail_with(Fault::Status401).on(&phone).times(2);
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.until("select count(*) = 1 from alerts where kind = 'provider_config' and severity = 'critical' and resolved_at is null").await;
    stage
        .until(&format!(
            "select status = 'queued' and last_outcome = 'config' from message_delivery_log where recipient = '{phone}'"
        ))
        .await;
    // Somebody mends it, a quarter of an hour passes.
    stage.execute("update provider_health set open_until = now() where provider = 'mtn'", &[]).await.unwrap();
    stage
        .execute("update message_delivery_log set next_attempt_at = now() where recipient = $1", &[&phone])
        .await
        .unwrap();
    stage.delivered(&phone, "sms delivered 2").await;
    stage.until("select count(*) = 0 from alerts where kind = 'provider_config' and resolved_at is null").await;
    stage.without_breakers().await;
}

#[tokio::test]
async fn a_token_that_is_withdrawn_is_fetched_again_within_the_same_attempt() {
    let stage = Stage::alone("failing-carriers", quick).await;
    stage.without_breakers().await;
    let (first, second) = (stage.stranger(), stage.stranger());
    stage.told_and_done(&CallSeed::new(&first)).await;
    stage.mtn().expire_tokens();
    stage.told_and_done(&CallSeed::new(&second)).await;
    stage.delivered(&second, "sms delivered 1").await;
}

#[tokio::test]
async fn no_token_means_nothing_was_sent_and_the_message_goes_out_later() {
    let stage = Stage::alone("failing-carriers", quick).await;
    stage.without_breakers().await;
    for fault in [Fault::TimeoutBefore, Fault::CutBefore, Fault::Status503, Fault::NonJson] {
        let phone = stage.stranger();
        stage.mtn().expire_tokens();
        stage.mtn().fail_with(fault).on("/v1/oauth/access_token");
        stage.told_and_done(&CallSeed::new(&phone)).await;
        let sql = format!(
            "select status = 'delivered' and not possible_duplicate from message_delivery_log where recipient = '{phone}'"
        );
        stage.until(&sql).await;
        assert_eq!(stage.mtn().messages_to(&phone).len(), 1, "{fault}");
    }
}

#[tokio::test]
async fn a_malformed_request_of_ours_is_never_sent_again_and_raises_an_alert() {
    let stage = Stage::alone("failing-carriers", quick).await;
    stage.without_breakers().await;
    let phone = stage.stranger();
    // 131009: a parameter is not valid.
    stage.whatsapp().fail_with(Fault::Code(131_009)).on(&phone).always();
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp failed 1").await;
    stage.until("select count(*) = 1 from alerts where kind = 'delivery_bug' and resolved_at is null").await;
    at_rest(&stage).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp failed 1").await;
}

#[tokio::test]
async fn whoever_wants_sms_alone_gets_no_whatsapp_even_when_sms_fails() {
    let stage = Stage::alone("failing-carriers", quick).await;
    stage.without_breakers().await;
    let phone = stage.stranger();
    // 5001: failed, for good.
    stage.mtn().fail_with(Fault::Code(5001)).on(&phone).always();
    let call = stage.seed_call(&CallSeed::new(&phone).on_whatsapp_now()).await.unwrap();
    stage.prefers(&phone, &serde_json::json!({"policy": "sms_only"})).await;
    stage.ask(&call).await;
    stage.delivered(&phone, "sms failed 1").await;
    at_rest(&stage).await;
    stage.delivered(&phone, "sms failed 1").await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 0);
}
