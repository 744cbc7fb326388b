//! Whole calls in which the model is early, deaf to echoes, speaks PCM, grows too old, or goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::time::Duration;

use ihuza_core::phone::E164;
use ihuza_relay::config::{AudioFormat, Number};
use ihuza_relay::media::g711::Law;
use serde_json::{Value, json};
use world::{World, base64, from_base64, until};

async fn ready(world: &World) {
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_set_up_while_it_rings_and_speaks_as_soon_as_the_call_is_answered() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.invite("", &caller.description("")).await;
    caller.expect("180").await;
    let answer = caller.expect("200").await;
    let types = world.model.types();
    assert_eq!(types.first().map(String::as_str), Some("session.update"), "set up before the answer: {types:?}");
    ready(&world).await;
    world.model.speak("r1", "Muraho", 200);
    caller.take(&answer);
    // No ACK was sent yet: a caller who waits for it would miss the first word.
    let mut heard = 0;
    let all = tokio::time::timeout(world::SOON, async {
        while heard < 10 {
            heard += usize::from(caller.listen(1).await == [0x31]);
        }
    });
    assert!(all.await.is_ok(), "only {heard} of 10 packets");
    caller.send("ACK", 1, "", "").await;
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_own_echo_does_not_reach_the_model_and_a_loud_caller_does() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    world.model.speak("r1", "a long sentence", 3000);
    while caller.listen(1).await != [0x31] {}
    // What the telephone gives back, 12 dB quieter than what was said.
    let (said, echo, voice) = (Law::A.decode(0x31), Law::A.decode(0x11), Law::A.decode(0x21));
    assert_eq!((f64::from(said) / f64::from(echo), f64::from(voice) / f64::from(said)), (4.0, 2.0));
    caller.speak(0x11, 30).await;
    caller.speak(0x21, 10).await;
    let loud = base64(&[0x21; 160]);
    until("the caller is heard", || {
        (world.model.heard.lock().unwrap().iter().filter(|audio| **audio == loud).count() >= 5).then_some(())
    })
    .await;
    let heard = world.model.heard.lock().unwrap().clone();
    assert_eq!(heard.iter().filter(|audio| **audio == base64(&[0x11; 160])).count(), 0, "no echo");
    assert!(heard.contains(&base64(&[0xd5; 160])), "but silence in its place");
    caller.hang_up().await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert!(end["media"]["echo_muted"].as_u64().unwrap() >= 15, "{end}");
}

/// A tone, and how often it crosses zero within each 100 ms.
fn tone(hertz: f64, clock: f64, samples: usize) -> Vec<i16> {
    (0..samples).map(|n| (8000.0 * (n as f64 * hertz / clock * std::f64::consts::TAU).sin()) as i16).collect()
}

fn hertz(samples: &[i16], clock: f64) -> f64 {
    let crossings = samples.windows(2).filter(|pair| (pair[0] < 0) != (pair[1] < 0)).count();
    crossings as f64 / 2.0 / (samples.len() as f64 / clock)
}

fn loudness(samples: &[i16]) -> f64 {
    (samples.iter().map(|sample| f64::from(*sample).powi(2)).sum::<f64>() / samples.len() as f64).sqrt()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_call_with_a_model_that_speaks_pcm() {
    let world = World::start_with(|config, _| config.model.format = AudioFormat::Pcm16).await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    let settings = world.model.messages.lock().unwrap()[0].clone();
    for side in ["input", "output"] {
        assert_eq!(settings["session"]["audio"][side]["format"], json!({ "type": "audio/pcm", "rate": 24000 }));
    }
    // A second of a tone to the model ...
    let voice: Vec<u8> = tone(440.0, 8000.0, 8000).into_iter().map(|sample| Law::A.encode(sample)).collect();
    caller.speak_all(&voice).await;
    let heard = until("the model hears a second", || {
        let heard = world.model.heard.lock().unwrap();
        (heard.len() >= 50).then(|| heard.iter().flat_map(|audio| from_base64(audio)).collect::<Vec<u8>>())
    })
    .await;
    let pcm: Vec<i16> = heard.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect();
    assert_eq!(pcm.len() % 480, 0, "20 ms are 480 samples");
    // A fifth of a second without a gap: a busy machine may tear the rest.
    let clean = pcm
        .windows(4800)
        .step_by(240)
        .any(|window| (hertz(window, 24_000.0) - 440.0).abs() < 10.0 && (loudness(window) - 5657.0).abs() < 600.0);
    assert!(clean, "{} Hz, as loud as {}", hertz(&pcm, 24_000.0), loudness(&pcm));
    // ... and half a second back, in pieces that end within a sample.
    let bytes: Vec<u8> = tone(660.0, 24_000.0, 12_000).into_iter().flat_map(i16::to_le_bytes).collect();
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    for piece in bytes.chunks(4801) {
        world.model.say(json!({ "type": "response.output_audio.delta", "response_id": "r1", "item_id": "i1", "delta": base64(piece) }));
    }
    world.model.say(json!({ "type": "response.output_audio_transcript.done", "response_id": "r1", "item_id": "i1", "transcript": "beep" }));
    world.model.say(json!({ "type": "response.output_audio.done", "response_id": "r1", "item_id": "i1" }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } }));
    let mut back: Vec<i16> = Vec::new();
    while back.len() < 4000 {
        let packet = caller.listen_to_all(1).await;
        if !back.is_empty() || packet.iter().any(|byte| *byte != 0xd5) {
            back.extend(packet.into_iter().map(|byte| Law::A.decode(byte)));
        }
    }
    let middle = &back[400..3600];
    assert!((hertz(middle, 8000.0) - 660.0).abs() < 15.0, "{} Hz", hertz(middle, 8000.0));
    assert!((loudness(middle) - 5657.0).abs() < 600.0, "{}", loudness(middle));
    until("it is recorded as said", || {
        world.told.events().into_iter().find(|event| event["type"] == "transcript" && event["text"] == "beep")
    })
    .await;
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_asked_too_often_is_asked_again_while_the_caller_hears_that_it_takes_longer() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    let error = json!({ "type": "requests", "code": "rate_limit_exceeded", "message": "slow down" });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "failed", "status_details": { "type": "failed", "error": error } } }));
    let filler = tokio::time::timeout(world::SOON, async { while caller.listen(1).await == [0xd5] {} }).await;
    assert!(filler.is_ok(), "somebody is still there");
    until("the model is asked again", || {
        (world.model.types().iter().filter(|kind| *kind == "response.create").count() == 2).then_some(())
    })
    .await;
    world.model.speak("r2", "here I am", 100);
    while caller.listen(1).await != [0x31] {}
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_expired_is_replaced_with_what_was_said() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    world.model.say(
        json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "my name is Keza" }),
    );
    until("it is recorded", || world.told.kinds().contains(&"transcript".into()).then_some(())).await;
    world
        .model
        .say(json!({ "type": "error", "error": { "type": "invalid_request_error", "code": "session_expired" } }));
    let told = |messages: &[Value]| messages.iter().any(|message| message.to_string().contains("my name is Keza"));
    until("the new session knows it", || told(&world.model.messages.lock().unwrap()).then_some(())).await;
    assert_eq!(world.model.types().iter().filter(|kind| *kind == "session.update").count(), 2);
    caller.speak(0x52, 5).await;
    let frame = base64(&[0x52; 160]);
    until("the caller is heard there", || world.model.heard.lock().unwrap().contains(&frame).then_some(())).await;
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

/// The beginning of an answer: whoever hears its sound has its words already.
fn begin_to_speak(world: &World, words: &str, ms: usize) {
    let of = |kind: &str, delta: &str| json!({ "type": kind, "response_id": "r1", "item_id": "r1", "delta": delta });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(of("response.output_audio_transcript.delta", words));
    world.model.say(of("response.output_audio.delta", &base64(&vec![0x31; ms * 8])));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_model_is_gone_for_good_the_caller_hears_an_apology_and_the_call_ends() {
    let apology = [0x43; 4000];
    let world = World::start_with(|config, directory| {
        let announcements = directory.join("announcements");
        std::fs::create_dir_all(&announcements).unwrap();
        std::fs::write(announcements.join("apology.en.alaw"), apology).unwrap();
        config.media.announcements = Some(announcements);
    })
    .await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    begin_to_speak(&world, "one two three four five six seven eight nine ten eleven twelve", 10_000);
    while caller.listen(1).await != [0x31] {}
    world.model.go();
    let mut sorry = 0;
    while sorry < 25 {
        sorry += usize::from(caller.listen(1).await == [0x43]);
    }
    let bye = caller.expect("BYE").await;
    assert_eq!(bye.header("Reason"), Some("Q.850;cause=41"));
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!((&end["cause"], world.told.to("/end").len()), (&json!("model_unavailable"), 1));
    let said = world.told.events().into_iter().find(|event| event["type"] == "transcript").unwrap();
    assert_eq!((&said["role"], &said["interrupted"]), (&json!("assistant"), &json!(true)), "as far as it was heard");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_in_the_middle_of_a_sentence_leaves_the_next_one_free_to_speak() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    begin_to_speak(&world, "It costs", 500);
    while caller.listen(1).await != [0x31] {}
    world.model.cut();
    until("the new session is asked to go on", || {
        (world.model.types().iter().filter(|kind| *kind == "response.create").count() == 2).then_some(())
    })
    .await;
    let quiet = tokio::time::timeout(world::SOON, async { while caller.listen(1).await != [0xd5] {} }).await;
    assert!(quiet.is_ok(), "the rest of the sentence never comes");
    world.model.speak("r2", "as I said", 100);
    while caller.listen(1).await != [0x31] {}
    until("both are recorded", || {
        let said = world.told.events().into_iter().filter(|event| event["type"] == "transcript");
        let texts: Vec<_> = said.map(|event| event["text"].as_str().unwrap().to_owned()).collect();
        (texts == ["It costs", "as I said"]).then_some(())
    })
    .await;
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_slow_to_renew_the_key_does_not_keep_the_next_connection_waiting() {
    let world = World::start_with(|config, _| {
        config.trunks[0].dids[0].agent = "keyed".into();
        config.session.timeout_ms = 60_000;
    })
    .await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    for _ in 0..10 {
        world.function_is_slow("/openai-realtime", Duration::from_secs(60));
    }
    world.model.cut();
    until("the new session is asked to greet", || {
        (world.model.types().iter().filter(|kind| *kind == "response.create").count() == 2).then_some(())
    })
    .await;
    caller.hang_up().await;
    until("the end is told", || world.told.to("/end").pop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_model_is_gone_a_person_may_take_the_call() {
    for (status, reason, cause) in
        [("200 OK", "cause=16", "transferred"), ("486 Busy Here", "cause=41", "model_unavailable")]
    {
        let world = World::start_with(|config, _| {
            config.trunks[0].fallback = Some(Number(E164::parse("+250788123000").unwrap()));
        })
        .await;
        let mut caller = world.caller().await;
        caller.connect().await;
        ready(&world).await;
        world.model.go();
        let refer = caller.expect("REFER").await;
        assert!(refer.header("Refer-To").unwrap().contains("+250788123000@"), "{}", refer.text);
        caller.reply(&refer, "202 Accepted").await;
        caller.notify(status).await;
        let bye = caller.expect("BYE").await;
        assert!(bye.header("Reason").unwrap().ends_with(reason), "{}", bye.text);
        assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], cause);
    }
}
