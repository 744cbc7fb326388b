//! Over a real socket: what a client of the real service would see, and what it would be refused.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_websockets::{ClientBuilder, MaybeTlsStream, Message, WebSocketStream};

use super::{Act, Rules, Script, Turn};
use crate::control::Fault;
use crate::edge::client;
use crate::openai::OpenAi;
use crate::speech::{self, Speech};

const KEY: &str = "sk-test";
const MODEL: &str = "gpt-realtime-2.1-mini";
const SOON: Duration = Duration::from_secs(20);

async fn simulator() -> OpenAi {
    OpenAi::start(0, KEY.to_owned(), Duration::ZERO).await.unwrap()
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    seen: Vec<Value>,
}

impl Client {
    async fn dial(openai: &OpenAi, key: &str, query: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let url = format!("{}/realtime?{query}", openai.base_url().replace("http://", "ws://"));
        let mut builder = ClientBuilder::new().uri(&url).unwrap();
        let key = format!("Bearer {key}");
        for (name, value) in [("authorization", key.as_str())].iter().chain(headers) {
            builder = builder.add_header(name.parse().unwrap(), value.parse().unwrap()).unwrap();
        }
        match builder.connect().await {
            Ok((socket, _)) => Ok(Self { socket, seen: Vec::new() }),
            Err(tokio_websockets::Error::Upgrade(tokio_websockets::upgrade::Error::DidNotSwitchProtocols(status))) => {
                Err(status)
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// A session for a telephone.
    async fn start(openai: &OpenAi) -> Self {
        let mut client = Self::dial(openai, KEY, &format!("model={MODEL}"), &[]).await.unwrap();
        client.until("session.created").await;
        client.send(phone()).await;
        client.until("session.updated").await;
        client
    }

    async fn send(&mut self, event: Value) {
        self.socket.send(Message::text(event.to_string())).await.unwrap();
    }

    /// The next event; none when the connection is over.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let message = tokio::time::timeout(SOON, self.socket.next()).await.unwrap();
            let message = message?.ok()?;
            if message.is_close() {
                return None;
            }
            if let Some(text) = message.as_text() {
                let event: Value = serde_json::from_str(text).unwrap();
                assert!(event["event_id"].as_str().is_some_and(|id| id.starts_with("event_")), "{event}");
                self.seen.push(event.clone());
                return Some(event);
            }
        }
    }

    /// The next event of this type; an error that nobody waits for is a failure.
    async fn until(&mut self, name: &str) -> Value {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("{name} did not come: {:?}", self.types()));
            if event["type"] == name {
                return event;
            }
            assert_ne!(event["type"], "error", "while waiting for {name}: {event}");
        }
    }

    fn types(&self) -> Vec<&str> {
        self.seen.iter().map(|event| event["type"].as_str().unwrap()).collect()
    }

    /// Sends, and is refused with this code.
    async fn refused(&mut self, mut event: Value, code: &str) -> Value {
        event["event_id"] = json!("mine");
        let sent = event.to_string();
        self.send(event).await;
        let error = loop {
            let event = self.next().await.unwrap_or_else(|| panic!("no answer to {sent}"));
            if event["type"] == "error" {
                break event["error"].clone();
            }
        };
        assert_eq!((&error["code"], &error["event_id"]), (&json!(code), &json!("mine")), "{sent}: {error}");
        error
    }

    /// Speaks in A-law, in packets of 20 ms, as fast as can be.
    async fn speak(&mut self, speech: &Speech, then_silence_ms: usize) {
        let sound = [speech.alaw, &vec![0xd5; then_silence_ms * 8]].concat();
        for packet in sound.chunks(160) {
            self.send(json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(packet)})).await;
        }
    }
}

fn phone() -> Value {
    let format = json!({"type": "audio/pcma"});
    json!({"type": "session.update", "session": {"type": "realtime", "instructions": "Help.", "output_modalities": ["audio"],
        "audio": {"input": {"format": format, "transcription": {"model": "gpt-transcribe", "languages": ["en", "rw"]},
                            "turn_detection": {"type": "server_vad", "threshold": 0.55, "silence_duration_ms": 500}},
                  "output": {"format": format, "voice": "marin"}},
        "tools": [{"type": "function", "name": "search_services", "parameters": {"type": "object"}}]}})
}

fn sound_of(events: &[Value]) -> Vec<u8> {
    let deltas = events.iter().filter(|event| event["type"] == "response.output_audio.delta");
    deltas.flat_map(|event| STANDARD.decode(event["delta"].as_str().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn a_turn_is_heard_answered_with_a_function_and_then_with_speech() {
    let openai = simulator().await;
    let mut client = Client::start(&openai).await;
    let session = &client.seen[0]["session"];
    assert_eq!((&session["object"], &session["model"]), (&json!("realtime.session"), &json!(MODEL)));
    assert_eq!(session["audio"]["input"]["turn_detection"]["silence_duration_ms"], 500, "filled in");
    client.send(json!({"type": "response.create", "response": {"instructions": "Greet."}})).await;
    let done = client.until("response.done").await;
    assert_eq!(
        (&done["response"]["status"], sound_of(&client.seen)),
        (&json!("completed"), speech::AGENT_GREETING.alaw.to_vec())
    );

    client.seen.clear();
    client.speak(&speech::CALLER_QUESTION, 700).await;
    let done = client.until("response.done").await;
    let order = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "rate_limits.updated",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ];
    let mut came: Vec<&str> = client.types();
    came.retain(|name| !name.contains("transcription"));
    let delta = |name: &str| name.starts_with("response.output_audio") && name.ends_with(".delta");
    let first_delta = came.iter().position(|name| delta(name)).unwrap();
    let deltas = came.iter().filter(|name| delta(name)).count();
    assert!(deltas > 4, "{came:?}");
    came.drain(first_delta + 2..first_delta + deltas);
    assert_eq!(came, order);
    let find = |name: &str| client.seen.iter().find(|event| event["type"] == name).unwrap();
    let started = find("input_audio_buffer.speech_started");
    let stopped = find("input_audio_buffer.speech_stopped");
    assert_eq!(started["item_id"], stopped["item_id"]);
    assert!(stopped["audio_end_ms"].as_u64().unwrap() > started["audio_start_ms"].as_u64().unwrap() + 5000);
    let call = &done["response"]["output"][1];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("search_services")));
    let heard =
        match client.seen.iter().find(|event| event["type"] == "conversation.item.input_audio_transcription.completed")
        {
            Some(heard) => heard.clone(),
            None => client.until("conversation.item.input_audio_transcription.completed").await,
        };
    assert_eq!(heard["transcript"], speech::CALLER_QUESTION.text);
    assert!((6..=8).contains(&heard["usage"]["seconds"].as_u64().unwrap()), "{heard}");

    let call_id = call["call_id"].clone();
    let output = json!({"type": "function_call_output", "call_id": call_id, "output": "{\"services\":[{\"area\":\"Kimironko\"}]}"});
    client.send(json!({"type": "conversation.item.create", "item": output})).await;
    client.send(json!({"type": "response.create"})).await;
    client.seen.clear();
    let done = client.until("response.done").await;
    assert_eq!(sound_of(&client.seen), speech::AGENT_OFFER.alaw);
    let usage = &done["response"]["usage"];
    assert_eq!(usage["output_token_details"]["audio_tokens"], speech::AGENT_OFFER.ms().div_ceil(50), "{usage}");
    assert!(usage["input_token_details"]["cached_tokens"].as_u64().unwrap() > 0, "{usage}");
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap()
    );
}

#[tokio::test]
async fn what_a_function_gave_decides_what_is_said() {
    let openai = simulator().await;
    let mut client = Client::start(&openai).await;
    client.speak(&speech::CALLER_QUESTION, 700).await;
    let done = client.until("response.done").await;
    let output = json!({"type": "function_call_output", "call_id": done["response"]["output"][1]["call_id"], "output": "{\"services\":[]}"});
    client.send(json!({"type": "conversation.item.create", "item": output})).await;
    client.send(json!({"type": "response.create"})).await;
    let done = client.until("response.done").await;
    assert_eq!(done["response"]["output"][0]["content"][0]["transcript"], speech::AGENT_NOTHING.text);
}

#[tokio::test]
async fn a_caller_who_interrupts_cancels_the_response_and_what_was_not_heard_is_cut_off() {
    let openai = simulator().await;
    openai.realtime().set_rules(Rules { speed: 2, ..Rules::default() });
    openai.realtime().script(Script {
        greeting: speech::AGENT_OFFER,
        turns: vec![Turn::new("Wait", vec![Act::Say(speech::AGENT_PARKING)])],
    });
    let mut client = Client::start(&openai).await;
    client.send(json!({"type": "response.create"})).await;
    let delta = client.until("response.output_audio.delta").await;
    client.speak(&speech::CALLER_INTERRUPTS, 700).await;
    let done = client.until("response.done").await;
    assert_eq!(
        (&done["response"]["status"], &done["response"]["status_details"]),
        (&json!("cancelled"), &json!({"type": "cancelled", "reason": "turn_detected"}))
    );
    let generated = sound_of(&client.seen).len();
    assert!(generated < speech::AGENT_OFFER.alaw.len() && client.types().contains(&"response.output_audio.done"));
    let item = delta["item_id"].as_str().unwrap();
    let truncate = |ms: usize| json!({"type": "conversation.item.truncate", "item_id": item, "content_index": 0, "audio_end_ms": ms});
    let refused = client.refused(truncate(generated / 8 + 20), "invalid_value").await;
    assert!(refused["message"].as_str().unwrap().contains("is already shorter than"), "{refused}");
    client.send(truncate(60)).await;
    let truncated = loop {
        let event = client.next().await.unwrap();
        if event["type"] == "conversation.item.truncated" {
            break event;
        }
    };
    assert_eq!(truncated["audio_end_ms"], 60);
    client.send(json!({"type": "conversation.item.retrieve", "item_id": item})).await;
    let kept = loop {
        let event = client.next().await.unwrap();
        if event["type"] == "conversation.item.retrieved" {
            break event;
        }
    };
    assert!(kept["item"]["content"][0].get("transcript").is_none(), "{kept}");
}

#[tokio::test]
async fn what_the_real_one_refuses_is_refused_and_the_session_goes_on() {
    let openai = simulator().await;
    let mut client = Client::start(&openai).await;
    client.socket.send(Message::text("{")).await.unwrap();
    assert_eq!(client.next().await.unwrap()["error"]["code"], "invalid_json");
    client
        .refused(json!({"type": "session.update", "session": {"instructions": "x"}}), "missing_required_parameter")
        .await;
    client
        .refused(
            json!({"type": "session.update", "session": {"type": "realtime", "voice": "marin"}}),
            "unknown_parameter",
        )
        .await;
    client
        .refused(
            json!({"type": "session.update", "session": {"type": "realtime", "model": "gpt-realtime-2"}}),
            "invalid_value",
        )
        .await;
    client.refused(json!({"type": "input_audio_buffer.append", "audio": "not base64"}), "invalid_value").await;
    client.refused(json!({"type": "input_audio_buffer.commit"}), "input_audio_buffer_commit_empty").await;
    client.refused(json!({"type": "response.audio.delta"}), "invalid_value").await;
    client.refused(json!({"type": "response.cancel"}), "response_cancel_not_active").await;
    let item = |name: &str| json!({"type": name, "item_id": "item_none", "content_index": 0, "audio_end_ms": 5});
    client.refused(item("conversation.item.truncate"), "item_truncate_invalid_item_id").await;
    client
        .refused(json!({"type": "conversation.item.delete", "item_id": "item_none"}), "item_delete_invalid_item_id")
        .await;
    let output = json!({"type": "function_call_output", "call_id": "call_none", "output": "{}"});
    client.refused(json!({"type": "conversation.item.create", "item": output}), "invalid_tool_call_id").await;
    let message =
        json!({"type": "message", "id": "item_1", "role": "user", "content": [{"type": "input_text", "text": "hi"}]});
    client.send(json!({"type": "conversation.item.create", "item": message})).await;
    client.until("conversation.item.done").await;
    client.refused(json!({"type": "conversation.item.create", "item": message}), "item_create_duplicate_item_id").await;
    client
        .refused(
            item("conversation.item.truncate")
                .as_object()
                .map(|truncate| {
                    let mut truncate = truncate.clone();
                    truncate.insert("item_id".into(), json!("item_1"));
                    Value::Object(truncate)
                })
                .unwrap(),
            "unsupported_content_type",
        )
        .await;
    client.send(json!({"type": "response.create"})).await;
    client.until("response.created").await;
    client.refused(json!({"type": "response.create"}), "conversation_already_has_active_response").await;
    client.until("response.done").await;
    let voice =
        json!({"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"voice": "cedar"}}}});
    client.refused(voice, "cannot_update_voice").await;
    client
        .send(json!({"type": "response.create", "response": {"output_modalities": ["text"], "conversation": "none"}}))
        .await;
    let done = client.until("response.done").await;
    assert_eq!(done["response"]["output"][0]["content"][0]["type"], "output_text", "{done}");
    assert_eq!(done["response"]["conversation_id"], Value::Null);
}

#[tokio::test]
async fn a_client_may_end_turns_itself_and_speak_in_pcm() {
    let openai = simulator().await;
    let mut client = Client::dial(&openai, KEY, &format!("model={MODEL}"), &[]).await.unwrap();
    client.until("session.created").await;
    let update = json!({"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": null}}}});
    client.send(update).await;
    client.until("session.updated").await;
    client
        .refused(json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode([1, 2, 3])}), "invalid_value")
        .await;
    let sound: Vec<u8> = std::iter::repeat_n([0, 40], 24_000).flatten().collect();
    client.send(json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(sound)})).await;
    client.send(json!({"type": "input_audio_buffer.clear"})).await;
    client.until("input_audio_buffer.cleared").await;
    client.refused(json!({"type": "input_audio_buffer.commit"}), "input_audio_buffer_commit_empty").await;
    client.send(json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(vec![0; 9600])})).await;
    client.send(json!({"type": "input_audio_buffer.commit"})).await;
    client.until("conversation.item.done").await;
    client.send(json!({"type": "response.create"})).await;
    client.until("response.done").await;
    assert!(!client.types().contains(&"input_audio_buffer.speech_started"));
    assert_eq!(sound_of(&client.seen).len() as u64, 6 * speech::AGENT_LOOKING.alaw.len() as u64, "24 kHz, 16 bit");
    client.refused(json!({"type": "input_audio_buffer.commit"}), "input_audio_buffer_commit_empty").await;
}

#[tokio::test]
async fn turn_detection_does_what_it_is_set_to() {
    let openai = simulator().await;
    openai.realtime().set_rules(Rules { speed: 2, ..Rules::default() });
    let mut client = Client::start(&openai).await;
    let format = json!({"type": "audio/pcmu"});
    let settings = json!({"type": "realtime", "audio": {"output": {"format": format}, "input": {"turn_detection": {
        "type": "server_vad", "create_response": false, "interrupt_response": false, "prefix_padding_ms": 100, "silence_duration_ms": 400}}}});
    client.send(json!({"type": "session.update", "session": settings})).await;
    client.until("session.updated").await;
    client.send(json!({"type": "response.create"})).await;
    client.until("response.output_audio.delta").await;
    client.speak(&speech::CALLER_INTERRUPTS, 600).await;
    let done = client.until("response.done").await;
    assert_eq!(done["response"]["status"], "completed", "nobody may interrupt");
    let mulaw = crate::openai::realtime::audio::Format::Mulaw;
    assert_eq!(sound_of(&client.seen), mulaw.write(&speech::AGENT_GREETING));
    // It is written down meanwhile.
    let heard = "conversation.item.input_audio_transcription.completed";
    let heard = match client.seen.iter().find(|event| event["type"] == heard) {
        Some(heard) => heard.clone(),
        None => client.until(heard).await,
    };
    assert_eq!(heard["transcript"], speech::CALLER_QUESTION.text, "the script's first turn, whatever was spoken");
    let stopped = client.seen.iter().rfind(|event| event["type"] == "input_audio_buffer.speech_stopped").unwrap();
    let end = stopped["audio_end_ms"].as_u64().unwrap();
    assert!(end <= speech::CALLER_INTERRUPTS.ms() + 420, "{end}: four tenths of silence end a turn");
    // Nothing is answered until it is asked for.
    client.send(json!({"type": "input_audio_buffer.clear"})).await;
    client.until("input_audio_buffer.cleared").await;
    assert_eq!(client.types().iter().filter(|name| **name == "response.created").count(), 1);
    client.send(json!({"type": "response.create"})).await;
    let done = client.until("response.done").await;
    assert_eq!(done["response"]["output"][1]["name"], "search_services");
}

/// A key, as the function asks for one.
async fn mint(openai: &OpenAi) -> String {
    let session = json!({"type": "realtime", "model": MODEL, "instructions": "From the key."});
    let request = client().unwrap().post(format!("{}/realtime/client_secrets", openai.base_url())).bearer_auth(KEY);
    let answer = request.json(&json!({"session": session})).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    answer["value"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn who_may_come_in_and_with_what() {
    let openai = simulator().await;
    let query = format!("model={MODEL}");
    assert_eq!(Client::dial(&openai, "sk-wrong", &query, &[]).await.err(), Some(401));
    assert_eq!(Client::dial(&openai, "ek_wrong", &query, &[]).await.err(), Some(401));
    let plain = client().unwrap().get(format!("{}/realtime?{query}", openai.base_url())).bearer_auth(KEY);
    assert_eq!(plain.send().await.unwrap().status(), 426);

    let mut beta = Client::dial(&openai, KEY, &query, &[("openai-beta", "realtime=v1")]).await.unwrap();
    assert_eq!(beta.next().await.unwrap()["error"]["code"], "beta_api_shape_disabled");
    assert_eq!(beta.next().await, None);
    let mut old = Client::dial(&openai, KEY, "model=gpt-4o-realtime-preview-2024-10-01", &[]).await.unwrap();
    assert_eq!(old.next().await.unwrap()["error"]["code"], "model_not_found");
    assert_eq!(old.next().await, None);

    let key = mint(&openai).await;
    for _ in 0..2 {
        let mut guest = Client::dial(&openai, &key, &query, &[]).await.unwrap();
        let created = guest.until("session.created").await;
        assert_eq!(created["session"]["instructions"], "From the key.");
        assert!(created["session"]["id"].as_str().unwrap().starts_with("sess_"));
    }
    openai.realtime().expire(&key);
    assert_eq!(Client::dial(&openai, &key, &query, &[]).await.err(), Some(401), "expired");
    let records = openai.control().requests();
    assert!(records.iter().any(|record| record.path == super::SOCKET && record.status == Some(101)));
    assert!(
        !serde_json::to_string(&records.iter().map(|record| &record.headers).collect::<Vec<_>>())
            .unwrap()
            .contains(&key)
    );
}

#[tokio::test]
async fn a_conversation_goes_on_with_the_same_key_after_its_connection_was_cut() {
    let openai = simulator().await;
    openai
        .realtime()
        .script(Script { turns: vec![Turn::new("one", vec![]), Turn::new("two", vec![])], ..Script::default() });
    let key = mint(&openai).await;
    for words in ["one", "two"] {
        let mut guest = Client::dial(&openai, &key, &format!("model={MODEL}"), &[]).await.unwrap();
        guest.until("session.created").await;
        guest.send(phone()).await;
        guest.speak(&speech::CALLER_INTERRUPTS, 700).await;
        let heard = guest.until("conversation.item.input_audio_transcription.completed").await;
        assert_eq!(heard["transcript"], words);
        openai.realtime().cut();
        while guest.next().await.is_some() {}
    }
}

#[tokio::test]
async fn a_session_ends_at_its_limit() {
    let openai = simulator().await;
    openai.realtime().set_rules(Rules { session_limit: Duration::from_millis(300), ..Rules::default() });
    let mut client = Client::start(&openai).await;
    let error = loop {
        let event = client.next().await.unwrap();
        if event["type"] == "error" {
            break event;
        }
    };
    assert_eq!(error["error"]["code"], "session_expired");
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn faults_strike_the_events_that_they_name() {
    let openai = simulator().await;
    let fail = |fault: Fault| openai.fail_with(fault);
    fail(Fault::Status503).on(super::HANDSHAKE);
    assert_eq!(Client::dial(&openai, KEY, &format!("model={MODEL}"), &[]).await.err(), Some(503));

    let mut client = Client::start(&openai).await;
    fail(Fault::Status429).on("response.create");
    client.send(json!({"type": "response.create"})).await;
    let failed = client.until("response.done").await;
    assert_eq!(failed["response"]["status_details"]["error"]["code"], "rate_limit_exceeded", "{failed}");
    fail(Fault::Status500Before).on("input_audio_buffer.clear");
    client.refused(json!({"type": "input_audio_buffer.clear"}), "server_error").await;
    fail(Fault::Slow).on("response.create").delay(Duration::from_millis(700));
    let since = std::time::Instant::now();
    client.send(json!({"type": "response.create"})).await;
    client.until("response.created").await;
    client.until("response.output_audio.delta").await;
    assert!(since.elapsed() >= Duration::from_millis(700));
    client.until("response.done").await;

    fail(Fault::TimeoutBefore).on("response.create");
    client.send(json!({"type": "response.create"})).await;
    client.socket.send(Message::ping("anybody")).await.unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(500), client.socket.next()).await;
    assert!(silence.is_err(), "half open: not even a pong");

    let mut cut = Client::start(&openai).await;
    fail(Fault::CutBefore).on("response.create");
    cut.send(json!({"type": "response.create"})).await;
    assert_eq!(cut.next().await, None);
    assert!(openai.realtime().sessions().last().unwrap().ended);
    assert!(Client::start(&openai).await.seen.len() >= 2, "no fault is left");
}

#[tokio::test]
async fn scripts_and_rules_are_ordered_over_http() {
    let openai = simulator().await;
    let post = async |place: &str, body: Value| {
        let request = client().unwrap().post(format!("{}/control/{place}", openai.url()));
        let answer = request.json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, why) = post("scripts", json!({"turns": [{"text": "x", "acts": [{"say": "nobody.en"}]}]})).await;
    assert!(status == 400 && why.contains("agent_parking.en"), "{why}");
    let turns = json!([{"text": "Bonjour", "language": "fr", "acts": [{"call": {"name": "search_services", "arguments": {}}}, {"say": "agent_parking.en"}]}]);
    assert_eq!(post("scripts", json!({"greeting": "agent_greeting.fr", "turns": turns})).await.0, 201);
    assert_eq!(post("rules", json!({"think_ms": 5, "speed": 100, "session_limit_ms": 60_000})).await.0, 201);
    let mut client = Client::start(&openai).await;
    client.send(json!({"type": "response.create"})).await;
    client.until("response.done").await;
    assert_eq!(sound_of(&client.seen), speech::AGENT_GREETING_FR.alaw);
    client.speak(&speech::CALLER_QUESTION_FR, 700).await;
    let heard = client.until("conversation.item.input_audio_transcription.completed").await;
    assert_eq!((&heard["transcript"], &heard["languages"]), (&json!("Bonjour"), &json!(["fr"])));
    assert_eq!(post("cut", json!({})).await.0, 201);
    while client.next().await.is_some() {}
    let record: Value = crate::edge::client()
        .unwrap()
        .get(format!("{}/control/sessions", openai.url()))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(
        record[0]["heard_bytes"].as_u64().unwrap() > 20_000 && record[0]["received"][0]["type"] == "session.update",
        "{record}"
    );
}
