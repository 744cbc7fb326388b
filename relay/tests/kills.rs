//! A relay that is killed at any moment of a call, as a real process: every call ends exactly once, and nothing is lost
//! that the journal had acknowledged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::collections::HashMap;
use std::time::Duration;

use ihuza_relay::shell::call::dice;
use serde_json::{Value, json};
use world::{World, until};

/// More of them with `RELAY_KILLS=200`, as under `cargo xtask soak`.
fn kills() -> u32 {
    std::env::var("RELAY_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(8)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_at_any_moment_ends_every_call_once() {
    let world = World::without_relay().await;
    for round in 0..kills() {
        let mut process = world.process().await;
        let mut caller = world.caller().await;
        let wait = Duration::from_millis(u64::from(dice() % 400));
        let call = async {
            caller.connect().await;
            for n in 0.. {
                let words = format!("sentence {n} of round {round}");
                world.model.say(
                    json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": words }),
                );
                caller.speak(0x52, 1).await;
            }
        };
        let _ = tokio::time::timeout(wait, call).await;
        process.kill();
    }
    let mut last = world.process().await;
    until("all that was owed is told", || (world.journals() == 0).then_some(())).await;

    // By call: sequence numbers with what stands under them. The same again is no fault, another one would be.
    let mut told: HashMap<String, HashMap<u64, Value>> = HashMap::new();
    for body in world.told.to("/events") {
        let call = told.entry(body["correlation_id"].as_str().unwrap().to_owned()).or_default();
        for event in body["events"].as_array().unwrap() {
            let before = call.insert(event["seq"].as_u64().unwrap(), event.clone());
            assert!(before.is_none_or(|before| before == *event), "one number, two stories");
        }
    }
    let mut ends: HashMap<String, Vec<Value>> = HashMap::new();
    for body in world.told.to("/end") {
        ends.entry(body["correlation_id"].as_str().unwrap().to_owned()).or_default().push(body);
    }
    for (call, events) in &told {
        let kinds: Vec<_> = events.values().filter(|event| event["type"] == "ended").collect();
        assert_eq!(kinds.len(), 1, "{call}: {events:?}");
        assert!(events.values().any(|event| event["type"] == "opened"), "{call}: {events:?}");
        let causes: Vec<_> = ends[call].iter().map(|end| &end["cause"]).collect();
        assert!(causes.windows(2).all(|pair| pair[0] == pair[1]), "{call} ended for {causes:?}");
    }
    assert_eq!(told.len(), ends.len(), "no end without a story");
    println!("counted {} kills of the relay", kills());
    assert!(last.terminate().await, "SIGTERM ends it well");
}
