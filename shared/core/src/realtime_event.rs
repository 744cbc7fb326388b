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

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    r#type: String,
    response_id: String,
    item_id: String,
    delta: String,
    transcript: String,
    languages: Vec<String>,
    item: Item,
    response: Response,
    session: Session,
    error: ErrorBody,
    /// A key of the telephone, or something of another event's.
    event: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item {
    r#type: String,
    call_id: String,
    name: String,
    arguments: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Response {
    id: String,
    status: String,
    status_details: Option<StatusDetails>,
    usage: Option<WireUsage>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StatusDetails {
    error: Option<ErrorBody>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Session {
    id: String,
    audio: SessionAudio,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SessionAudio {
    input: Direction,
    output: Direction,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Direction {
    format: Option<Format>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Format {
    r#type: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    r#type: String,
    code: Option<String>,
    event_id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    input_token_details: Tokens,
    output_token_details: Tokens,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Tokens {
    text_tokens: u64,
    audio_tokens: u64,
    cached_tokens: u64,
    cached_tokens_details: Option<Cached>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cached {
    text_tokens: u64,
    audio_tokens: u64,
}

impl Event {
    /// Reads a message; nothing if it is no event at all.
    pub fn parse(text: &[u8]) -> Option<Event> {
        let wire: Wire = serde_json::from_slice(text).ok()?;
        let (response, item) = (wire.response_id, wire.item_id);
        Some(match wire.r#type.as_str() {
            "session.created" => Event::SessionCreated { session: wire.session.id },
            "session.updated" => {
                let audio = wire.session.audio;
                Event::SessionUpdated {
                    formats: [audio.input, audio.output].map(|side| side.format.map(|format| format.r#type)),
                }
            }
            "input_audio_buffer.speech_started" => Event::SpeechStarted,
            "conversation.item.input_audio_transcription.completed" => {
                Event::CallerSaid { item, text: wire.transcript, language: wire.languages.into_iter().next() }
            }
            "response.created" => Event::ResponseCreated { response: wire.response.id },
            "response.output_audio.delta" => Event::Audio { response, item, delta: wire.delta },
            "response.output_audio.done" => Event::AudioDone { item },
            "response.output_audio_transcript.delta" => Event::Text { response, item, delta: wire.delta },
            "response.output_audio_transcript.done" => Event::TextDone { response, item, text: wire.transcript },
            "response.output_item.done" if wire.item.r#type == "function_call" => {
                let Item { call_id, name, arguments, .. } = wire.item;
                Event::FunctionCall { response, call_id, name, arguments }
            }
            "response.mcp_call.in_progress" => Event::RemoteTool { ended: false },
            "response.mcp_call.completed" | "response.mcp_call.failed" => Event::RemoteTool { ended: true },
            "response.done" => Event::ResponseDone {
                response: wire.response.id,
                completed: wire.response.status == "completed",
                failure: (wire.response.status == "failed").then(|| {
                    let error = wire.response.status_details.and_then(|details| details.error).unwrap_or_default();
                    error.code.unwrap_or(error.r#type)
                }),
                usage: wire.response.usage.map(usage),
            },
            "output_audio_buffer.stopped" => Event::Played { response },
            "output_audio_buffer.cleared" => Event::Cleared { response },
            "conversation.item.truncated" => Event::Truncated { item },
            "input_audio_buffer.dtmf_event_received" => {
                Event::Digit { key: wire.event.as_str().unwrap_or_default().to_owned() }
            }
            "error" => Event::Error { code: wire.error.code.unwrap_or(wire.error.r#type), about: wire.error.event_id },
            "" => return None,
            _ => Event::Other,
        })
    }
}

fn usage(wire: WireUsage) -> Usage {
    let Tokens { text_tokens, audio_tokens, cached_tokens, cached_tokens_details } = wire.input_token_details;
    // Where only the sum is given, text is what is cached first.
    let cached = cached_tokens_details.unwrap_or_else(|| {
        let text = cached_tokens.min(text_tokens);
        Cached { text_tokens: text, audio_tokens: cached_tokens - text }
    });
    Usage {
        text_in: text_tokens,
        audio_in: audio_tokens,
        cached_text_in: cached.text_tokens,
        cached_audio_in: cached.audio_tokens,
        text_out: wire.output_token_details.text_tokens,
        audio_out: wire.output_token_details.audio_tokens,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usage_is_read_with_and_without_its_details() {
        let read = |details: &str| {
            match Event::parse(
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
        assert_eq!(Event::parse(br#"{"type":"rate_limits.updated","rate_limits":[]}"#), Some(Event::Other));
        for wrong in ["", "[]", "{}", "null", r#"{"type":7}"#, r#"{"type":"error","error":[}"#] {
            assert_eq!(Event::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Event::parse(&text);
        }
    }
}
