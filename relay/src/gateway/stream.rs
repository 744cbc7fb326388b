//! One gateway's stream, from its first word to its last: which messages may come when, how many, and what becomes of
//! them. Sound becomes packets of RTP, with the gateway's own numbers, so that what is lost, doubled or out of order is
//! dealt with where it is for every other call.

use std::time::Duration;

use super::message::{Event, Malformed, Start};
use crate::media::dtmf::Digit;
use crate::media::rtp::Packet;
use crate::media::{TICKS_PER_MS, g711::Law};
use crate::moment::Moment;

/// The call is named within this time.
pub const START_WITHIN: Duration = Duration::from_secs(5);
/// Messages a second; sound takes fifty.
const MOST_PER_SECOND: f64 = 200.0;
/// Messages of a running call that cannot be read. A call does not end for one.
const MOST_MALFORMED: u32 = 20;
/// All sound of a stream has this source.
const SSRC: u32 = 1;

/// Why a stream is closed; the number goes into the closing frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// The call is over.
    Normal = 1000,
    /// Too much, too fast, or nothing that can be read.
    Violation = 1008,
    /// Something broke on our side.
    Broken = 1011,
    /// Nobody knows who it is.
    Unauthorized = 4401,
    /// The called number is not one of the trunk's.
    UnknownNumber = 4404,
    /// No `start` in time.
    NoStart = 4408,
    /// A second `start`, or a call that is here already.
    Duplicate = 4409,
    /// Another codec than G.711 at 8 kHz, or one that the trunk may not use.
    UnsupportedFormat = 4415,
    /// No more calls can be taken.
    Full = 4429,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Let the call in.
    Start(Box<Start>),
    /// Sound, as a packet.
    Packet(Vec<u8>),
    /// A key.
    Digit(Digit),
    /// A mark came back.
    Mark(String),
    /// The caller has hung up.
    Stop,
    /// Answer with `pong`.
    Pong,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    law: Option<Law>,
    tokens: f64,
    filled: Moment,
    malformed: u32,
    /// Numbers for gateways that do not count.
    next_chunk: u64,
    next_tick: u64,
}

impl Stream {
    /// A socket that was just opened.
    pub fn new(now: Moment) -> Stream {
        Stream { law: None, tokens: MOST_PER_SECOND, filled: now, malformed: 0, next_chunk: 1, next_tick: 0 }
    }

    /// A text message.
    pub fn message(&mut self, now: Moment, text: &[u8]) -> Result<Option<Action>, Close> {
        self.tokens = (self.tokens + now.since(self.filled).as_secs_f64() * MOST_PER_SECOND).min(MOST_PER_SECOND);
        self.filled = now;
        if self.tokens < 1.0 {
            return Err(Close::Violation);
        }
        self.tokens -= 1.0;
        let event = match Event::parse(text) {
            Ok(event) => event,
            Err(Malformed::TooLong | Malformed::TooMuchSound) => return Err(Close::Violation),
            Err(Malformed::NotAnEvent | Malformed::NoName | Malformed::Payload) => return self.unreadable(),
        };
        let Some(law) = self.law else { return self.first(event) };
        Ok(match event {
            Event::Start(_) => return Err(Close::Duplicate),
            Event::Media { chunk, timestamp_ms, audio } if !audio.is_empty() => {
                Some(Action::Packet(self.packet(law, chunk, timestamp_ms, &audio)))
            }
            Event::Dtmf(digit) => Some(Action::Digit(digit)),
            Event::Mark(name) => Some(Action::Mark(name)),
            Event::Stop => Some(Action::Stop),
            Event::Ping => Some(Action::Pong),
            Event::Connected | Event::Media { .. } | Event::Other => None,
        })
    }

    /// A message that is no text: nobody agreed on one.
    pub fn binary(&mut self) -> Result<Option<Action>, Close> {
        self.unreadable()
    }

    fn unreadable(&mut self) -> Result<Option<Action>, Close> {
        self.malformed += 1;
        if self.law.is_none() || self.malformed > MOST_MALFORMED { Err(Close::Violation) } else { Ok(None) }
    }

    /// Before the call is named only its name counts.
    fn first(&mut self, event: Event) -> Result<Option<Action>, Close> {
        match event {
            Event::Start(start) => {
                self.law = Some(start.law.ok_or(Close::UnsupportedFormat)?);
                Ok(Some(Action::Start(start)))
            }
            Event::Ping => Ok(Some(Action::Pong)),
            Event::Stop => Err(Close::Normal),
            Event::Connected | Event::Media { .. } | Event::Dtmf(_) | Event::Mark(_) | Event::Other => Ok(None),
        }
    }

    fn packet(&mut self, law: Law, chunk: Option<u64>, timestamp_ms: Option<u64>, audio: &[u8]) -> Vec<u8> {
        let chunk = chunk.unwrap_or(self.next_chunk);
        let tick = timestamp_ms.map_or(self.next_tick, |ms| ms.wrapping_mul(u64::from(TICKS_PER_MS)));
        self.next_chunk = chunk.wrapping_add(1);
        self.next_tick = tick.wrapping_add(audio.len() as u64);
        let packet = Packet {
            marker: false,
            payload_type: law.payload_type(),
            sequence_number: chunk as u16,
            timestamp: tick as u32,
            ssrc: SSRC,
            payload: audio,
        };
        packet.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn start() -> Value {
        json!({ "event": "start", "streamSid": "s", "start": { "callSid": "c", "mediaFormat": { "encoding": "audio/x-alaw", "sampleRate": 8000 } } })
    }

    fn media(audio: &[u8]) -> Value {
        serde_json::from_str(&super::super::message::media_to("s", audio)).unwrap()
    }

    fn say(stream: &mut Stream, ms: u64, value: Value) -> Result<Option<Action>, Close> {
        stream.message(Moment::from_millis(ms), value.to_string().as_bytes())
    }

    fn started() -> Stream {
        let mut stream = Stream::new(Moment::default());
        say(&mut stream, 0, json!({ "event": "connected" })).unwrap();
        assert!(matches!(say(&mut stream, 0, start()), Ok(Some(Action::Start(_)))));
        stream
    }

    #[test]
    fn sound_before_the_call_is_ignored_and_a_second_call_is_refused() {
        let mut stream = Stream::new(Moment::default());
        assert_eq!(say(&mut stream, 0, media(&[1; 160])), Ok(None));
        assert!(matches!(say(&mut stream, 0, start()), Ok(Some(Action::Start(_)))));
        assert_eq!(say(&mut stream, 0, start()), Err(Close::Duplicate));
    }

    #[test]
    fn sound_of_any_length_becomes_packets_that_follow_each_other() {
        let mut stream = started();
        let mut expected = 0;
        for (n, length) in [1_usize, 159, 160, 12_000].into_iter().enumerate() {
            let Ok(Some(Action::Packet(bytes))) = say(&mut stream, 20, media(&vec![7; length])) else { panic!() };
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!(
                (packet.sequence_number, packet.timestamp, packet.payload.len(), packet.payload_type),
                (n as u16 + 1, expected, length, 8)
            );
            expected += length as u32;
        }
        let numbered =
            json!({ "event": "media", "media": { "chunk": "900", "timestamp": "18000", "payload": "1dXV" } });
        let Ok(Some(Action::Packet(bytes))) = say(&mut stream, 40, numbered) else { panic!() };
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.sequence_number, packet.timestamp), (900, 144_000), "the gateway's own numbers");
    }

    #[test]
    fn a_few_unreadable_messages_end_no_running_call() {
        let mut fresh = Stream::new(Moment::default());
        assert_eq!(fresh.message(Moment::default(), b"hello"), Err(Close::Violation));
        let mut stream = started();
        for _ in 0..MOST_MALFORMED {
            assert_eq!(stream.message(Moment::default(), b"hello"), Ok(None));
        }
        assert_eq!(stream.binary(), Err(Close::Violation));
    }

    #[test]
    fn too_fast_is_refused_and_fifty_a_second_is_not() {
        let mut stream = started();
        for n in 0..1000 {
            assert!(say(&mut stream, n * 20, media(&[1; 160])).is_ok());
        }
        let mut flood = started();
        let refused =
            (0..300).map(|_| say(&mut flood, 0, json!({ "event": "ping" }))).position(|result| result.is_err());
        assert_eq!(refused, Some(198));
    }

    #[test]
    fn another_codec_and_a_stop_before_the_call_are_told_apart() {
        let mut stream = Stream::new(Moment::default());
        let wide = json!({ "event": "start", "streamSid": "s", "start": { "callSid": "c", "mediaFormat": { "encoding": "audio/x-l16", "sampleRate": 16000 } } });
        assert_eq!(say(&mut stream, 0, wide), Err(Close::UnsupportedFormat));
        assert_eq!(say(&mut Stream::new(Moment::default()), 0, json!({ "event": "stop" })), Err(Close::Normal));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_too_much_for_it(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..60)) {
            let mut stream = started();
            for message in messages {
                let _ = stream.message(Moment::default(), &message);
            }
        }
    }
}
