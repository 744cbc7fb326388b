//! Whole calls that a gateway brings over a WebSocket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::time::Duration;

use ihuza_relay::gateway::token;
use ihuza_relay::shell::clock::Clock;
use serde_json::{Value, json};
use world::{GATEWAY_SECRET, Gateway, World, base64, until};

async fn ready(world: &World) {
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
}

/// A gateway whose call the model is ready for.
async fn connected(world: &World, call_sid: &str) -> Gateway {
    let mut gateway = world.gateway().await;
    gateway.start(call_sid, json!({})).await;
    ready(world).await;
    gateway
}

fn said(world: &World) -> Vec<Value> {
    world.told.events().into_iter().filter(|event| event["type"] == "transcript").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_call_over_a_gateway() {
    let world = World::start().await;
    let mut gateway = connected(&world, "CA1").await;
    let settings = world.model.messages.lock().unwrap()[0].clone();
    assert_eq!(settings["session"]["audio"]["output"]["format"], json!({ "type": "audio/pcmu" }));
    world.model.speak("r1", "Muraho, how can I help you?", 300);
    let (mark, sound) = gateway.until("mark").await;
    assert_eq!(sound, [0x31; 2400], "all of it, and no silence around it");
    assert_eq!(mark["streamSid"], "MZ1");
    // Louder than what the agent said: no echo of it.
    gateway.speak(0x12, 10).await;
    let frame = base64(&[0x12; 160]);
    // One that comes late on a busy machine is blended with what was made up before it.
    until("the model hears the caller untouched", || {
        (world.model.heard.lock().unwrap().iter().filter(|audio| **audio == frame).count() >= 5).then_some(())
    })
    .await;
    assert!(said(&world).is_empty(), "what is not played is not said");
    gateway.echo(&mark).await;
    until("the greeting is recorded", || said(&world).pop()).await;
    gateway
        .say(json!({ "event": "dtmf", "streamSid": "MZ1", "dtmf": { "track": "inbound_track", "digit": "5" } }))
        .await;
    gateway
        .say(json!({ "event": "dtmf", "streamSid": "MZ1", "dtmf": { "track": "inbound_track", "digit": "#" } }))
        .await;
    until("the key is told", || {
        let messages = world.model.messages.lock().unwrap();
        messages.iter().any(|message| message.to_string().contains("pressed 5 on the keypad")).then_some(())
    })
    .await;
    gateway.say(json!({ "event": "ping" })).await;
    gateway.until("pong").await;
    gateway.say(json!({ "event": "stop", "streamSid": "MZ1", "stop": { "callSid": "CA1" } })).await;
    assert_eq!(gateway.closed().await, 1000);
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(
        (&end["cause"], &end["origin"], &end["call_sid"], &end["trunk"], &end["from"]),
        (&json!("caller_hangup"), &json!("mtn_media"), &json!("CA1"), &json!("mtn_ws"), &json!("+250788123456"))
    );
    assert_eq!((&end["media"]["packets_received"], &end["media"]["packets_lost"]), (&json!(10), &json!(0)), "{end}");
    assert_eq!(world.told.to("/openai-realtime")[0]["origin"], "mtn_media");
    assert_eq!(world.told.to("/end").len(), 1);
    let health: Value = serde_json::from_str(&world.get("/healthz").await.1).unwrap();
    let trunk = health["trunks"].as_array().unwrap().iter().find(|trunk| trunk["name"] == "mtn_ws").unwrap();
    assert!(trunk["last_heard_at"].is_string(), "the trunk is alive: {trunk}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_clears_the_gateway_and_counts_what_it_had_played() {
    let world = World::start().await;
    let mut gateway = connected(&world, "CA2").await;
    world.model.speak("r1", "one two three four five six seven eight nine ten", 3000);
    let (mark, sound) = gateway.until("mark").await;
    assert_eq!((sound.len(), &mark["mark"]["name"]), (4000, &json!("1:500")));
    // The gateway plays late: its first mark comes back when two are out.
    let (late, _) = gateway.until("mark").await;
    gateway.echo(&mark).await;
    world.model.say(json!({ "type": "input_audio_buffer.speech_started" }));
    let (_, rest) = gateway.until("clear").await;
    gateway.echo(&late).await;
    let truncate = until("the model is told what was heard", || {
        let messages = world.model.messages.lock().unwrap();
        messages.iter().find(|message| message["type"] == "conversation.item.truncate").cloned()
    })
    .await;
    let (ms, sent) = (truncate["audio_end_ms"].as_u64().unwrap(), 1000 + rest.len() as u64 / 8);
    assert!((500..=sent).contains(&ms) && sent < 3000, "{ms} of {sent} ms that were sent");
    let told = until("it is recorded", || said(&world).pop()).await;
    assert!(told["interrupted"] == true && told["text"].as_str().unwrap().starts_with("one"), "{told}");
    let quiet = tokio::time::timeout(Duration::from_millis(200), gateway.until("media")).await;
    assert!(quiet.is_err(), "nothing more is said");
    world.model.speak("r2", "yes?", 100);
    let (_, sound) = gateway.until("mark").await;
    assert_eq!(sound, [0x31; 800]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_hangs_up_when_the_gateway_has_played_its_goodbye() {
    let world = World::start().await;
    let mut gateway = connected(&world, "CA3").await;
    world.model.say(json!({ "type": "response.output_item.done", "item": { "type": "function_call", "call_id": "t1", "name": "end_call", "arguments": "{}" } }));
    world.model.speak("r1", "goodbye", 200);
    let (mark, sound) = gateway.until("mark").await;
    assert_eq!(sound.len(), 1600);
    assert!(world.told.to("/end").is_empty(), "not before it was played");
    gateway.echo(&mark).await;
    gateway.until("hangup").await;
    assert_eq!(gateway.closed().await, 1000);
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "agent_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_vanishes_ends_its_call_once() {
    let world = World::start().await;
    let mut gateway = connected(&world, "CA4").await;
    gateway.speak(0x52, 3).await;
    drop(gateway);
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "media_lost");
    until("the journal is empty", || (world.journals() == 0).then_some(())).await;
    assert_eq!(world.told.to("/end").len(), 1);
    assert!(world.get("/metrics").await.1.contains("calls_running 0"));
    // Its place is free again.
    connected(&world, "CA5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_cannot_prove_who_it_is_gets_no_call() {
    let world = World::start().await;
    assert!(world.gateway_with(Some("guess")).await.is_err(), "a wrong secret is turned away at the door");
    let clock = Clock::start();
    let now = clock.unix_ms(clock.now()) / 1000;
    let good = token::sign(GATEWAY_SECRET, "mtn_ws", "CA6", now + 30);
    for (token, call_sid) in [
        (String::new(), "CA6"),
        ("nonsense".into(), "CA6"),
        (good.clone(), "CA7"),
        (token::sign("guess", "mtn_ws", "CA6", now + 30), "CA6"),
        (token::sign(GATEWAY_SECRET, "unknown", "CA6", now + 30), "CA6"),
        (token::sign(GATEWAY_SECRET, "mtn_ws", "CA6", now - 60), "CA6"),
    ] {
        let mut gateway = world.gateway_with(None).await.unwrap();
        gateway.start(call_sid, json!({ "customParameters": { "token": token } })).await;
        assert_eq!(gateway.closed().await, 4401, "{token}");
    }
    assert!(world.told.to("/openai-realtime").is_empty(), "nothing was opened for any of them");
    let mut gateway = world.gateway_with(None).await.unwrap();
    gateway.start("CA6", json!({ "customParameters": { "token": good } })).await;
    ready(&world).await;
    let mut again = world.gateway_with(None).await.unwrap();
    again.start("CA6", json!({ "customParameters": { "token": good } })).await;
    assert_eq!(again.closed().await, 4401, "a token is good once");
    assert!(world.get("/metrics").await.1.contains(r#"reason="unauthenticated"} 8"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_own_number() {
    let world = World::start().await;
    let refused = async |start: Value| {
        let mut gateway = world.gateway().await;
        gateway.start("CA8", start).await;
        gateway.closed().await
    };
    assert_eq!(refused(json!({ "to": "+250788999999" })).await, 4404);
    assert_eq!(refused(json!({ "mediaFormat": { "encoding": "audio/x-l16", "sampleRate": 16000 } })).await, 4415);
    assert_eq!(refused(json!({ "callSid": "" })).await, 1008);
    let mut garbage = world.gateway().await;
    garbage.text("hello").await;
    assert_eq!(garbage.closed().await, 1008);
    let mut silent = world.gateway().await;
    assert_eq!(silent.closed().await, 4408);
    let mut first = connected(&world, "CA9").await;
    let mut second = world.gateway().await;
    second.start("CA9", json!({})).await;
    assert_eq!(second.closed().await, 4409);
    first.start("CA9", json!({})).await;
    assert_eq!(first.closed().await, 4409, "a stream has one call");
    let mut calls = Vec::new();
    until("the first call is over", || world.told.to("/end").pop()).await;
    for n in 0..4 {
        let mut gateway = world.gateway().await;
        gateway.start(&format!("CB{n}"), json!({})).await;
        gateway.say(json!({ "event": "ping" })).await;
        gateway.until("pong").await;
        calls.push(gateway);
    }
    let mut fifth = world.gateway().await;
    fifth.start("CB5", json!({})).await;
    assert_eq!(fifth.closed().await, 4429);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_nobody_can_read_do_not_end_a_running_call_and_a_flood_does() {
    let world = World::start().await;
    let mut gateway = connected(&world, "CA10").await;
    for garbage in
        ["hello", "{}", "[1]", "{\"event\":\"media\",\"media\":{\"payload\":\"%%\"}}", "{\"event\":\"unheard of\"}"]
    {
        gateway.text(garbage).await;
    }
    gateway.speak(0x53, 5).await;
    let frame = base64(&[0x53; 160]);
    until("the model hears the caller", || world.model.heard.lock().unwrap().contains(&frame).then_some(())).await;
    for _ in 0..1000 {
        if gateway.try_say(json!({ "event": "ping" })).await.is_err() {
            break;
        }
    }
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "media_lost");
    assert_eq!(world.get("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_websocket_is_spoken_there() {
    let world = World::start().await;
    assert_eq!(world.get("/mtn-media").await.0, 426);
}
