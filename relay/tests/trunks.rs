//! How trunks are: asked over real UDP, and told to the session function in its own words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use serde_json::{Value, json};
use world::{Caller, World, until};

/// A relay whose first trunk is asked every second, and the end that is asked.
async fn asked() -> (World, Caller) {
    let mut world = World::without_relay().await;
    let trunk = world.caller().await;
    let address = trunk.address();
    world
        .begin(|config| {
            config.trunks[0].peer = Some(world::peer(address));
            config.trunks[0].qualify_seconds = 1;
        })
        .await;
    (world, trunk)
}

/// The last report, if it says that of the first trunk.
fn last(world: &World, status: &str) -> Option<Value> {
    let report = world.told.to("/trunks").pop()?;
    assert_eq!(report["relay"], "relay");
    report["trunks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|trunk| trunk["name"] == "mtn" && trunk["status"] == status)
        .cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_that_answers_is_active_and_one_that_does_not_is_stale_and_then_down() {
    let (world, mut trunk) = asked().await;
    let question = trunk.expect("OPTIONS").await;
    let transport = question.header("Via").unwrap().to_owned();
    assert!(
        transport.starts_with("SIP/2.0/UDP") && question.header("Accept") == Some("application/sdp"),
        "{}",
        question.text
    );
    trunk.reply(&question, "200 OK").await;
    let told = until("it is told", || last(&world, "active")).await;
    assert_eq!((&told["active_calls"], &told["last_call_at"]), (&json!(0), &Value::Null));
    assert!(told["last_heard_at"].as_str().unwrap().ends_with('Z'), "{told}");
    assert_eq!(world.told.to("/trunks")[0]["trunks"].as_array().unwrap().len(), 1, "of the other one nothing is known");
    // From here on nobody answers.
    let health = async |status: &str| {
        let found: Value = serde_json::from_str(&world.get("/healthz").await.1).unwrap();
        let trunk = found["trunks"].as_array().unwrap().iter().find(|trunk| trunk["name"] == "mtn").unwrap();
        (trunk["status"] == status).then_some(())
    };
    for status in ["stale", "down"] {
        let seen = async { while health(status).await.is_none() {} };
        tokio::time::timeout(world::SOON, seen).await.unwrap_or_else(|_| panic!("it is never {status}"));
    }
    let told = until("it is told", || last(&world, "down")).await;
    assert_eq!(told["reason"], "no_answer");
    let metrics = world.get("/metrics").await.1;
    assert!(metrics.contains(r#"ihuza_relay_trunk_state{trunk="mtn",state="down"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"ihuza_relay_trunk_state{trunk="mtn",state="active"} 0"#), "{metrics}");
    // The next answer brings it back, and one that says it cannot takes it down at once. Questions that nobody answered
    // may still stand in the socket: answers to them come too late to count, and change nothing.
    let mut answer = async |status: &str, expected: &str| {
        let answered = async {
            while last(&world, expected).is_none() {
                let question = trunk.expect("OPTIONS").await;
                trunk.reply(&question, status).await;
            }
        };
        tokio::time::timeout(world::SOON, answered).await.unwrap_or_else(|_| panic!("it is never told {expected}"));
        last(&world, expected).unwrap()
    };
    answer("404 Not Found", "active").await;
    assert_eq!(answer("503 Service Unavailable", "down").await["reason"], "sip_503");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_that_calls_is_there_and_its_calls_are_counted() {
    let (world, _silent) = asked().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    let told = until("it is told", || last(&world, "active")).await;
    assert!(told["active_calls"] == 0 || told["active_calls"] == 1, "{told}");
    until("the metric follows", || last(&world, "down")).await;
    let told = last(&world, "down").unwrap();
    assert!(
        told["active_calls"] == 1 && told["last_call_at"].is_string(),
        "it does not answer, but the call goes on: {told}"
    );
    caller.hang_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_away_gets_one_report_when_it_is_back() {
    let mut world = World::without_relay().await;
    world.function_fails("/trunks", 503, 2);
    let mut caller = world.caller().await;
    world.begin(|_| ()).await;
    caller.send("OPTIONS", 1, "", "").await;
    caller.expect("200").await;
    until("it is told", || last(&world, "active")).await;
    assert_eq!(world.told.to("/trunks").len(), 1, "what failed did not pile up");
    let counted = async {
        loop {
            let metrics = world.get("/metrics").await.1;
            if metrics.contains(r#"trunk_reports_total{outcome="stored"} 1"#) {
                assert!(metrics.contains(r#"trunk_reports_total{outcome="failed"} 2"#), "{metrics}");
                return;
            }
        }
    };
    tokio::time::timeout(world::SOON, counted).await.expect("the report is counted");
}
