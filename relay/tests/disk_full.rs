//! A disk that is full, as a real process meets it: its files may grow to a limit and no further, and what is written
//! beyond it is refused, half of a record already written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use serde_json::{Value, json};
use world::{Caller, SOON, World, until};

/// 512 bytes each: an opening and some sentences.
const BLOCKS: u32 = 4;

async fn connected(world: &World) -> Caller {
    let mut caller = world.caller().await;
    let before = asked(world);
    caller.connect().await;
    until("the model is ready", || (asked(world) > before).then_some(())).await;
    caller
}

fn asked(world: &World) -> usize {
    world.model.types().iter().filter(|kind| *kind == "response.create").count()
}

/// The caller says these, one after the other.
fn says(world: &World, from: usize, count: usize) {
    for n in from..from + count {
        let words = format!("sentence {n} is long enough to fill a small disk after a few of its kind");
        world
            .model
            .say(json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": words }));
    }
}

/// Numbers of the sentences that were told, by the call they belong to, in order and each once.
fn told(world: &World, call: &Value) -> Vec<usize> {
    let bodies = world.told.to("/events");
    let events = bodies
        .iter()
        .filter(|body| body["correlation_id"] == *call)
        .flat_map(|body| body["events"].as_array().unwrap());
    let texts = events.filter_map(|event| event["text"].as_str().map(str::to_owned));
    texts.map(|text| text.split(' ').nth(1).unwrap().parse().unwrap()).collect()
}

async fn health(world: &World, status: &str, code: u16) {
    let seen = async {
        loop {
            let (found, body) = world.get("/healthz").await;
            let body: Value = serde_json::from_str(&body).unwrap();
            if body["status"] == status {
                assert_eq!(found, code, "{body}");
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, seen).await.unwrap_or_else(|_| panic!("it is never {status}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_no_word_of_the_calls_that_run() {
    let world = World::without_relay().await;
    let process = world.process_with_disk(BLOCKS).await;
    let mut caller = connected(&world).await;
    health(&world, "ok", 200).await;
    says(&world, 0, 40);
    health(&world, "journal_failing", 503).await;
    let metrics = world.get("/metrics").await.1;
    assert!(
        metrics.contains("ihuza_relay_journal_failing 1") && !metrics.contains("journal_failures_total 0"),
        "{metrics}"
    );
    // The call goes on, and others are let in: their callers are worth more than the insurance against a crash.
    says(&world, 40, 10);
    caller.speak(0x52, 5).await;
    caller.hang_up().await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!((&end["cause"], told(&world, &end["correlation_id"])), (&json!("caller_hangup"), (0..50).collect()));
    until("its journal is gone", || (world.journals() == 0).then_some(())).await;
    let lines = process.log();
    let failed: Vec<&Value> = lines.iter().filter(|line| line["event"] == "JOURNAL_FAILED").collect();
    assert_eq!(failed.len(), 1, "said once a call, not at every entry: {lines:?}");
    assert_eq!((&failed[0]["level"], &failed[0]["correlation_id"]), (&json!("error"), &end["correlation_id"]));
    // There is room again.
    let mut next = connected(&world).await;
    health(&world, "ok", 200).await;
    next.hang_up().await;
    until("the second end is told", || (world.told.to("/end").len() == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_disk_had_taken_survives_a_kill() {
    let world = World::without_relay().await;
    world.function_fails("/events", 503, 10_000);
    let mut process = world.process_with_disk(BLOCKS).await;
    let _caller = connected(&world).await;
    says(&world, 0, 40);
    health(&world, "journal_failing", 503).await;
    process.kill();
    assert_eq!(world.journals(), 1);
    world.function_recovers();
    let mut next = world.process().await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    let told = told(&world, &end["correlation_id"]);
    assert_eq!(end["cause"], "relay_restarted");
    assert!(told.len() >= 3 && told.len() < 40, "{told:?}");
    assert_eq!(told, (0..told.len()).collect::<Vec<_>>(), "a beginning of the story, without a gap");
    let kinds = world.told.kinds();
    assert_eq!((kinds[..2].join(" "), kinds.last().unwrap().as_str()), ("opened answered".into(), "ended"));
    let numbers: Vec<u64> = world.told.events().iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    until("nothing is left", || (world.journals() == 0).then_some(())).await;
    assert!(next.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_called_whom_the_disk_could_forget() {
    let (world, mut callee) = World::placing().await;
    let mut process = world.process_with_disk(0).await;
    let (status, problem) = world.calls("POST", "", "k", &json!({ "to": "+250788123456" })).await;
    assert_eq!((status, &problem["type"]), (503, &json!("https://ihuza.rw/errors/not-written")), "{problem}");
    callee.hears_nothing_of("INVITE").await;
    assert!(world.get("/metrics").await.1.contains(r#"calls_not_placed_total{reason="not_written"} 1"#));
    // Whoever calls us is answered even so.
    let mut caller = connected(&world).await;
    caller.hang_up().await;
    until("the end is told", || world.told.to("/end").pop()).await;
    assert!(process.terminate().await);
}
