//! Events of OpenAI's Realtime server, for whoever holds its socket: the relay, or the object of a call that came over the
//! vendor's own SIP. Each is read once. What is not named here is `Other` and changes nothing: the API grows.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Tokens that a response used; the cached ones are part of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Text in.
    pub text_in: u64,
    /// Sound in.
    pub audio_in: u64,
    /// Text in that had been cached.
    pub cached_text_in: u64,
    /// Sound in that had been cached.
    pub cached_audio_in: u64,
    /// Text out.
    pub text_out: u64,
    /// Sound out.
    pub audio_out: u64,
}

impl Usage {
    /// The counters as the API names them, and as the record of a call holds them.
    pub fn to_value(self) -> Value {
        json!({
            "input_token_details": {
                "text_tokens": self.text_in, "audio_tokens": self.audio_in,
                "cached_tokens": self.cached_text_in + self.cached_audio_in,
                "cached_tokens_details": {"text_tokens": self.cached_text_in, "audio_tokens": self.cached_audio_in},
            },
            "output_token_details": {"text_tokens": self.text_out, "audio_tokens": self.audio_out},
        })
    }
}

/// An event that matters to a call. Ids are the vendor's; what the event does not name is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the vendor's, by their own names")]
pub enum Event {
    /// The session is there.
    SessionCreated { session: String },
    /// Settings apply; the formats of what goes in and out.
    SessionUpdated { formats: [Option<String>; 2] },
    /// The caller begins to speak.
    SpeechStarted,
    /// The words of a turn of the caller's.
    CallerSaid { item: String, text: String, language: Option<String> },
    /// A response begins.
    ResponseCreated { response: String },
    /// Sound, in base64.
    Audio { response: String, item: String, delta: String },
    /// No more sound of this item.
    AudioDone { item: String },
    /// Words of the agent's.
    Text { response: String, item: String, delta: String },
    /// All words of an item.
    TextDone { response: String, item: String, text: String },
    /// The agent wants a tool run.
    FunctionCall { response: String, call_id: String, name: String, arguments: String },
    /// The service itself has begun to call a remote tool, or is done with it; then it waits to be asked for a response.
    RemoteTool { ended: bool },
    /// A response ends.
    ResponseDone { response: String, completed: bool, failure: Option<String>, usage: Option<Usage> },
    /// On a telephone line of the vendor's own: a response was heard to its end.
    Played { response: String },
    /// The same: what was left of a response will not be heard.
    Cleared { response: String },
    /// An item was cut to what was heard of it.
    Truncated { item: String },
    /// On a telephone line of the vendor's own: the caller pressed a key.
    Digit { key: String },
    /// Something that we sent was refused, or the session ends.
    Error { code: String, about: Option<String> },
    /// Nothing of the above.
    Other,
}

impl Event {
    /// Reads a message; nothing if it is no event at all. A member of another type than the API's counts as not there.
    ///
    /// It comes as a tree, for each reader of JSON its own: types with a derived `Deserialize` were 35 KB of the wasm.
    pub fn of(mut wire: Value) -> Option<Event> {
        let wire = &mut wire;
        let kind = word(wire, &["type"]);
        let (response, item) = (word(wire, &["response_id"]), word(wire, &["item_id"]));
        Some(match kind.as_str() {
            "session.created" => Event::SessionCreated { session: word(wire, &["session", "id"]) },
            "session.updated" => Event::SessionUpdated {
                formats: ["input", "output"].map(|side| {
                    let format = at(wire, &["session", "audio", side, "format"]).filter(|format| format.is_object());
                    format.map(|format| word(format, &["type"]))
                }),
            },
            "input_audio_buffer.speech_started" => Event::SpeechStarted,
            "conversation.item.input_audio_transcription.completed" => Event::CallerSaid {
                item,
                text: word(wire, &["transcript"]),
                language: at(wire, &["languages"]).and_then(|all| all.get_mut(0)).and_then(taken),
            },
            "response.created" => Event::ResponseCreated { response: word(wire, &["response", "id"]) },
            "response.output_audio.delta" => Event::Audio { response, item, delta: word(wire, &["delta"]) },
            "response.output_audio.done" => Event::AudioDone { item },
            "response.output_audio_transcript.delta" => Event::Text { response, item, delta: word(wire, &["delta"]) },
            "response.output_audio_transcript.done" => {
                Event::TextDone { response, item, text: word(wire, &["transcript"]) }
            }
            "response.output_item.done" if word(wire, &["item", "type"]) == "function_call" => {
                let [call_id, name, arguments] =
                    ["call_id", "name", "arguments"].map(|member| word(wire, &["item", member]));
                Event::FunctionCall { response, call_id, name, arguments }
            }
            "response.mcp_call.in_progress" => Event::RemoteTool { ended: false },
            "response.mcp_call.completed" | "response.mcp_call.failed" => Event::RemoteTool { ended: true },
            "response.done" => {
                let status = word(wire, &["response", "status"]);
                Event::ResponseDone {
                    response: word(wire, &["response", "id"]),
                    completed: status == "completed",
                    failure: (status == "failed").then(|| code(wire, &["response", "status_details", "error"])),
                    usage: at(wire, &["response", "usage"]).filter(|usage| usage.is_object()).map(usage),
                }
            }
            "output_audio_buffer.stopped" => Event::Played { response },
            "output_audio_buffer.cleared" => Event::Cleared { response },
            "conversation.item.truncated" => Event::Truncated { item },
            "input_audio_buffer.dtmf_event_received" => Event::Digit { key: word(wire, &["event"]) },
            "error" => {
                Event::Error { code: code(wire, &["error"]), about: at(wire, &["error", "event_id"]).and_then(taken) }
            }
            "" => return None,
            _ => Event::Other,
        })
    }
}

/// What stands at this path.
fn at<'a>(wire: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(wire, |value, name| value.get_mut(*name))
}

/// The text, taken out and not copied: sound is long.
fn taken(value: &mut Value) -> Option<String> {
    match value.take() {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// The text at this path, empty where there is none; taken out.
fn word(wire: &mut Value, path: &[&str]) -> String {
    at(wire, path).and_then(taken).unwrap_or_default()
}

/// The code of an error, or its type where it has no code.
fn code(wire: &mut Value, path: &[&str]) -> String {
    at(wire, path).map_or_else(String::new, |error| {
        at(error, &["code"]).and_then(taken).unwrap_or_else(|| word(error, &["type"]))
    })
}

fn usage(wire: &mut Value) -> Usage {
    let mut count = |path: &[&str]| at(wire, path).and_then(|count| count.as_u64());
    let [text_in, audio_in] =
        ["text_tokens", "audio_tokens"].map(|name| count(&["input_token_details", name]).unwrap_or(0));
    let [text_out, audio_out] =
        ["text_tokens", "audio_tokens"].map(|name| count(&["output_token_details", name]).unwrap_or(0));
    let sum = count(&["input_token_details", "cached_tokens"]).unwrap_or(0);
    let [cached_text, cached_audio] =
        ["text_tokens", "audio_tokens"].map(|name| count(&["input_token_details", "cached_tokens_details", name]));
    // Where only the sum is given, text is what is cached first.
    let (cached_text_in, cached_audio_in) = match (cached_text, cached_audio) {
        (None, None) => (sum.min(text_in), sum - sum.min(text_in)),
        (text, audio) => (text.unwrap_or(0), audio.unwrap_or(0)),
    };
    Usage { text_in, audio_in, cached_text_in, cached_audio_in, text_out, audio_out }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &[u8]) -> Option<Event> {
        serde_json::from_slice(text).ok().and_then(Event::of)
    }

    #[test]
    fn usage_is_read_with_and_without_its_details() {
        let read = |details: &str| {
            match parse(
            format!(r#"{{"type":"response.done","response":{{"id":"r","status":"completed","usage":{{"input_token_details":{details},"output_token_details":{{"text_tokens":30,"audio_tokens":80}}}}}}}}"#).as_bytes(),
        ) {
            Some(Event::ResponseDone { usage: Some(usage), completed: true, .. }) => usage,
            other => panic!("{other:?}"),
        }
        };
        let all = read(
            r#"{"text_tokens":250,"audio_tokens":152,"cached_tokens":320,"cached_tokens_details":{"text_tokens":224,"audio_tokens":96}}"#,
        );
        assert_eq!(
            all,
            Usage {
                text_in: 250,
                audio_in: 152,
                cached_text_in: 224,
                cached_audio_in: 96,
                text_out: 30,
                audio_out: 80
            }
        );
        let sum_only = read(r#"{"text_tokens":250,"audio_tokens":152,"cached_tokens":320}"#);
        assert_eq!((sum_only.cached_text_in, sum_only.cached_audio_in), (250, 70));
    }

    #[test]
    fn unknown_events_are_no_fault_and_what_is_no_event_is() {
        assert_eq!(parse(br#"{"type":"rate_limits.updated","rate_limits":[]}"#), Some(Event::Other));
        for wrong in ["", "[]", "{}", "null", r#"{"type":7}"#, r#"{"type":"error","error":[}"#] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_member_of_another_type_costs_itself_and_not_the_event() {
        let odd = br#"{"type":"response.done","response":{"id":7,"status":"failed","usage":[],"status_details":{"error":{"code":null,"type":"server_error"}}}}"#;
        let failure = Some("server_error".to_owned());
        let expected = Event::ResponseDone { response: String::new(), completed: false, failure, usage: None };
        assert_eq!(parse(odd), Some(expected));
        let half = parse(br#"{"type":"session.updated","session":{"audio":{"input":{"format":{"type":"audio/pcma"}},"output":null}}}"#);
        assert_eq!(half, Some(Event::SessionUpdated { formats: [Some("audio/pcma".to_owned()), None] }));
        let said = parse(br#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"i","transcript":"Muraho","languages":["rw","en"]}"#);
        let language = Some("rw".to_owned());
        assert_eq!(said, Some(Event::CallerSaid { item: "i".to_owned(), text: "Muraho".to_owned(), language }));
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }
    }
}
