//! Calls on a trunk that records: told first, kept, and not a byte before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::path::PathBuf;
use std::time::Duration;

use ihuza_relay::media::g711::Law;
use ihuza_relay::media::wav;
use serde_json::json;
use world::{World, base64, until};

/// The announcement: half a second.
const NOTICE: [u8; 4000] = [0x41; 4000];

async fn recording_world(refuse_key: Option<char>) -> (World, PathBuf) {
    let mut kept = PathBuf::new();
    let world = World::start_with(|config, directory| {
        let announcements = directory.join("announcements");
        std::fs::create_dir_all(&announcements).unwrap();
        std::fs::write(announcements.join("consent.en.alaw"), NOTICE).unwrap();
        kept = directory.join("recordings");
        config.media.announcements = Some(announcements);
        config.recording.directory = Some(kept.clone());
        config.recording.refusal_wait_ms = 300;
        config.trunks[0].record = true;
        config.trunks[0].refuse_key = refuse_key;
    })
    .await;
    (world, kept)
}

fn consents(world: &World) -> Vec<String> {
    let told = world.told.events();
    let consents = told.iter().filter(|event| event["type"] == "consent");
    consents.map(|event| format!("{} {} {}", event["state"], event["method"], event["language"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_recorded_after_an_announcement_that_nobody_can_interrupt() {
    let (world, kept) = recording_world(None).await;
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    world.model.speak("r1", "Hello", 200);
    caller.speak(0x52, 8).await;
    world.model.say(json!({ "type": "input_audio_buffer.speech_started" }));
    let mut heard = Vec::new();
    while heard.last() != Some(&0xd5) || !heard.contains(&0x41) {
        heard.extend(caller.listen(1).await);
    }
    assert_eq!(heard.iter().filter(|byte| **byte == 0x41).count(), 25, "the whole announcement: {heard:x?}");
    assert!(!world.model.heard.lock().unwrap().contains(&base64(&[0x52; 160])), "the model hears nothing of it");

    until("the consent is told", || (!consents(&world).is_empty()).then_some(())).await;
    until("the recording has begun", || world.told.kinds().contains(&"recording".into()).then_some(())).await;
    caller.speak(0x53, 20).await;
    let frame = base64(&[0x53; 160]);
    until("the model hears the caller again", || world.model.heard.lock().unwrap().contains(&frame).then_some(()))
        .await;
    world.model.speak("r2", "How can I help?", 200);
    while caller.listen(1).await != [0x31] {}
    caller.listen(20).await;
    caller.hang_up().await;

    let end = until("the end is told", || world.told.to("/end").pop()).await;
    let told = world.told.events();
    let over = told.iter().find(|event| event["type"] == "recording" && event["state"] == "ended").unwrap();
    assert_eq!(over["file"], format!("{}.wav", end["correlation_id"].as_str().unwrap()));
    assert_eq!(consents(&world), [r#""announced" "announcement" "en""#]);
    let kinds = world.told.kinds();
    let at = |kind: &str| kinds.iter().position(|found| found == kind).unwrap();
    assert!(at("consent") < at("recording"), "{kinds:?}");

    let file = kept.join(over["file"].as_str().unwrap());
    let bytes = until("the file is whole", || std::fs::read(&file).ok()).await;
    let sound = &bytes[wav::HEAD_BYTES..];
    assert_eq!(bytes[..wav::HEAD_BYTES], wav::head(Law::A, sound.len() as u32));
    assert_eq!(over["duration_ms"].as_u64().unwrap(), sound.len() as u64 / 16);
    let (left, right): (Vec<u8>, Vec<u8>) = sound.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    let count = |track: &[u8], byte: u8| track.iter().filter(|found| **found == byte).count();
    assert_eq!((count(&right, 0x41), count(&left, 0x52)), (0, 0), "nothing from before the announcement's end");
    assert_eq!(count(&right, 0x31), 1600, "all that the agent said");
    assert!(count(&left, 0x53) >= 10 * 160, "{} of 3200 bytes of the caller", count(&left, 0x53));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_presses_the_key_is_not_recorded_and_the_refusal_is_kept() {
    let (world, kept) = recording_world(Some('2')).await;
    let mut caller = world.caller().await;
    caller.connect().await;
    while caller.listen(1).await != [0x41] {}
    for _ in 0..3 {
        caller.packet(101, 9000, &[2, 0x80, 1, 0x40]).await;
    }
    until("the refusal is told", || consents(&world).contains(&r#""refused" "dtmf" "en""#.to_owned()).then_some(()))
        .await;
    until("so is the announcement", || (consents(&world).len() == 2).then_some(())).await;
    caller.speak(0x53, 30).await;
    caller.hang_up().await;
    until("the end is told", || world.told.to("/end").pop()).await;
    assert!(!world.told.kinds().contains(&"recording".into()));
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 0, "not even an empty file");
    assert!(!world.model.messages.lock().unwrap().iter().any(|message| message.to_string().contains("keypad")));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_gateway_the_announcement_is_over_when_its_mark_is_back() {
    let mut kept = PathBuf::new();
    let world = World::start_with(|config, directory| {
        let announcements = directory.join("announcements");
        std::fs::create_dir_all(&announcements).unwrap();
        std::fs::write(announcements.join("consent.en.alaw"), NOTICE).unwrap();
        kept = directory.join("recordings");
        config.media.announcements = Some(announcements);
        config.recording.directory = Some(kept.clone());
        config.trunks.iter_mut().find(|trunk| trunk.gateway.is_some()).unwrap().record = true;
    })
    .await;
    let mut gateway = world.gateway().await;
    // There is no announcement in the language that is asked for: that of the number is heard.
    gateway.start("CA1", json!({ "locale": "fr" })).await;
    let (_, half) = gateway.until("mark").await;
    let notice = Law::Mu.encode(Law::A.decode(0x41));
    assert!(half.len() == 4000 && half.iter().all(|byte| *byte == notice), "{} bytes", half.len());
    let (end, _) = gateway.until("mark").await;
    gateway.speak(0x12, 5).await;
    assert!(
        consents(&world).is_empty() && std::fs::read_dir(&kept).unwrap().next().is_none(),
        "not before it was heard"
    );
    gateway.echo(&end).await;
    until("the recording has begun", || world.told.kinds().contains(&"recording".into()).then_some(())).await;
    assert_eq!(consents(&world), [r#""announced" "announcement" "en""#]);
    gateway.speak(0x13, 20).await;
    gateway.say(json!({ "event": "stop", "streamSid": "MZ1" })).await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    let file = kept.join(format!("{}.wav", end["correlation_id"].as_str().unwrap()));
    let bytes = until("the file is whole", || std::fs::read(&file).ok()).await;
    assert_eq!(wav::law_of(&bytes), Some(Law::Mu));
    let left: Vec<u8> = bytes[wav::HEAD_BYTES..].chunks(2).map(|pair| pair[0]).collect();
    let count = |byte: u8| left.iter().filter(|found| **found == byte).count();
    assert!(count(0x12) == 0 && count(0x13) >= 8 * 160, "{} and {}", count(0x12), count(0x13));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_during_the_announcement_was_never_recorded() {
    let (world, kept) = recording_world(None).await;
    let mut caller = world.caller().await;
    caller.connect().await;
    while caller.listen(1).await != [0x41] {}
    caller.hang_up().await;
    until("the end is told", || world.told.to("/end").pop()).await;
    assert!(consents(&world).is_empty() && std::fs::read_dir(&kept).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_the_recording_does_not_harm_the_call() {
    let (world, kept) = recording_world(None).await;
    std::fs::remove_dir_all(&kept).unwrap();
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the recording has failed", || {
        world.told.events().into_iter().find(|event| event["type"] == "recording" && event["state"] == "failed")
    })
    .await;
    world.model.speak("r1", "still here", 100);
    tokio::time::timeout(Duration::from_secs(8), async { while caller.listen(1).await != [0x31] {} }).await.unwrap();
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}
