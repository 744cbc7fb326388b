//! What a response is made of, and when each piece of it is ready: the sound faster than it is played, in sizes that
//! are no multiple of anything.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::Rules;
use super::audio::Format;
use super::items::Tokens;
use crate::speech::Speech;

/// Milliseconds, and samples beyond, of the deltas of a response, over and over.
const SIZES: [(usize, usize); 5] = [(93, 1), (210, 3), (157, 0), (40, 7), (301, 5)];

/// So much of the sound comes at once: the real one is ahead from the beginning.
const AHEAD_MS: u64 = 400;

/// A part of a response.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// A message begins.
    Open,
    Words(String),
    Sound(Vec<u8>),
    /// The message is whole.
    Close,
    Call {
        name: String,
        arguments: String,
    },
    /// Nothing more comes.
    Done,
}

/// A message that is being spoken.
#[derive(Debug)]
pub struct Open {
    pub id: String,
    pub text: String,
    pub bytes: usize,
}

/// A response that is being made.
#[derive(Debug)]
pub struct Running {
    pub id: String,
    pub pieces: VecDeque<(Duration, Piece)>,
    pub open: Option<Open>,
    /// Items that are whole.
    pub output: Vec<Value>,
    pub made: Tokens,
    pub metadata: Value,
    /// It writes instead of speaking.
    pub written: bool,
    /// It is no part of the conversation.
    pub aside: bool,
}

impl Running {
    pub fn new(wanted: &Value, modalities: &Value) -> Self {
        let modalities = wanted.get("output_modalities").unwrap_or(modalities);
        Self {
            id: format!("resp_{}", Uuid::new_v4().simple()),
            pieces: VecDeque::new(),
            open: None,
            output: Vec::new(),
            made: Tokens::default(),
            metadata: wanted.get("metadata").cloned().unwrap_or_default(),
            written: modalities.get(0).and_then(Value::as_str) == Some("text"),
            aside: wanted.get("conversation").and_then(Value::as_str) == Some("none"),
        }
    }

    /// Lays out when what is ready. `first`: when the first sound is.
    pub fn plan(
        &mut self,
        speech: Option<Speech>,
        calls: Vec<(String, Value)>,
        format: Format,
        rules: Rules,
        first: Duration,
    ) {
        let mut at = first;
        if let Some(speech) = speech {
            self.pieces.push_back((at, Piece::Open));
            let sound = if self.written { Vec::new() } else { format.write(&speech) };
            let mut words = speech.text.split_inclusive(' ').peekable();
            let all = words.clone().count();
            let mut told = 0;
            let mut ahead = Duration::from_millis(AHEAD_MS);
            let mut rest = sound.as_slice();
            for (ms, samples) in SIZES.iter().cycle() {
                let size = (ms * format.bytes_a_ms() + samples * format.sample()).min(rest.len());
                let (delta, later) = rest.split_at_checked(size).unwrap_or((rest, &[]));
                rest = later;
                // The words run along with the sound.
                let due = (all * (sound.len() - rest.len())).div_ceil(sound.len().max(1));
                let due = if rest.is_empty() { all } else { due };
                let some: String = words.by_ref().take(due - told).collect();
                told = due;
                if !some.is_empty() {
                    self.pieces.push_back((at, Piece::Words(some)));
                }
                if !delta.is_empty() {
                    let ms = delta.len() / format.bytes_a_ms();
                    self.pieces.push_back((at, Piece::Sound(delta.to_vec())));
                    let lasts = Duration::from_millis(ms as u64);
                    at += lasts.saturating_sub(ahead) / rules.speed.max(1);
                    ahead = ahead.saturating_sub(lasts);
                }
                if rest.is_empty() {
                    break;
                }
            }
            self.pieces.push_back((at, Piece::Close));
        }
        for (name, arguments) in calls {
            self.pieces.push_back((at, Piece::Call { name, arguments: arguments.to_string() }));
        }
        self.pieces.push_back((at, Piece::Done));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::speech;

    fn pieces(format: Format, wanted: &Value) -> VecDeque<(Duration, Piece)> {
        let mut running = Running::new(wanted, &json!(["audio"]));
        running.plan(Some(speech::AGENT_PARKING), Vec::new(), format, Rules::default(), Duration::from_secs(1));
        running.pieces
    }

    #[test]
    fn a_response_is_all_words_and_all_sound_faster_than_it_is_played() {
        for format in [Format::Alaw, Format::Mulaw, Format::Pcm] {
            let pieces = pieces(format, &json!({}));
            let mut words = String::new();
            let mut sound = Vec::new();
            let mut odd = 0;
            for (_, piece) in &pieces {
                match piece {
                    Piece::Words(some) => words.push_str(some),
                    Piece::Sound(delta) => {
                        odd += usize::from(delta.len() % (20 * format.bytes_a_ms()) != 0);
                        assert_eq!(delta.len() % format.sample(), 0);
                        sound.extend_from_slice(delta);
                    }
                    _ => {}
                }
            }
            assert_eq!((words.as_str(), sound), (speech::AGENT_PARKING.text, format.write(&speech::AGENT_PARKING)));
            assert!(odd > 10, "{format:?}: sizes that fit too well");
            let took = pieces.back().unwrap().0 - pieces[0].0;
            let played = Duration::from_millis(speech::AGENT_PARKING.ms() - AHEAD_MS);
            assert!(took < played / 7 && took > played / 9, "{took:?} for {played:?}");
        }
    }

    #[test]
    fn a_written_response_has_no_sound() {
        let pieces = pieces(Format::Pcm, &json!({"output_modalities": ["text"]}));
        assert!(pieces.iter().all(|(_, piece)| !matches!(piece, Piece::Sound(_))));
        assert!(pieces.contains(&(Duration::from_secs(1), Piece::Words(speech::AGENT_PARKING.text.to_owned()))));
    }
}
