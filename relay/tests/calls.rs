//! Whole calls over real UDP: SIP and RTP on one side, a WebSocket on the other, and the record of it all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use world::{World, base64, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_answered_heard_interrupted_and_recorded() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.invite("Supported: timer\r\nSession-Expires: 1800\r\n", &caller.description("")).await;
    caller.expect("180").await;
    let answer = caller.expect("200").await;
    assert!(answer.text.contains("RTP/AVP 8 101") && answer.text.contains("a=rtpmap:8 PCMA/8000"), "{}", answer.text);
    assert_eq!(
        (answer.header("Session-Expires"), answer.header("Require")),
        (Some("1800;refresher=uac"), Some("timer"))
    );
    caller.take(&answer);
    caller.send("ACK", 1, "", "").await;

    until("the greeting is asked for", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    world.model.speak("r1", "Muraho, how can I help you today?", 300);
    let heard = caller.listen(40).await;
    assert_eq!(heard.iter().filter(|byte| **byte == 0x31).count(), 15, "{heard:x?}");

    caller.speak(0x52, 10).await;
    let frame = base64(&[0x52; 160]);
    until("the model hears the caller untouched", || {
        (world.model.heard.lock().unwrap().iter().filter(|audio| **audio == frame).count() >= 10).then_some(())
    })
    .await;

    world.model.say(json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "Bonjour", "languages": ["fr"] }));
    world.model.speak("r2", "one two three four five six seven eight nine ten", 1200);
    while caller.listen(1).await != [0x31] {}
    caller.listen(10).await;
    world.model.say(json!({ "type": "input_audio_buffer.speech_started" }));
    let truncate = until("the interruption is told", || {
        world
            .model
            .messages
            .lock()
            .unwrap()
            .iter()
            .find(|message| message["type"] == "conversation.item.truncate")
            .cloned()
    })
    .await;
    let ms = truncate["audio_end_ms"].as_u64().unwrap();
    assert!((200..1200).contains(&ms) && ms % 20 == 0, "{truncate}");
    let after = caller.listen(60).await;
    assert_eq!(after[50..], [0xd5; 10], "silence goes on after the interruption");

    caller.hang_up().await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(
        (&end["cause"], &end["from"], &end["to"]),
        (&json!("caller_hangup"), &json!("+250788123456"), &json!("+250788000100"))
    );
    assert!(
        end["media"]["packets_received"].as_u64().unwrap() >= 10 && end["media"]["mos"].as_f64().unwrap() > 3.0,
        "{end}"
    );
    let said: Vec<_> = world.told.events().into_iter().filter(|event| event["type"] == "transcript").collect();
    assert_eq!(said[0]["text"], "Muraho, how can I help you today?");
    assert_eq!((&said[1]["role"], &said[1]["language"]), (&json!("user"), &json!("fr")));
    assert!(said[2]["interrupted"] == true && said[2]["text"].as_str().unwrap().len() < 24, "{said:?}");
    assert_eq!(world.told.to("/end").len(), 1);
    let numbers: Vec<_> = world
        .told
        .to("/events")
        .iter()
        .flat_map(|body| body["events"].as_array().unwrap().clone())
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=end["last_seq"].as_u64().unwrap()).collect::<Vec<_>>(), "no gap and no copy");
    assert_eq!(world.told.to("/openai-realtime")[0]["correlation_id"], end["correlation_id"]);
    until("nothing is left in the journal", || {
        std::fs::read_dir(&world.directory).unwrap().next().is_none().then_some(())
    })
    .await;
    let (_, metrics) = world.get("/metrics").await;
    assert!(
        metrics.contains(r#"calls_ended_total{cause="caller_hung_up"} 1"#) && metrics.contains("calls_running 0"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_an_offer_gets_ours() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.invite("", "").await;
    let offer = caller.expect("200").await;
    assert!(offer.text.contains("RTP/AVP 8 0 101"), "{}", offer.text);
    caller.take(&offer);
    caller
        .send("ACK", 1, "Content-Type: application/sdp\r\n", &caller.description("").replace("0 8 101", "8 101"))
        .await;
    world.model.speak("r1", "hello", 100);
    let heard = caller.listen(20).await;
    assert_eq!(heard.iter().filter(|byte| **byte == 0x31).count(), 5);
    caller.hang_up().await;
    until("the end is told", || world.told.to("/end").pop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_and_keys_are_understood() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    caller.speak(0x52, 3).await;
    for end in [0, 0, 0x80, 0x80, 0x80] {
        caller.packet(101, 9000, &[5, end, 1, 0x40]).await;
    }
    caller.packet(101, 12_000, &[11, 0x80, 1, 0x40]).await;
    until("the keys are told", || {
        world
            .model
            .messages
            .lock()
            .unwrap()
            .iter()
            .any(|message| message.to_string().contains("pressed 5 on the keypad"))
            .then_some(())
    })
    .await;
    let cseq = caller.next_cseq();
    caller.send("INVITE", cseq, "Content-Type: application/sdp\r\n", &caller.description("a=sendonly\r\n")).await;
    let held = caller.expect("200").await;
    assert!(held.text.contains("a=recvonly"), "{}", held.text);
    caller.send("ACK", cseq, "", "").await;
    caller.hang_up().await;
    until("the end is told", || world.told.to("/end").pop()).await;
    assert!(world.told.kinds().iter().filter(|kind| *kind == "digit").count() == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_their_own_codes() {
    let world = World::start().await;
    let refused = async |headers: &str, description: &str| {
        let mut caller = world.caller().await;
        let description = if description.is_empty() { caller.description("") } else { description.to_owned() };
        caller.invite(headers, &description).await;
        caller.expect("4").await
    };
    let reply = refused("Require: 100rel\r\n", "").await;
    assert_eq!((reply.status, reply.header("Unsupported")), (420, Some("100rel")));
    let reply = refused("Session-Expires: 30\r\n", "").await;
    assert_eq!((reply.status, reply.header("Min-SE")), (422, Some("90")));
    let video = "v=0\r\no=t 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 4000 RTP/AVP 31\r\n";
    assert_eq!(refused("", video).await.status, 488);
    assert_eq!(refused("", "nonsense").await.status, 400);
    let mut caller = world.caller().await;
    caller.send("OPTIONS", 1, "", "").await;
    caller.expect("200").await;
    caller.send("BYE", 2, "", "").await;
    caller.expect("481").await;
    let scanner = world.caller().await;
    scanner.invite("User-Agent: friendly-scanner\r\n", &scanner.description("")).await;
    scanner.nothing_comes().await;
    assert!(world.told.to("/openai-realtime").is_empty(), "nothing was opened for any of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_no_answer_and_a_guarded_trunk_asks_who_it_is() {
    let world = World::start().await;
    let stranger = world.caller_at("127.0.0.9:0").await;
    stranger.invite("", &stranger.description("")).await;
    stranger.nothing_comes().await;
    assert!(world.get("/metrics").await.1.contains(r#"reason="unknown_source"} 1"#));
    let mut guarded = world.caller_at("127.0.0.2:0").await;
    guarded.invite("", &guarded.description("")).await;
    let challenge = guarded.expect("401").await;
    assert!(challenge.header("WWW-Authenticate").unwrap().contains("algorithm=SHA-256"), "{}", challenge.text);
    guarded.send("ACK", 1, "", "").await;
    let wrong = r#"Authorization: Digest username="trunk", realm="ihuza", nonce="1", uri="sip:1", response="2", nc=00000001, cnonce="3", qop=auth"#;
    let mut again = world.caller_at("127.0.0.2:0").await;
    again.invite(&format!("{wrong}\r\n"), &again.description("")).await;
    again.expect("401").await;
    assert!(world.get("/metrics").await.1.contains(r#"reason="unauthenticated"} 1"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_gives_up_while_it_rings_is_recorded_once() {
    let world = World::start().await;
    world.function_is_slow("/openai-realtime", Duration::from_millis(700));
    let mut caller = world.caller().await;
    caller.invite("", &caller.description("")).await;
    caller.expect("180").await;
    caller.send("CANCEL", 1, "", "").await;
    caller.expect("487").await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(end["cause"], "canceled");
    assert_eq!((world.told.to("/end").len(), world.told.kinds()), (1, vec!["opened".to_owned(), "ended".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_tool_is_spoken_over_and_its_result_reaches_the_model() {
    let world = World::start().await;
    world.function_is_slow("/tools", Duration::from_millis(1200));
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    let call =
        json!({ "type": "function_call", "call_id": "t1", "name": "search_services", "arguments": "{\"q\":\"bus\"}" });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(json!({ "type": "response.output_item.done", "item": call }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } }));
    while caller.listen(1).await == [0xd5] {}
    let output = until("the result is given to the model", || {
        world
            .model
            .messages
            .lock()
            .unwrap()
            .iter()
            .find(|message| message["item"]["type"] == "function_call_output")
            .cloned()
    })
    .await;
    assert_eq!(
        output["item"],
        json!({ "type": "function_call_output", "call_id": "t1", "output": "{\"ok\":true,\"result\":{\"found\":3}}" })
    );
    let asked = world.told.to("/tools");
    assert_eq!((&asked[0]["name"], &asked[0]["arguments"]), (&json!("search_services"), &json!("{\"q\":\"bus\"}")));
    assert!(asked[0]["idempotency_key"].as_str().unwrap().ends_with(":t1"));
    caller.hang_up().await;
    until("the end is told", || world.told.to("/end").pop()).await;
    let tool = world.told.events().into_iter().find(|event| event["type"] == "tool").unwrap();
    assert!(tool["ok"] == true && tool["took_ms"].as_u64().unwrap() >= 1200, "{tool}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_hangs_up_when_its_goodbye_is_spoken() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    world.model.say(json!({ "type": "response.output_item.done", "item": { "type": "function_call", "call_id": "t1", "name": "end_call", "arguments": "{}" } }));
    world.model.speak("r1", "goodbye", 400);
    let bye = caller.expect("BYE").await;
    assert_eq!(bye.header("Reason"), Some("Q.850;cause=16"));
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(end["cause"], "agent_hangup");
    let said: Vec<_> = world.told.events().into_iter().filter(|event| event["type"] == "transcript").collect();
    assert!(said.len() == 1 && said[0]["interrupted"] == false, "{said:?}");
}

/// A call in which the model wants a person to take over; the REFER is accepted.
async fn referred(world: &World) -> world::Caller {
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    let call = json!({ "type": "function_call", "call_id": "t1", "name": "transfer_to_human", "arguments": "{}" });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(json!({ "type": "response.output_item.done", "item": call }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } }));
    let refer = caller.expect("REFER").await;
    assert!(refer.header("Refer-To").unwrap().contains("+250788123000@"), "{}", refer.text);
    caller.reply(&refer, "202 Accepted").await;
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_answers_gets_the_call() {
    let world = World::start().await;
    let mut caller = referred(&world).await;
    for status in ["100 Trying", "200 OK"] {
        caller.notify(status).await;
    }
    let bye = caller.expect("BYE").await;
    assert_eq!(bye.header("Reason"), Some("Q.850;cause=16"));
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "transferred");
    let told = world.told.events().into_iter().find(|event| event["type"] == "transferred").unwrap();
    assert_eq!(told["outcome"], "confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_is_busy_leaves_the_call_to_the_agent() {
    let world = World::start().await;
    let mut caller = referred(&world).await;
    caller.notify("486 Busy Here").await;
    let output = until("the model is told", || {
        world.model.messages.lock().unwrap().iter().find(|message| message["item"]["call_id"] == "t1").cloned()
    })
    .await;
    assert_eq!(output["item"]["output"], "{\"status\":\"failed\"}");
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_on_every_port_does_not_reach_a_good_call() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    caller.listen(1).await;
    let media = caller.media.unwrap();
    let ports = [world.sip, media, SocketAddr::new(media.ip(), media.port() + 1)];
    let junk = std::thread::spawn(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.9:0").unwrap();
        for n in 0..20_000_u32 {
            let mut datagram = vec![0x80, 8, 0, n as u8, 0, 0, 0, 0, 0, 0, 0, 1];
            datagram.resize(12 + n as usize % 160, 0x66);
            let _ = socket.send_to(&datagram, ports[n as usize % 3]);
            // Twenty thousand a second.
            if n % 40 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    caller.speak(0x52, 50).await;
    junk.join().unwrap();
    caller.speak(0x52, 5).await;
    until("the model hears the caller", || {
        let heard = world.model.heard.lock().unwrap();
        assert!(!heard.iter().any(|audio| audio.starts_with(&base64(&[0x66; 3])[..4])), "junk is heard");
        (heard.len() >= 55).then_some(())
    })
    .await;
    caller.hang_up().await;
    let media = until("the end is told", || world.told.to("/end").pop()).await["media"].clone();
    assert_eq!((&media["packets_received"], &media["packets_lost"]), (&json!(55), &json!(0)), "{media}");
    assert!(media["packets_foreign"].as_u64().unwrap() > 5000, "{media}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_session_function_the_caller_hears_an_apology_and_the_end_is_told_later() {
    let world = World::start().await;
    world.function_fails("/openai-realtime", 503, 1);
    world.function_fails("/events", 503, 2);
    world.function_fails("/end", 503, 1);
    let mut caller = world.caller().await;
    caller.connect().await;
    let heard = caller.listen(20).await;
    assert!(heard.iter().any(|byte| *byte != 0xd5), "a tone, not silence");
    let bye = caller.expect("BYE").await;
    assert_eq!(bye.header("Reason"), Some("Q.850;cause=41"));
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(end["cause"], "model_unavailable");
    assert_eq!(world.told.kinds(), ["opened", "answered", "ended"], "each once, in order");
    let first = world.told.to("/events").remove(0);
    let times = [&first["started_at"], &end["answered_at"], &end["ended_at"]].map(|at| at.as_str().unwrap());
    assert!(times.is_sorted() && times[0] < times[2], "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_to_the_model_is_made_again_in_the_middle_of_a_call() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    world.model.say(
        json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "my name is Keza" }),
    );
    until("it is recorded", || world.told.kinds().contains(&"transcript".into()).then_some(())).await;
    world.model.cut();
    until("the new connection is told what was said", || {
        world
            .model
            .messages
            .lock()
            .unwrap()
            .iter()
            .any(|message| message.to_string().contains("my name is Keza"))
            .then_some(())
    })
    .await;
    world.model.speak("r9", "I am back", 100);
    while caller.listen(1).await != [0x31] {}
    caller.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_changes_the_language_and_everything_follows() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    let say = |text: &str, languages: serde_json::Value| {
        world.model.say(json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": text, "languages": languages }));
    };
    let pinned = |language: &str| {
        let messages = world.model.messages.lock().unwrap();
        let updates = messages.iter().filter(|message| message["type"] == "session.update");
        updates
            .filter(|update| update["session"]["instructions"].as_str().unwrap().contains(&format!("Speak {language}")))
            .count()
    };
    // In the first turn a sentence is enough.
    say("Bonjour, je cherche une maison", json!(["fr"]));
    until("the model is told to speak French", || (pinned("French") == 1).then_some(())).await;
    // Later one turn is not, even if the recogniser is sure of it.
    say("yes please, how much is it", json!(["en"]));
    say("oui, la maison à Kicukiro", json!(["fr"]));
    say("Muraho", json!([]));
    say("Ndashaka kubona inzu ejo", json!([]));
    until("the model is told to speak Kinyarwanda", || (pinned("Kinyarwanda") == 1).then_some(())).await;
    assert_eq!((pinned("French"), pinned("English")), (1, 0));
    caller.hang_up().await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(end["locale"], "rw");
    let told = world.told.events();
    let languages: Vec<_> =
        told.iter().filter(|event| event["type"] == "language").map(|event| event["language"].clone()).collect();
    assert_eq!(languages, ["fr", "rw"]);
    let said: Vec<_> = told.iter().filter(|event| event["type"] == "transcript").collect();
    let known: Vec<_> = said.iter().map(|row| format!("{} {}", row["language"], row["language_source"])).collect();
    let [sure, seen] = ["transcription", "detected"];
    assert_eq!(
        known,
        [("fr", sure), ("en", sure), ("fr", sure), ("rw", seen), ("rw", seen)]
            .map(|(language, source)| format!("{language:?} {source:?}"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_refuses_new_calls_and_ends_the_last_ones_at_the_deadline() {
    let mut world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    let relay = world.relay.take().unwrap();
    let drained = tokio::spawn(relay.drain());
    let mut late = world.caller().await;
    let address = world.http;
    while reqwest::get(format!("http://{address}/healthz")).await.unwrap().status() != 503 {}
    late.invite("", &late.description("")).await;
    let reply = late.expect("503").await;
    assert_eq!(reply.header("Retry-After"), Some("30"));
    assert_eq!(world.get("/healthz").await.0, 503);
    caller.expect("BYE").await;
    drained.await.unwrap();
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_relay_left_behind_is_told_by_the_next() {
    let mut world = World::start().await;
    world.function_fails("/events", 503, 1000);
    let mut caller = world.caller().await;
    caller.connect().await;
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    world
        .model
        .say(json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "remember this" }));
    let journal = until("it is on disk", || {
        let path = std::fs::read_dir(&world.directory).unwrap().next()?.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(13).any(|window| window == b"remember this").then_some(path)
    })
    .await;
    // What a kill leaves: the file as it stands, with half a record at its end. The first relay keeps no hold on it.
    let mut left = std::fs::read(&journal).unwrap();
    left.extend([9, 0, 0, 0, 7]);
    let elsewhere = world.directory.join("crashed");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join(journal.file_name().unwrap()), left).unwrap();
    let mut next = World::start().await;
    next.adopt(&elsewhere).await;
    let end = until("the end is told", || next.told.to("/end").pop()).await;
    assert_eq!(end["cause"], "relay_restarted");
    assert_eq!(next.told.kinds(), ["opened", "answered", "transcript", "ended"]);
    assert_eq!(next.told.to("/end").len(), 1);
    world.relay.take();
}
