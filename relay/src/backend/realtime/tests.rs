//! Conversations with a model that says what the test tells it.

use proptest::prelude::*;

use super::items::heard_part;
use super::*;
use crate::media::dtmf::Digit;
use crate::media::playout::Heard;

struct Talk {
    realtime: Realtime,
    now: Moment,
}

/// What came out, in short: types of messages sent, and the rest by name.
fn show(output: &Output) -> String {
    match output {
        Output::Send(link, text) => {
            let value: Value = serde_json::from_str(text).unwrap();
            format!("{}> {}", link.0, value["type"].as_str().unwrap())
        }
        Output::Connect(link) => format!("connect {}", link.0),
        Output::Close(link) => format!("close {}", link.0),
        Output::Play { item, audio } => format!("play {item} {}", audio.len()),
        Output::Complete(item) => format!("complete {item}"),
        Output::Said { speaker, text, interrupted, .. } => {
            format!("{speaker:?}{}: {text}", if *interrupted { "-" } else { "" })
        }
        Output::ToolCall { call_id, name, .. } => format!("tool {name} {call_id}"),
        other => format!("{other:?}"),
    }
}

impl Talk {
    fn new() -> Talk {
        let setup = Setup {
            law: Law::A,
            format: AudioFormat::G711,
            turn_detection: TurnDetection::ServerVad,
            instructions: "be brief".into(),
            locale: Locale::En,
            greeting: "greet".into(),
            voice: "marin".into(),
            tools: vec![],
            roll_over_after: Duration::from_secs(3000),
        };
        Talk { realtime: Realtime::new(Moment::default(), setup), now: Moment::default() }
    }

    /// With a first connection that is ready.
    fn ready() -> Talk {
        let mut talk = Talk::new();
        talk.give(Input::Connected(Link(1)));
        talk.says(1, json!({ "type": "session.created" }));
        talk.says(1, json!({ "type": "session.updated" }));
        talk
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.realtime.poll_output()).collect()
    }

    fn give(&mut self, input: Input) -> Vec<String> {
        self.realtime.handle_input(self.now, input);
        self.outputs().iter().map(show).collect()
    }

    fn says(&mut self, link: u32, event: Value) -> Vec<String> {
        self.give(Input::Message(Link(link), event.to_string().into()))
    }

    fn after(&mut self, ms: u64) -> Vec<String> {
        self.now += Duration::from_millis(ms);
        self.give(Input::Timeout)
    }

    /// Half a second of speech in `response`, of which the item has the same name.
    fn speaks(&mut self, name: &str) {
        self.says(1, json!({ "type": "response.created", "response": { "id": name } }));
        self.says(1, json!({ "type": "response.output_audio.delta", "response_id": name, "item_id": name, "delta": base64(4000) }));
    }

    fn done(&mut self, name: &str, status: &str) -> Vec<String> {
        self.says(1, json!({ "type": "response.done", "response": { "id": name, "status": status } }))
    }
}

fn base64(bytes: usize) -> String {
    Converter::Untouched.to_model(&vec![0xd5; bytes])
}

fn heard(item: &str, played_ms: u32, received_ms: u32) -> Heard {
    Heard { item: item.into(), played_ms, received_ms }
}

#[test]
fn a_session_is_set_up_in_the_order_that_the_api_wants() {
    let mut talk = Talk::new();
    assert_eq!(talk.outputs().iter().map(show).collect::<Vec<_>>(), ["connect 1"]);
    assert!(talk.give(Input::Connected(Link(1))).is_empty());
    talk.realtime.handle_input(talk.now, Input::Message(Link(1), r#"{"type":"session.created"}"#.into()));
    let [Output::Send(_, settings)] = &talk.outputs()[..] else { panic!("no settings") };
    let settings: Value = serde_json::from_str(settings).unwrap();
    assert_eq!(settings["session"]["type"], "realtime");
    for side in ["input", "output"] {
        assert_eq!(settings["session"]["audio"][side]["format"], json!({ "type": "audio/pcma" }));
    }
    assert_eq!(settings["session"]["audio"]["input"]["turn_detection"]["type"], "server_vad");
    // Names of the retired beta.
    for old in ["modalities", "voice", "input_audio_format", "turn_detection", "temperature", "model"] {
        assert!(settings["session"].get(old).is_none(), "{old}");
    }
    assert_eq!(talk.says(1, json!({ "type": "session.updated" })), ["Ready"]);
}

#[test]
fn the_greeting_is_asked_for_as_soon_as_the_model_is_ready() {
    let mut talk = Talk::new();
    assert_eq!(talk.give(Input::Greet), ["connect 1"]);
    talk.give(Input::Connected(Link(1)));
    talk.says(1, json!({ "type": "session.created" }));
    assert_eq!(talk.says(1, json!({ "type": "session.updated" })), ["Ready", "1> response.create"]);
}

#[test]
fn another_format_than_asked_for_is_noise_and_ends_the_call() {
    let mut talk = Talk::new();
    talk.give(Input::Connected(Link(1)));
    talk.says(1, json!({ "type": "session.created" }));
    let audio = json!({ "input": { "format": { "type": "audio/pcm", "rate": 24000 } } });
    let out = talk.says(1, json!({ "type": "session.updated", "session": { "audio": audio } }));
    assert_eq!(out, ["close 1", "Failed(\"model_speaks_another_format\")"]);
}

#[test]
fn refused_language_hints_are_left_out_and_a_second_refusal_is_the_end() {
    let mut talk = Talk::new();
    talk.give(Input::Connected(Link(1)));
    talk.says(1, json!({ "type": "session.created" }));
    let refusal = json!({ "type": "error", "error": { "type": "invalid_request_error", "code": "invalid_value", "event_id": SETTINGS } });
    talk.realtime.handle_input(talk.now, Input::Message(Link(1), refusal.to_string().into()));
    let outputs = talk.outputs();
    let Some(Output::Send(_, again)) = outputs.last() else { panic!("{outputs:?}") };
    assert!(!again.contains("languages") && again.contains("gpt-transcribe"));
    assert_eq!(talk.says(1, refusal)[1..], ["close 1", "Failed(\"model_refuses_the_settings\")"]);
}

#[test]
fn sound_goes_through_untouched_and_waits_for_the_connection() {
    let mut talk = Talk::new();
    for n in 0..200 {
        talk.give(Input::Audio(vec![n; 160]));
    }
    talk.give(Input::Connected(Link(1)));
    talk.says(1, json!({ "type": "session.created" }));
    talk.realtime.handle_input(talk.now, Input::Message(Link(1), r#"{"type":"session.updated"}"#.into()));
    let sent = talk.outputs();
    assert_eq!(sent.len(), MOST_WAITING + 1);
    let Output::Send(_, first) = &sent[0] else { panic!() };
    let value: Value = serde_json::from_str(first).unwrap();
    assert_eq!(
        value,
        json!({ "type": "input_audio_buffer.append", "audio": Converter::Untouched.to_model(&[50; 160]) })
    );
}

#[test]
fn an_interruption_silences_truncates_and_tells_what_was_heard() {
    let mut talk = Talk::ready();
    talk.speaks("r1");
    talk.says(1, json!({ "type": "response.output_audio_transcript.delta", "response_id": "r1", "item_id": "r1", "delta": "one two three four five" }));
    assert_eq!(talk.says(1, json!({ "type": "input_audio_buffer.speech_started" })), ["Flush"]);
    talk.realtime.handle_input(talk.now, Input::Cut(vec![heard("r1", 240, 500)]));
    let outputs = talk.outputs();
    let [Output::Send(_, truncate)] = &outputs[..] else { panic!("{outputs:?}") };
    let truncate: Value = serde_json::from_str(truncate).unwrap();
    assert_eq!(
        truncate,
        json!({ "type": "conversation.item.truncate", "item_id": "r1", "content_index": 0, "audio_end_ms": 240 })
    );
    let late =
        json!({ "type": "response.output_audio.delta", "response_id": "r1", "item_id": "r1", "delta": base64(800) });
    assert!(talk.says(1, late).is_empty(), "what comes late of a cut response is not played");
    assert_eq!(talk.done("r1", "cancelled"), ["Agent-: one two"]);
    talk.speaks("r2");
    assert_eq!(
        talk.says(1, json!({ "type": "response.output_audio.done", "response_id": "r2", "item_id": "r2" })),
        ["complete r2"]
    );
}

#[test]
fn what_was_not_heard_at_all_is_deleted_and_what_was_heard_whole_is_left() {
    let mut talk = Talk::ready();
    talk.speaks("r1");
    talk.done("r1", "completed");
    talk.speaks("r2");
    let out = talk.give(Input::Cut(vec![heard("r1", 500, 500), heard("r2", 0, 500), heard("announcement", 3, 9)]));
    assert_eq!(out, ["1> conversation.item.delete"]);
}

#[test]
fn words_are_told_when_they_were_heard_and_in_order() {
    let mut talk = Talk::ready();
    talk.speaks("r1");
    assert!(talk.says(1, json!({ "type": "response.output_audio_transcript.done", "response_id": "r1", "item_id": "r1", "transcript": "Muraho neza" })).is_empty());
    assert!(talk.done("r1", "completed").is_empty());
    assert_eq!(talk.give(Input::Spoken(heard("r1", 500, 500))), ["Agent: Muraho neza"]);
    let said = json!({ "type": "conversation.item.input_audio_transcription.completed", "item_id": "u", "transcript": "Bonjour à vous tous", "languages": ["fr"] });
    talk.realtime.handle_input(talk.now, Input::Message(Link(1), said.to_string().into()));
    assert!(matches!(
        &talk.outputs()[..],
        [
            Output::Said { speaker: Speaker::Caller, locale: Some((Locale::Fr, LanguageSource::Transcription)), .. },
            Output::Language(Locale::Fr),
            _
        ]
    ));
}

#[test]
fn the_agent_follows_the_caller_into_another_language_on_this_and_on_later_connections() {
    let mut talk = Talk::ready();
    let said = |text: &str, languages: Value| json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": text, "languages": languages });
    assert_eq!(talk.says(1, said("I look for a house", json!(["en"]))), ["Caller: I look for a house"]);
    assert_eq!(talk.says(1, said("Merci", json!(["fr"]))).len(), 1, "one foreign word changes nothing");
    talk.says(1, said("and you?", json!([])));
    talk.says(1, said("Muraho, nshaka inzu", json!([])));
    talk.realtime.handle_input(
        talk.now,
        Input::Message(Link(1), said("Ndashaka kubona inzu ejo", json!([])).to_string().into()),
    );
    let outputs = talk.outputs();
    let [Output::Said { locale, .. }, Output::Language(Locale::Rw), Output::Send(Link(1), update)] = &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(*locale, Some((Locale::Rw, LanguageSource::Detected)));
    let update: Value = serde_json::from_str(update).unwrap();
    let session = &update["session"];
    assert_eq!(
        (&update["type"], &session["audio"]["input"]["transcription"]["languages"][0]),
        (&json!("session.update"), &json!("rw"))
    );
    assert!(session["instructions"].as_str().unwrap().contains("Speak Kinyarwanda"), "{update}");
    assert!(session["audio"].get("output").is_none() && session.get("tools").is_none(), "only what changes");
    let refused = json!({ "type": "error", "error": { "type": "invalid_request_error", "code": "invalid_value" } });
    assert!(talk.says(1, refused).iter().all(|output| output.starts_with("Warning")), "a refusal of it ends nothing");
    talk.give(Input::Disconnected(Link(1)));
    talk.after(0);
    talk.give(Input::Connected(Link(2)));
    talk.realtime.handle_input(talk.now, Input::Message(Link(2), r#"{"type":"session.created"}"#.into()));
    let outputs = talk.outputs();
    assert!(
        matches!(&outputs[..], [Output::Send(_, settings)] if settings.contains("Speak Kinyarwanda")),
        "{outputs:?}"
    );
}

fn function_call(call_id: &str) -> Value {
    json!({ "type": "response.output_item.done", "item": { "type": "function_call", "call_id": call_id, "name": "search_services", "arguments": "{}" } })
}

#[test]
fn tools_run_when_their_response_is_done_and_are_answered_together() {
    let mut talk = Talk::ready();
    talk.says(1, json!({ "type": "response.created", "response": { "id": "r1" } }));
    assert!(talk.says(1, function_call("a")).is_empty());
    talk.says(1, function_call("b"));
    talk.says(1, function_call("b"));
    assert_eq!(talk.done("r1", "completed"), ["tool search_services a", "tool search_services b"]);
    let result = |call_id: &str| Input::ToolResult { call_id: call_id.into(), output: "{}".into() };
    assert!(talk.give(result("b")).is_empty());
    assert!(talk.give(result("b")).is_empty());
    assert_eq!(
        talk.give(result("a")),
        ["1> conversation.item.create", "1> conversation.item.create", "1> response.create"]
    );
    assert!(talk.give(result("a")).is_empty(), "a late copy changes nothing");
}

#[test]
fn what_the_service_asked_a_remote_tool_is_answered_once_all_are_done() {
    let mut talk = Talk::ready();
    let tool = |word: &str| json!({"type": format!("response.mcp_call.{word}"), "item_id": "mcp_1"});
    talk.speaks("r");
    for word in ["in_progress", "in_progress", "completed"] {
        assert_eq!(talk.says(1, tool(word)), Vec::<String>::new(), "{word}");
    }
    assert!(!talk.done("r", "completed").contains(&"1> response.create".to_owned()), "one still runs");
    assert_eq!(talk.says(1, tool("failed")), ["1> response.create"]);
}

#[test]
fn tools_of_a_response_that_was_cut_off_do_not_run() {
    let mut talk = Talk::ready();
    talk.says(1, json!({ "type": "response.created", "response": { "id": "r1" } }));
    talk.says(1, function_call("a"));
    assert!(talk.done("r1", "cancelled").is_empty());
}

#[test]
fn a_tool_that_runs_outlives_another_response_and_a_later_one_begins_beside_it() {
    let mut talk = Talk::ready();
    let begins = |name: &str| json!({ "type": "response.created", "response": { "id": name } });
    talk.says(1, begins("r1"));
    talk.says(1, function_call("a"));
    assert_eq!(talk.done("r1", "completed"), ["tool search_services a"]);
    talk.says(1, begins("r2"));
    talk.says(1, function_call("b"));
    assert!(talk.done("r2", "cancelled").is_empty());
    talk.says(1, begins("r3"));
    talk.says(1, function_call("c"));
    assert_eq!(talk.done("r3", "completed"), ["tool search_services c"]);
    let result = |call_id: &str| Input::ToolResult { call_id: call_id.into(), output: "{}".into() };
    assert!(talk.give(result("b")).is_empty(), "it was never begun");
    assert!(talk.give(result("a")).is_empty(), "they go back together");
    let item = "1> conversation.item.create";
    assert_eq!(talk.give(result("c")), [item, item, "1> response.create"]);
}

#[test]
fn a_tool_of_a_response_that_is_still_made_does_not_hold_back_what_is_there() {
    let mut talk = Talk::ready();
    let of = |response: &str, call_id: &str| {
        let mut event = function_call(call_id);
        event["response_id"] = response.into();
        event
    };
    talk.says(1, of("r1", "a"));
    assert!(talk.done("r0", "completed").is_empty(), "another response's end begins nothing");
    assert_eq!(talk.done("r1", "completed"), ["tool search_services a"]);
    talk.says(1, json!({ "type": "response.created", "response": { "id": "r2" } }));
    talk.says(1, of("r2", "b"));
    let result = Input::ToolResult { call_id: "a".into(), output: "{}".into() };
    assert_eq!(talk.give(result), ["1> conversation.item.create"]);
    assert_eq!(talk.done("r2", "completed"), ["tool search_services b", "1> response.create"]);
}

#[test]
fn a_request_that_met_another_response_is_made_again_when_that_one_is_done() {
    let mut talk = Talk::ready();
    assert_eq!(talk.give(Input::Greet), ["1> response.create"]);
    let code = "conversation_already_has_active_response";
    let refused = json!({ "type": "error", "error": { "type": "invalid_request_error", "code": code } });
    assert_eq!(talk.says(1, refused), [format!("Warning(\"the model reports {code}\")")]);
    assert_eq!(talk.done("r0", "completed"), ["1> response.create"]);
}

#[test]
fn keys_that_are_pressed_without_a_connection_wait_for_the_next_one() {
    let mut talk = Talk::ready();
    talk.give(Input::Disconnected(Link(1)));
    talk.give(Input::Digit(Digit::from_char('4').unwrap()));
    assert_eq!(talk.give(Input::Digit(Digit::from_char('#').unwrap())), [""; 0]);
    assert_eq!(talk.after(0), ["connect 2"]);
    assert!(talk.after(3000).is_empty());
    assert!(talk.realtime.next_timeout().is_some_and(|at| at > talk.now), "nothing is due");
    assert_eq!(made_again(&mut talk), ["Ready", "2> conversation.item.create", "2> response.create"]);
}

#[test]
fn numbers_that_are_typed_without_a_connection_stay_apart() {
    let mut talk = Talk::ready();
    talk.give(Input::Disconnected(Link(1)));
    for key in "12#34#5".chars() {
        talk.give(Input::Digit(Digit::from_char(key).unwrap()));
    }
    assert_eq!(talk.after(0), ["connect 2"]);
    talk.give(Input::Connected(Link(2)));
    talk.says(2, json!({ "type": "session.created" }));
    talk.realtime.handle_input(talk.now, Input::Message(Link(2), r#"{"type":"session.updated"}"#.into()));
    let told: Vec<String> = talk
        .outputs()
        .into_iter()
        .filter_map(|output| match output {
            Output::Send(Link(2), item) => Some(item.split_once("pressed ")?.1.split_once(" on the")?.0.to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(told, ["1 2", "3 4"], "what was ended is told at once, and what may go on is not");
    assert_eq!(talk.after(2000), ["2> conversation.item.create"], "the first answer was asked for and has not begun");
}

#[test]
fn keys_of_a_call_whose_model_failed_are_waited_for_by_nobody() {
    let mut talk = Talk::ready();
    talk.give(Input::Digit(Digit::from_char('4').unwrap()));
    talk.says(1, json!({ "type": "error", "error": { "type": "insufficient_quota", "code": null } }));
    assert_eq!(talk.realtime.next_timeout(), None);
}

#[test]
fn a_model_that_accepts_and_closes_at_once_is_given_up_and_one_that_lasts_is_not() {
    let connects = |talk: &mut Talk, link: u32| {
        talk.give(Input::Connected(Link(link)));
        talk.says(link, json!({ "type": "session.created" }));
        assert!(talk.says(link, json!({ "type": "session.updated" })).contains(&"Ready".to_owned()));
    };
    let mut talk = Talk::ready();
    let mut link = 1;
    for wait in WAITS_MS {
        assert!(talk.give(Input::Disconnected(Link(link))).is_empty());
        link += 1;
        assert_eq!(talk.after(wait), [format!("connect {link}")]);
        connects(&mut talk, link);
    }
    assert_eq!(talk.give(Input::Disconnected(Link(link))), ["Failed(\"model_unreachable\")"]);

    let mut talk = Talk::ready();
    for link in 1..20 {
        talk.now += LASTS;
        assert!(talk.give(Input::Disconnected(Link(link))).is_empty());
        assert_eq!(talk.after(0), [format!("connect {}", link + 1)]);
        connects(&mut talk, link + 1);
    }
}

#[test]
fn a_model_that_was_given_up_says_nothing_more_and_a_connection_that_comes_late_is_closed() {
    let mut talk = Talk::new();
    talk.give(Input::Greet);
    talk.realtime.give_up();
    assert_eq!(talk.outputs().iter().map(show).collect::<Vec<_>>(), ["close 1"]);
    assert_eq!(talk.give(Input::Connected(Link(1))), ["close 1"]);
    talk.says(1, json!({ "type": "session.created" }));
    assert!(talk.says(1, json!({ "type": "session.updated" })).is_empty());
    assert_eq!(talk.realtime.next_timeout(), None);

    let mut talk = Talk::ready();
    let delta =
        json!({ "type": "response.output_audio.delta", "response_id": "r", "item_id": "r", "delta": base64(800) });
    talk.realtime.handle_input(talk.now, Input::Message(Link(1), delta.to_string().into()));
    talk.realtime.give_up();
    assert_eq!(talk.outputs().iter().map(show).collect::<Vec<_>>(), ["complete r", "close 1"]);
}

#[test]
fn a_slow_tool_is_spoken_over_and_answered_for_in_the_end() {
    let mut talk = Talk::ready();
    talk.says(1, json!({ "type": "response.created", "response": { "id": "r1" } }));
    talk.says(1, function_call("a"));
    talk.done("r1", "completed");
    assert!(talk.after(799).is_empty());
    assert_eq!(talk.after(1), ["Filler"]);
    assert!(talk.after(7199).is_empty());
    assert_eq!(talk.after(1), ["1> conversation.item.create", "1> response.create"]);
}

#[test]
fn a_result_that_comes_while_the_model_speaks_waits_for_it() {
    let mut talk = Talk::ready();
    talk.says(1, json!({ "type": "response.created", "response": { "id": "r1" } }));
    talk.says(1, function_call("a"));
    talk.done("r1", "completed");
    talk.speaks("r2");
    assert_eq!(
        talk.give(Input::ToolResult { call_id: "a".into(), output: "{}".into() }),
        ["1> conversation.item.create"]
    );
    assert_eq!(talk.done("r2", "completed"), ["1> response.create"]);
}

#[test]
fn keys_are_told_as_one_number() {
    let mut talk = Talk::ready();
    let key = |key: char| Input::Digit(Digit::from_char(key).unwrap());
    assert_eq!(talk.give(key('1')), ["Flush"]);
    assert!(talk.give(key('2')).is_empty());
    assert!(talk.after(1999).is_empty());
    talk.now += Duration::from_millis(1);
    talk.realtime.handle_input(talk.now, Input::Timeout);
    assert!(matches!(&talk.outputs()[..], [Output::Send(_, item), _] if item.contains("pressed 1 2 on")));
    talk.give(key('7'));
    assert_eq!(
        talk.give(key('#')),
        ["1> conversation.item.create"],
        "the first answer was asked for and has not begun"
    );
    talk.speaks("r1");
    assert_eq!(talk.done("r1", "completed"), ["1> response.create"]);
}

#[test]
fn a_broken_connection_is_made_again_with_what_was_said() {
    let mut talk = Talk::ready();
    talk.says(
        1,
        json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "my name is Keza" }),
    );
    assert!(talk.give(Input::Disconnected(Link(1))).is_empty());
    assert!(talk.give(Input::Audio(vec![1; 160])).is_empty());
    assert_eq!(talk.after(0), ["connect 2"]);
    assert!(
        talk.says(1, json!({ "type": "input_audio_buffer.speech_started" })).is_empty(),
        "the old one is not heard"
    );
    talk.give(Input::Connected(Link(2)));
    talk.says(2, json!({ "type": "session.created" }));
    let out = talk.says(2, json!({ "type": "session.updated" }));
    let [item, sound] = ["2> conversation.item.create", "2> input_audio_buffer.append"];
    assert_eq!(out, [item, sound, "Ready", "2> response.create"], "nobody has answered the caller");
}

/// A second connection in the place of a broken first one: what it is told.
fn made_again(talk: &mut Talk) -> Vec<String> {
    talk.after(0);
    talk.give(Input::Connected(Link(2)));
    talk.says(2, json!({ "type": "session.created" }));
    talk.says(2, json!({ "type": "session.updated" }))
}

#[test]
fn whoever_waits_for_an_answer_gets_one_from_the_next_connection() {
    let mut talk = Talk::ready();
    talk.give(Input::Greet);
    talk.give(Input::Disconnected(Link(1)));
    assert_eq!(made_again(&mut talk), ["Ready", "2> response.create"], "the greeting, for nothing was said yet");

    let mut talk = Talk::ready();
    talk.speaks("r1");
    talk.says(1, json!({ "type": "response.output_audio_transcript.delta", "response_id": "r1", "item_id": "r1", "delta": "Muraho" }));
    let out = talk.give(Input::Disconnected(Link(1)));
    assert_eq!(out, ["complete r1"], "its sound ends where it ends");
    assert_eq!(made_again(&mut talk), ["2> conversation.item.create", "Ready", "2> response.create"]);
    let out = talk.give(Input::Spoken(heard("r1", 500, 500)));
    assert_eq!(out, ["Agent: Muraho"], "and is recorded");
}

#[test]
fn whoever_interrupted_the_old_connection_is_not_answered_before_he_has_spoken() {
    let mut talk = Talk::ready();
    talk.speaks("r1");
    talk.says(1, json!({ "type": "input_audio_buffer.speech_started" }));
    talk.give(Input::Cut(vec![heard("r1", 200, 500)]));
    talk.give(Input::Disconnected(Link(1)));
    assert!(!made_again(&mut talk).iter().any(|output| output.ends_with("response.create")));
}

#[test]
fn an_answer_that_failed_is_asked_for_again_and_a_model_that_never_answers_is_given_up() {
    let failed = json!({ "type": "response.done", "response": { "id": "r1", "status": "failed",
        "status_details": { "type": "failed", "error": { "type": "requests", "code": "rate_limit_exceeded" } } } });
    let mut talk = Talk::ready();
    talk.speaks("r1");
    let warning = "Warning(\"the model had no answer: rate_limit_exceeded\")";
    assert_eq!(talk.says(1, failed.clone()), ["complete r1", "Filler", warning]);
    talk.give(Input::Spoken(heard("r1", 500, 500)));
    assert!(talk.after(499).is_empty());
    assert_eq!(talk.after(1), ["1> response.create"]);
    assert_eq!(talk.says(1, failed.clone()), [warning], "the caller was told once");
    assert!(talk.says(1, json!({ "type": "input_audio_buffer.speech_started" })).contains(&"Flush".to_owned()));
    assert!(talk.after(2000).is_empty(), "what the caller says now will be answered instead");
    talk.says(1, json!({ "type": "response.created", "response": { "id": "r2" } }));
    assert_eq!(talk.done("r2", "completed"), [""; 0]);
    for wait in AGAIN_MS {
        talk.says(1, failed.clone());
        assert_eq!(talk.after(wait), ["1> response.create"]);
    }
    assert_eq!(talk.says(1, failed), ["close 1", "Failed(\"model_fails_to_answer\")"]);
}

#[test]
fn a_sentence_that_the_connection_broke_off_ends_and_the_next_connection_is_asked() {
    let mut talk = Talk::ready();
    talk.says(1, json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "how much?" }));
    talk.speaks("r1");
    talk.says(1, json!({ "type": "response.output_audio_transcript.delta", "response_id": "r1", "item_id": "r1", "delta": "It costs" }));
    assert_eq!(talk.give(Input::Disconnected(Link(1))), ["complete r1"], "nothing waits for the rest of it");
    assert_eq!(talk.after(0), ["connect 2"]);
    assert_eq!(talk.give(Input::Spoken(heard("r1", 500, 500))), ["Agent: It costs"]);
    talk.give(Input::Connected(Link(2)));
    talk.says(2, json!({ "type": "session.created" }));
    let out = talk.says(2, json!({ "type": "session.updated" }));
    let item = "2> conversation.item.create";
    assert_eq!(out, [item, item, "Ready", "2> response.create"]);
}

/// A conversation in which everything happens once, as steps.
fn story() -> Vec<Input> {
    let says = |event: Value| Input::Message(Link(1), event.to_string().into());
    let of = |kind: &str, name: &str, delta: &str| json!({ "type": kind, "response_id": name, "item_id": name, "delta": delta });
    vec![
        Input::Connected(Link(1)),
        says(json!({ "type": "session.created" })),
        says(json!({ "type": "session.updated" })),
        Input::Audio(vec![1; 160]),
        says(json!({ "type": "response.created", "response": { "id": "r1" } })),
        says(of("response.output_audio_transcript.delta", "r1", "Hello")),
        says(of("response.output_audio.delta", "r1", &base64(4000))),
        says(json!({ "type": "response.output_audio.done", "response_id": "r1", "item_id": "r1" })),
        says(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } })),
        Input::Spoken(heard("r1", 500, 500)),
        says(
            json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "a house please" }),
        ),
        says(json!({ "type": "response.created", "response": { "id": "r2" } })),
        says(of("response.output_audio.delta", "r2", &base64(4000))),
        says(json!({ "type": "input_audio_buffer.speech_started" })),
        Input::Cut(vec![heard("r2", 100, 500)]),
        says(json!({ "type": "response.done", "response": { "id": "r2", "status": "cancelled" } })),
        says(json!({ "type": "response.created", "response": { "id": "r3" } })),
        says(function_call("a")),
        says(json!({ "type": "response.done", "response": { "id": "r3", "status": "completed" } })),
        Input::Digit(Digit::from_char('5').unwrap()),
        Input::ToolResult { call_id: "a".into(), output: "{}".into() },
        says(json!({ "type": "response.created", "response": { "id": "r4" } })),
        says(json!({ "type": "response.done", "response": { "id": "r4", "status": "failed" } })),
    ]
}

#[test]
fn a_connection_that_is_cut_at_any_stage_is_followed_by_one_that_hears_and_speaks() {
    for cut in 0..=story().len() {
        let mut talk = Talk::new();
        talk.give(Input::Greet);
        for step in story().into_iter().take(cut) {
            talk.give(step);
        }
        let mut out = talk.give(Input::Disconnected(Link(1)));
        out.extend(talk.after(0));
        assert!(out.contains(&"connect 2".to_owned()), "cut before step {cut}: {out:?}");
        talk.give(Input::Connected(Link(2)));
        talk.says(2, json!({ "type": "session.created" }));
        let mut out = talk.says(2, json!({ "type": "session.updated" }));
        assert!(out.contains(&"Ready".to_owned()), "cut before step {cut}: {out:?}");
        // Whoever waits for an answer gets one, without having to say it again.
        out.extend(talk.after(0));
        let owed = matches!(cut, 0..=8 | 11..=13 | 16..);
        assert_eq!(out.contains(&"2> response.create".to_owned()), owed, "cut before step {cut}: {out:?}");
        assert_eq!(talk.give(Input::Audio(vec![2; 160])), ["2> input_audio_buffer.append"], "cut before step {cut}");
        talk.says(2, json!({ "type": "response.created", "response": { "id": "n" } }));
        let delta =
            json!({ "type": "response.output_audio.delta", "response_id": "n", "item_id": "n", "delta": base64(800) });
        assert_eq!(talk.says(2, delta), ["play n 800"], "cut before step {cut}");
        let words = json!({ "type": "response.output_audio_transcript.done", "response_id": "n", "item_id": "n", "transcript": "back" });
        talk.says(2, words);
        // What was still to be heard of the old connection is heard or cut off first.
        talk.give(Input::Cut(vec![heard("r1", 500, 500), heard("r2", 100, 500)]));
        let out = talk.give(Input::Spoken(heard("n", 100, 100)));
        assert_eq!(out, ["Agent: back"], "cut before step {cut}");
    }
}

#[test]
fn the_last_words_of_a_model_that_is_gone_are_told_as_far_as_they_were_heard() {
    let mut talk = Talk::ready();
    talk.speaks("r1");
    talk.says(1, json!({ "type": "response.output_audio_transcript.delta", "response_id": "r1", "item_id": "r1", "delta": "one two three four" }));
    let out = talk.says(1, json!({ "type": "error", "error": { "type": "insufficient_quota", "code": null } }));
    assert_eq!(out, ["complete r1", "close 1", "Failed(\"model_refuses_the_account\")"]);
    assert_eq!(talk.give(Input::Cut(vec![heard("r1", 250, 500)])), ["Agent-: one two"]);
    assert!(talk.give(Input::Audio(vec![1; 160])).is_empty());
}

#[test]
fn a_model_that_does_not_come_back_is_given_up() {
    let mut talk = Talk::ready();
    let mut link = 1;
    let mut out = talk.give(Input::Disconnected(Link(link)));
    for _ in 0..10 {
        if out.last().is_some_and(|last| last.starts_with("Failed")) {
            break;
        }
        if talk.after(1000).iter().any(|output| output.starts_with("connect")) {
            link += 1;
            out = talk.give(Input::Disconnected(Link(link)));
        }
    }
    assert_eq!((out, link), (vec!["Failed(\"model_unreachable\")".to_owned()], 1 + WAITS_MS.len() as u32));
    assert_eq!(talk.realtime.next_timeout(), None);
}

#[test]
fn an_account_that_is_refused_is_not_tried_again() {
    let mut talk = Talk::ready();
    let out = talk.says(1, json!({ "type": "error", "error": { "type": "insufficient_quota", "code": null } }));
    assert_eq!(out, ["close 1", "Failed(\"model_refuses_the_account\")"]);
}

#[test]
fn what_was_heard_of_a_model_that_is_gone_is_told_and_nothing_is_sent_to_it() {
    let mut talk = Talk::ready();
    talk.speaks("r1");
    talk.says(1, json!({ "type": "response.output_audio_transcript.delta", "response_id": "r1", "item_id": "r1", "delta": "one two three four five" }));
    talk.says(1, json!({ "type": "error", "error": { "type": "insufficient_quota", "code": null } }));
    assert_eq!(talk.give(Input::Cut(vec![heard("r1", 240, 500)])), ["Agent-: one two"]);
    assert!(talk.give(Input::Greet).is_empty());
}

#[test]
fn before_the_hour_is_over_a_new_connection_takes_over_in_a_silence() {
    let mut talk = Talk::ready();
    talk.speaks("r1");
    assert!(talk.after(3_000_000).is_empty(), "not while the agent speaks");
    talk.done("r1", "completed");
    talk.give(Input::Spoken(heard("r1", 500, 500)));
    assert_eq!(talk.after(20), ["connect 2"]);
    talk.give(Input::Connected(Link(2)));
    assert_eq!(talk.give(Input::Audio(vec![1; 160])), ["1> input_audio_buffer.append"], "the old one serves meanwhile");
    talk.says(2, json!({ "type": "session.created" }));
    assert_eq!(talk.says(2, json!({ "type": "session.updated" })), ["close 1", "Ready"]);
    assert_eq!(talk.give(Input::Audio(vec![1; 160])), ["2> input_audio_buffer.append"]);
}

#[test]
fn an_expired_session_is_replaced_at_once_and_a_set_up_that_hangs_is_given_up() {
    let mut talk = Talk::ready();
    let expired = json!({ "type": "error", "error": { "type": "invalid_request_error", "code": "session_expired" } });
    assert_eq!(talk.says(1, expired), ["close 1"]);
    assert_eq!(talk.after(0), ["connect 2"]);
    assert_eq!(talk.after(4000), ["close 2"]);
    assert_eq!(talk.after(250), ["connect 3"]);
}

proptest! {
    #[test]
    fn no_order_of_events_asks_for_two_responses_at_a_time_or_hangs(steps in proptest::collection::vec(0_u8..12, 0..80)) {
        let mut talk = Talk::ready();
        let (mut asked_at, mut running, mut name) = (None, false, String::new());
        for (n, step) in steps.into_iter().enumerate() {
            let mut out = match step {
                0 if !running => {
                    name = format!("r{n}");
                    running = true;
                    asked_at = None;
                    talk.speaks(&name);
                    Vec::new()
                }
                1 if running => {
                    running = false;
                    asked_at = None;
                    talk.done(&name, "completed")
                }
                2 if running => {
                    running = false;
                    asked_at = None;
                    talk.done(&name, "cancelled")
                }
                3 if running => talk.says(1, function_call(&format!("c{n}"))),
                4 => talk.give(Input::ToolResult { call_id: format!("c{}", n.saturating_sub(2)), output: "{}".into() }),
                5 => talk.says(1, json!({ "type": "input_audio_buffer.speech_started" })),
                6 => talk.give(Input::Cut(vec![heard(&name, n as u32 * 7 % 600, 500)])),
                7 => talk.give(Input::Spoken(heard(&name, 500, 500))),
                8 => talk.give(Input::Digit(Digit::from_char('#').unwrap())),
                9 => talk.give(Input::Digit(Digit::from_char('4').unwrap())),
                10 => talk.after(900),
                _ => talk.give(Input::Audio(vec![0; 160])),
            };
            out.extend(talk.after(1));
            let asked = out.iter().filter(|output| output.ends_with("response.create")).count();
            prop_assert!(!running || asked == 0, "asked while one is being made: {out:?}");
            if asked > 0 {
                let again = asked_at.is_some_and(|at| talk.now.since(at) < BEGINS_WITHIN);
                prop_assert!(asked == 1 && !again, "asked again before it began: {out:?}");
                asked_at = Some(talk.now);
            }
            if let Some(at) = talk.realtime.next_timeout() {
                prop_assert!(at > talk.now || { talk.after(0); talk.realtime.next_timeout() != Some(at) }, "a deadline that never passes");
            }
        }
    }

    #[test]
    fn the_part_that_was_heard_is_a_beginning(text in "\\PC{0,80}", played in 0_u32..2000, received in 0_u32..2000) {
        let part = heard_part(&text, &heard("a", played, received));
        prop_assert!(text.starts_with(&part));
    }

    #[test]
    fn messages_that_nobody_would_send_do_not_end_the_talk(
        steps in proptest::collection::vec((0_usize..6, 0_usize..200, 0_usize..9, "[\\[\\]{}\",:0-9a-z\\\\ ]{0,6}"), 0..20)
    ) {
        let messages = [
            json!({ "type": "response.created", "response": { "id": "r" } }),
            json!({ "type": "response.output_audio.delta", "response_id": "r", "item_id": "i", "delta": base64(160) }),
            json!({ "type": "response.output_item.done", "item": { "type": "function_call", "call_id": "t", "name": "n", "arguments": "{}" } }),
            json!({ "type": "response.done", "response": { "id": "r", "status": "completed", "usage": { "total_tokens": 3 } } }),
            json!({ "type": "session.updated", "session": { "audio": { "input": { "format": { "type": "audio/pcma" } } } } }),
            json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "x", "languages": ["fr"] }),
        ];
        let mut talk = Talk::ready();
        for (which, at, take, put) in steps {
            let mut text = messages[which].to_string().into_bytes();
            let at = at % text.len();
            let end = (at + take).min(text.len());
            text.splice(at..end, put.bytes());
            talk.realtime.handle_input(talk.now, Input::Message(Link(1), text.into()));
            prop_assert!(talk.outputs().len() < 100);
        }
        talk.after(1);
    }
}
