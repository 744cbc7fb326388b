//! What only time ends: SIP's own timers are not shortened for a test, so all of them run side by side, for a minute.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::time::Duration;

use serde_json::{Value, json};
use world::{Caller, Reply, World, until};

/// Longer than the longest of them.
const LONG: Duration = Duration::from_secs(90);

async fn expect_late(caller: &mut Caller, first: &str) -> Reply {
    let mut found = None;
    let looked = async {
        while found.is_none() {
            found = caller.next_of(first).await;
        }
    };
    tokio::time::timeout(LONG, looked).await.unwrap_or_else(|_| panic!("{first} never comes"));
    found.unwrap()
}

/// A relay on which silence ends nothing so soon.
async fn patient() -> World {
    let mut world = World::without_relay().await;
    world.begin(|config| config.media.silence_limit_s = 600).await;
    world
}

async fn end(world: &World) -> Value {
    until("the end is told", || world.told.to("/end").pop()).await
}

async fn nobody_acknowledges() {
    let world = patient().await;
    let mut caller = world.caller().await;
    caller.invite("", &caller.description("")).await;
    let answer = caller.expect("200").await;
    caller.take(&answer);
    let bye = expect_late(&mut caller, "BYE").await;
    caller.reply(&bye, "200 OK").await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], &end["reason"]), (&json!("setup_failed"), &json!("no_ack")));
    assert_eq!(world.told.to("/end").len(), 1);
}

async fn the_caller_does_not_refresh() {
    let world = patient().await;
    let mut caller = world.caller().await;
    caller.invite("Supported: timer\r\nSession-Expires: 90;refresher=uac\r\n", &caller.description("")).await;
    let answer = caller.expect("200").await;
    caller.take(&answer);
    caller.send("ACK", 1, "", "").await;
    let bye = expect_late(&mut caller, "BYE").await;
    assert_eq!(bye.header("Reason"), Some("Q.850;cause=102"));
    caller.reply(&bye, "200 OK").await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], &end["reason"]), (&json!("media_lost"), &json!("session_expired")));
}

async fn we_refresh() {
    let world = patient().await;
    let mut caller = world.caller().await;
    caller.invite("Session-Expires: 90\r\n", &caller.description("")).await;
    let answer = caller.expect("200").await;
    assert_eq!((answer.header("Session-Expires"), answer.header("Require")), (Some("90;refresher=uas"), None));
    caller.take(&answer);
    caller.send("ACK", 1, "", "").await;
    let refresh = expect_late(&mut caller, "UPDATE").await;
    // We are the client of this request, and stay the one who refreshes.
    assert_eq!(refresh.header("Session-Expires"), Some("90;refresher=uac"));
    caller.reply(&refresh, "200 OK").await;
    caller.hang_up().await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

async fn we_refresh_a_call_that_we_placed() {
    let (mut world, mut callee) = World::placing().await;
    world.begin(|config| config.media.silence_limit_s = 600).await;
    let (status, call) = world.calls("POST", "", "k", &json!({ "to": world::callee::NUMBER })).await;
    assert_eq!(status, 202, "{call}");
    let invite = callee.expect("INVITE").await;
    let timer = "Require: timer\r\nSession-Expires: 90;refresher=uac\r\n";
    callee.respond_with(&invite, "200 OK", timer, &callee.description()).await;
    callee.expect("ACK").await;
    let refresh = callee.expect_within("UPDATE", LONG).await;
    assert_eq!(refresh.header("Session-Expires"), Some("90;refresher=uac"));
    callee.respond(&refresh, "200 OK", "").await;
    callee.hang_up(&invite).await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

async fn nobody_says_what_became_of_a_transfer() {
    let world = patient().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    let call = json!({ "type": "function_call", "call_id": "t1", "name": "transfer_to_human", "arguments": "{}" });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(json!({ "type": "response.output_item.done", "item": call }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } }));
    let refer = caller.expect("REFER").await;
    caller.reply(&refer, "202 Accepted").await;
    caller.notify("100 Trying").await;
    let told = async {
        loop {
            if let Some(told) = world.told.events().into_iter().find(|event| event["type"] == "transferred") {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let told = tokio::time::timeout(LONG, told).await.expect("the outcome is told");
    assert_eq!(told["outcome"], "unknown", "nobody claims that somebody answered");
    caller.hang_up().await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_comes_is_not_waited_for_for_ever() {
    tokio::join!(
        nobody_acknowledges(),
        the_caller_does_not_refresh(),
        we_refresh(),
        we_refresh_a_call_that_we_placed(),
        nobody_says_what_became_of_a_transfer(),
    );
}
