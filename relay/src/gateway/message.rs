//! The messages, one JSON object each, as "Media Streams" has made them common
//! (<https://www.twilio.com/docs/voice/media-streams/websocket-messages>); the spelling with underscores that Telnyx and
//! Exotel have is read too. Numbers come as numbers or as text. What is not known is `Other` and changes nothing.

use base64ct::{Base64, Encoding};
use ihuza_core::locale::Locale;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::media::dtmf::Digit;
use crate::media::g711::Law;

/// A message is at most so long.
pub const MOST_BYTES: usize = 64 * 1024;
/// Sound of one message: five seconds.
pub const MOST_AUDIO: usize = 5 * 8000;
/// Longest id, number or name.
const MOST_NAME: usize = 200;
const MOST_TOKEN: usize = 500;

/// What a gateway says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first word; the call follows.
    Connected,
    /// The call.
    Start(Box<Start>),
    /// Sound of the caller.
    Media {
        /// Counts the messages with sound, from 1.
        chunk: Option<u64>,
        /// Milliseconds since the stream began.
        timestamp_ms: Option<u64>,
        /// The bytes, in the law that `start` named.
        audio: Vec<u8>,
    },
    /// The caller pressed a key.
    Dtmf(Digit),
    /// All sound before our mark of this name was played, or thrown away.
    Mark(String),
    /// The call is over.
    Stop,
    /// Wants `pong`.
    Ping,
    /// Not for us.
    Other,
}

/// The call that a stream belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// The gateway's name of the stream; goes back in each of our messages.
    pub stream_sid: String,
    /// The trunk's id of the call.
    pub call_sid: String,
    /// Who calls, as the gateway writes it.
    pub from: String,
    /// Who is called.
    pub to: String,
    /// The language that the gateway asks for.
    pub locale: Option<Locale>,
    /// Proof of who it is, where none stood in the request's head.
    pub token: Option<String>,
    /// The law of both directions; none if it is another codec or clock.
    pub law: Option<Law>,
}

/// Why a message cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than any message is.
    #[error("a message is longer than 64 KiB")]
    TooLong,
    /// No JSON object with an `event`.
    #[error("a message is no JSON object with an event")]
    NotAnEvent,
    /// The call has no name, or one that cannot be stored.
    #[error("start has no callSid and streamSid of 1 to 200 visible characters")]
    NoName,
    /// Sound that is not base64.
    #[error("media has a payload that is not base64")]
    Payload,
    /// More sound than five seconds.
    #[error("media carries more than five seconds")]
    TooMuchSound,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    event: String,
    #[serde(alias = "streamSid", alias = "streamId", alias = "stream_id")]
    stream_sid: String,
    start: WireStart,
    media: WireMedia,
    dtmf: WireDtmf,
    mark: WireMark,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireStart {
    #[serde(alias = "streamSid")]
    stream_sid: String,
    #[serde(alias = "callSid", alias = "call_control_id")]
    call_sid: String,
    from: String,
    to: String,
    locale: String,
    #[serde(alias = "mediaFormat")]
    media_format: Option<WireFormat>,
    #[serde(alias = "customParameters")]
    custom_parameters: Custom,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireFormat {
    encoding: String,
    #[serde(alias = "sampleRate")]
    sample_rate: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Custom {
    token: String,
    from: String,
    to: String,
    locale: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireMedia {
    track: String,
    chunk: Value,
    timestamp: Value,
    payload: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireDtmf {
    digit: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireMark {
    name: String,
}

impl Event {
    /// Reads a message.
    pub fn parse(text: &[u8]) -> Result<Event, Malformed> {
        if text.len() > MOST_BYTES {
            return Err(Malformed::TooLong);
        }
        let wire: Wire = serde_json::from_slice(text).map_err(|_| Malformed::NotAnEvent)?;
        Ok(match wire.event.as_str() {
            "connected" => Event::Connected,
            "start" => Event::Start(Box::new(start(wire.start, wire.stream_sid)?)),
            "media" => media(wire.media)?,
            "dtmf" => {
                let mut keys = wire.dtmf.digit.chars();
                match (keys.next().and_then(Digit::from_char), keys.next()) {
                    (Some(digit), None) => Event::Dtmf(digit),
                    _ => Event::Other,
                }
            }
            "mark" if wire.mark.name.len() <= MOST_NAME => Event::Mark(wire.mark.name),
            "stop" => Event::Stop,
            "ping" => Event::Ping,
            "" => return Err(Malformed::NotAnEvent),
            _ => Event::Other,
        })
    }
}

fn start(wire: WireStart, stream_sid: String) -> Result<Start, Malformed> {
    let custom = wire.custom_parameters;
    let first = |one: String, other: String| if one.is_empty() { other } else { one };
    let stream_sid = first(wire.stream_sid, stream_sid);
    let is_name =
        |name: &str| (1..=MOST_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_name(&stream_sid) || !is_name(&wire.call_sid) {
        return Err(Malformed::NoName);
    }
    let short = |text: String| if text.len() <= MOST_NAME { text } else { String::new() };
    Ok(Start {
        stream_sid,
        call_sid: wire.call_sid,
        from: short(first(wire.from, custom.from)),
        to: short(first(wire.to, custom.to)),
        locale: Locale::from_tag(&first(wire.locale, custom.locale)),
        token: Some(custom.token).filter(|token| (1..=MOST_TOKEN).contains(&token.len())),
        // Without the block it is mu-law at 8 kHz.
        law: wire.media_format.map_or(Some(Law::Mu), |format| law(&format)),
    })
}

fn law(format: &WireFormat) -> Option<Law> {
    if !matches!(number(&format.sample_rate), None | Some(8000)) {
        return None;
    }
    match format.encoding.to_ascii_lowercase().as_str() {
        "audio/x-mulaw" | "audio/pcmu" | "pcmu" | "mulaw" => Some(Law::Mu),
        "audio/x-alaw" | "audio/pcma" | "pcma" | "alaw" => Some(Law::A),
        _ => None,
    }
}

fn media(wire: WireMedia) -> Result<Event, Malformed> {
    // What we said ourselves comes back from gateways that give both directions.
    if wire.track.starts_with("outbound") {
        return Ok(Event::Other);
    }
    let padded = wire.payload.trim_end_matches('=');
    if padded.len() / 4 * 3 > MOST_AUDIO {
        return Err(Malformed::TooMuchSound);
    }
    let audio = Base64::decode_vec(&wire.payload).map_err(|_| Malformed::Payload)?;
    if audio.len() > MOST_AUDIO {
        return Err(Malformed::TooMuchSound);
    }
    Ok(Event::Media { chunk: number(&wire.chunk), timestamp_ms: number(&wire.timestamp), audio })
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Sound for the caller.
pub fn media_to(stream_sid: &str, audio: &[u8]) -> String {
    json!({ "event": "media", "streamSid": stream_sid, "media": { "payload": Base64::encode_string(audio) } })
        .to_string()
}

/// To be sent back when all sound before it was played.
pub fn mark(stream_sid: &str, name: &str) -> String {
    json!({ "event": "mark", "streamSid": stream_sid, "mark": { "name": name } }).to_string()
}

/// Sound that is not played yet is thrown away.
pub fn clear(stream_sid: &str) -> String {
    json!({ "event": "clear", "streamSid": stream_sid }).to_string()
}

/// The call is over; an extension of ours, and whoever does not know it sees the socket close.
pub fn hangup(stream_sid: &str, reason: &str) -> String {
    json!({ "event": "hangup", "streamSid": stream_sid, "reason": reason }).to_string()
}

/// Somebody else takes over; an extension of ours.
pub fn transfer(stream_sid: &str, number: &str) -> String {
    json!({ "event": "transfer", "streamSid": stream_sid, "target": format!("tel:{number}") }).to_string()
}

/// The answer to `ping`.
pub fn pong() -> String {
    json!({ "event": "pong" }).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: Value) -> Result<Event, Malformed> {
        Event::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_call_is_read_in_each_spelling() {
        let camel = json!({
            "event": "start", "sequenceNumber": "1", "streamSid": "MZ1",
            "start": { "streamSid": "MZ1", "accountSid": "AC1", "callSid": "CA1", "tracks": ["inbound"],
                "mediaFormat": { "encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1 },
                "customParameters": { "token": "t", "from": "+250788123456", "to": "+250788000100", "locale": "rw" } },
        });
        let expected = Start {
            stream_sid: "MZ1".into(),
            call_sid: "CA1".into(),
            from: "+250788123456".into(),
            to: "+250788000100".into(),
            locale: Some(Locale::Rw),
            token: Some("t".into()),
            law: Some(Law::Mu),
        };
        assert_eq!(read(camel), Ok(Event::Start(Box::new(expected.clone()))));
        let snake = json!({
            "event": "start", "sequence_number": 1, "stream_id": "MZ1",
            "start": { "call_control_id": "CA1", "from": "+250788123456", "to": "+250788000100", "locale": "rw",
                "media_format": { "encoding": "PCMA", "sample_rate": "8000" }, "custom_parameters": { "token": "t" } },
        });
        assert_eq!(read(snake), Ok(Event::Start(Box::new(Start { law: Some(Law::A), ..expected }))));
    }

    #[test]
    fn other_codecs_have_no_law_and_calls_without_a_name_are_refused() {
        let start = |format: Value| json!({ "event": "start", "streamSid": "s", "start": { "callSid": "c", "mediaFormat": format } });
        for (format, law) in [
            (json!({ "encoding": "audio/x-l16", "sampleRate": 16000 }), None),
            (json!({ "encoding": "audio/x-mulaw", "sampleRate": "16000" }), None),
            (json!({ "encoding": "audio/x-alaw" }), Some(Law::A)),
            (json!(null), Some(Law::Mu)),
        ] {
            assert!(matches!(read(start(format)), Ok(Event::Start(start)) if start.law == law));
        }
        for name in [json!(""), json!("a b"), json!("x".repeat(201)), json!(7)] {
            let refused = read(json!({ "event": "start", "streamSid": "s", "start": { "callSid": name } }));
            assert!(matches!(refused, Err(Malformed::NoName | Malformed::NotAnEvent)), "{refused:?}");
        }
    }

    #[test]
    fn sound_and_keys_are_read_and_what_is_too_much_is_refused() {
        let media = |payload: &str| json!({ "event": "media", "media": { "track": "inbound", "chunk": "3", "timestamp": 40, "payload": payload } });
        let silence = Base64::encode_string(&[0xff; 160]);
        assert_eq!((silence.len(), silence.trim_end_matches('=').len()), (216, 214));
        let expected = Event::Media { chunk: Some(3), timestamp_ms: Some(40), audio: vec![0xff; 160] };
        assert_eq!(read(media(&silence)), Ok(expected));
        assert_eq!(read(media("%%%")), Err(Malformed::Payload));
        assert_eq!(read(media(&Base64::encode_string(&[0; MOST_AUDIO + 1]))), Err(Malformed::TooMuchSound));
        assert!(read(media(&Base64::encode_string(&[0; MOST_AUDIO]))).is_ok());
        let ours = json!({ "event": "media", "media": { "track": "outbound", "payload": silence } });
        assert_eq!(read(ours), Ok(Event::Other));
        let key = |digit: &str| read(json!({ "event": "dtmf", "dtmf": { "digit": digit } }));
        assert_eq!(key("5"), Ok(Event::Dtmf(Digit::from_char('5').unwrap())));
        assert_eq!((key("55"), key("x"), key("")), (Ok(Event::Other), Ok(Event::Other), Ok(Event::Other)));
    }

    #[test]
    fn what_is_unknown_changes_nothing_and_what_is_no_event_is_refused() {
        assert_eq!(read(json!({ "event": "error", "payload": {} })), Ok(Event::Other));
        for wrong in ["", "[]", "{}", "null", "{\"event\":7}", "{\"event\":\"media\",\"media\":[}"] {
            assert_eq!(Event::parse(wrong.as_bytes()), Err(Malformed::NotAnEvent), "{wrong}");
        }
        assert_eq!(Event::parse(&[b' '; MOST_BYTES + 1]), Err(Malformed::TooLong));
    }

    #[test]
    fn our_messages_name_the_stream() {
        let read = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(
            read(media_to("s", &[0xff; 2])),
            json!({ "event": "media", "streamSid": "s", "media": { "payload": "//8=" } })
        );
        assert_eq!(read(mark("s", "m")), json!({ "event": "mark", "streamSid": "s", "mark": { "name": "m" } }));
        assert_eq!(read(clear("s")), json!({ "event": "clear", "streamSid": "s" }));
        assert_eq!(read(transfer("s", "+250788123000"))["target"], "tel:+250788123000");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Event::parse(&bytes);
        }

        #[test]
        fn any_object_is_read_or_refused_and_bounded(
            event in "(connected|start|media|dtmf|mark|stop|ping|[a-z]{1,6})",
            field in "(start|media|dtmf|mark|streamSid)", name in "(callSid|payload|chunk|digit|name|token)", text in ".{0,300}",
        ) {
            let value = json!({ "event": event, "streamSid": "s", field: { name: text } });
            match Event::parse(value.to_string().as_bytes()) {
                Ok(Event::Start(start)) => prop_assert!(start.call_sid.len() <= MOST_NAME && start.token.is_none_or(|token| token.len() <= MOST_TOKEN)),
                Ok(Event::Media { audio, .. }) => prop_assert!(audio.len() <= MOST_AUDIO),
                _ => {}
            }
        }

        #[test]
        fn sound_survives_the_way_there_and_back(audio in proptest::collection::vec(any::<u8>(), 1..2000)) {
            let expected = Event::Media { chunk: None, timestamp_ms: None, audio: audio.clone() };
            prop_assert_eq!(Event::parse(media_to("s", &audio).as_bytes()), Ok(expected));
        }
    }
}
