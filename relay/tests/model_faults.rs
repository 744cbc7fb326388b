//! The connection to the model is cut, at every stage of a call: the caller goes on talking, or hears an apology.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use world::{Caller, SOON, World, until};

/// What becomes of a connection on its way to the model.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    /// It is closed at once.
    AtOnce,
    /// When the first message of ours comes: our settings.
    AtSettings,
}

/// A way to the model on which the first connections are cut so; all later ones get through, unless `all` are cut.
async fn cutting(model: SocketAddr, cuts: Vec<Cut>, all: Option<Cut>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cuts = Arc::new(Mutex::new(VecDeque::from(cuts)));
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let cut = cuts.lock().unwrap().pop_front().or(all);
            tokio::spawn(async move {
                if cut == Some(Cut::AtOnce) {
                    return;
                }
                let mut far = TcpStream::connect(model).await.unwrap();
                let (mut out, mut back) = (vec![0; 65536], vec![0; 65536]);
                let mut said = 0;
                loop {
                    tokio::select! {
                        Ok(length) = near.read(&mut out) => {
                            said += 1;
                            // The first thing that is said is the handshake.
                            if length == 0 || cut == Some(Cut::AtSettings) && said == 2 {
                                return;
                            }
                            far.write_all(&out[..length]).await.unwrap();
                        }
                        Ok(length) = far.read(&mut back) => {
                            if length == 0 || near.write_all(&back[..length]).await.is_err() {
                                return;
                            }
                        }
                        else => return,
                    }
                }
            });
        }
    });
    address
}

async fn with(cuts: Vec<Cut>, all: Option<Cut>) -> World {
    let mut world = World::without_relay().await;
    let url = world.config.model.url.clone();
    let model = url.trim_start_matches("ws://").split('/').next().unwrap().parse().unwrap();
    let way = cutting(model, cuts, all).await;
    world.begin(|config| config.model.url = format!("ws://{way}/v1/realtime")).await;
    world
}

/// How often the model was asked to speak.
fn asked(world: &World) -> usize {
    world.model.types().iter().filter(|kind| *kind == "response.create").count()
}

async fn asked_times(world: &World, times: usize) {
    until("the model is asked to speak", || (asked(world) >= times).then_some(())).await;
}

async fn hears(caller: &Caller, byte: u8) {
    let heard = async { while caller.listen(1).await != [byte] {} };
    tokio::time::timeout(SOON, heard).await.unwrap_or_else(|_| panic!("{byte:#x} is not heard"));
}

fn said(world: &World) -> Vec<(String, String)> {
    let events = world.told.events().into_iter().filter(|event| event["type"] == "transcript");
    events
        .map(|event| (event["role"].as_str().unwrap().to_owned(), event["text"].as_str().unwrap().to_owned()))
        .collect()
}

async fn ends_well(world: &World, caller: &mut Caller) -> Value {
    caller.hang_up().await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(end["cause"], "caller_hangup");
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_stands_or_is_set_up_another_one_is_made_and_the_caller_notices_nothing() {
    for cuts in [vec![Cut::AtOnce], vec![Cut::AtSettings], vec![Cut::AtSettings, Cut::AtOnce, Cut::AtSettings]] {
        let world = with(cuts, None).await;
        let mut caller = world.caller().await;
        caller.connect().await;
        asked_times(&world, 1).await;
        let greeting =
            world.model.messages.lock().unwrap().iter().find(|message| message["type"] == "response.create").cloned();
        assert_eq!(greeting.unwrap()["response"]["instructions"], "greet");
        world.model.speak("r1", "hello", 200);
        hears(&caller, 0x31).await;
        ends_well(&world, &mut caller).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_never_there_is_apologised_for() {
    for cut in [Cut::AtOnce, Cut::AtSettings] {
        let world = with(vec![], Some(cut)).await;
        let mut caller = world.caller().await;
        caller.connect().await;
        let heard = caller.listen(20).await;
        assert!(heard.iter().any(|byte| *byte != 0xd5), "a tone, not silence");
        let bye = caller.expect("BYE").await;
        assert_eq!(bye.header("Reason"), Some("Q.850;cause=41"));
        let end = until("the end is told", || world.told.to("/end").pop()).await;
        assert_eq!((&end["cause"], world.told.to("/end").len()), (&json!("model_unavailable"), 1));
    }
}

/// Speech that is cut off by the end of the connection: sound and words, and nothing that says that it is done.
fn begin_to_speak(world: &World, name: &str, words: &str, ms: usize) {
    let audio = world::base64(&vec![0x31; ms * 8]);
    world.model.say(json!({ "type": "response.created", "response": { "id": name } }));
    world
        .model
        .say(json!({ "type": "response.output_audio.delta", "response_id": name, "item_id": name, "delta": audio }));
    world.model.say(json!({ "type": "response.output_audio_transcript.delta", "response_id": name, "item_id": name, "delta": words }));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_the_greeting_the_agent_is_asked_to_go_on() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    asked_times(&world, 1).await;
    begin_to_speak(&world, "r1", "Muraho, this is", 300);
    hears(&caller, 0x31).await;
    world.model.cut();
    asked_times(&world, 2).await;
    world.model.speak("r2", "How can I help you?", 200);
    until("both parts are recorded", || (said(&world).len() == 2).then_some(())).await;
    assert_eq!(said(&world)[0], ("assistant".into(), "Muraho, this is".into()), "what was heard is recorded");
    ends_well(&world, &mut caller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_word_of_the_greeting_it_is_asked_for_again() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    asked_times(&world, 1).await;
    world.model.cut();
    asked_times(&world, 2).await;
    let last =
        world.model.messages.lock().unwrap().iter().rfind(|message| message["type"] == "response.create").cloned();
    assert_eq!(last.unwrap()["response"]["instructions"], "greet");
    world.model.speak("r2", "Muraho", 200);
    hears(&caller, 0x31).await;
    ends_well(&world, &mut caller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_an_answer_its_heard_part_is_recorded_and_what_follows_too() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    asked_times(&world, 1).await;
    world.model.speak("r1", "Muraho", 100);
    until("it is recorded", || (said(&world).len() == 1).then_some(())).await;
    world.model.say(
        json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "where is the bus" }),
    );
    begin_to_speak(&world, "r2", "the bus is at", 200);
    hears(&caller, 0x31).await;
    world.model.cut();
    asked_times(&world, 2).await;
    let replayed = world
        .model
        .messages
        .lock()
        .unwrap()
        .iter()
        .filter(|message| message["type"] == "conversation.item.create")
        .count();
    assert!(replayed >= 2, "the new connection knows what was said");
    world.model.speak("r3", "the market", 100);
    until("all of it is recorded", || (said(&world).len() == 4).then_some(())).await;
    let texts: Vec<String> = said(&world).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["Muraho", "where is the bus", "the bus is at", "the market"]);
    let end = ends_well(&world, &mut caller).await;
    assert_eq!(end["last_seq"], world.told.events().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_tool_runs_the_model_is_asked_again_and_may_call_it_again() {
    let world = World::start().await;
    world.function_is_slow("/tools", Duration::from_millis(500));
    let mut caller = world.caller().await;
    caller.connect().await;
    asked_times(&world, 1).await;
    let wants_tool = |call: &str| {
        let item = json!({ "type": "function_call", "call_id": call, "name": "search_services", "arguments": "{}" });
        world.model.say(json!({ "type": "response.created", "response": { "id": call } }));
        world.model.say(json!({ "type": "response.output_item.done", "item": item }));
        world.model.say(json!({ "type": "response.done", "response": { "id": call, "status": "completed" } }));
    };
    wants_tool("t1");
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.model.cut();
    asked_times(&world, 2).await;
    wants_tool("t2");
    until("the result is given to the model", || {
        let messages = world.model.messages.lock().unwrap();
        messages.iter().any(|message| message["item"]["call_id"] == "t2").then_some(())
    })
    .await;
    let stale = world.model.messages.lock().unwrap().iter().any(|message| message["item"]["call_id"] == "t1");
    assert!(!stale, "the new connection never asked for the first one");
    let told = || world.told.events().into_iter().filter(|event| event["type"] == "tool").count();
    until("both are recorded", || (told() == 2).then_some(())).await;
    ends_well(&world, &mut caller).await;
}
