//! Server VAD: who is loud enough for long enough speaks, and who is quiet for long enough has spoken.
//!
//! Time is that of the sound that was appended, not of a clock.

use serde_json::Value;

/// Sound is looked at in pieces of this length.
pub const FRAME_MS: u64 = 20;
/// A voice is that many loud frames running: 80 ms. A click is not one.
const ONSET: u64 = 4;

/// The beginning or end of speech.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// With the padding before it.
    Started { audio_start_ms: u64 },
    /// With the silence that told it.
    Stopped { audio_end_ms: u64 },
}

/// The detector of one session.
#[derive(Debug)]
pub struct Vad {
    /// Mean square above which a frame is loud.
    loud: f64,
    padding_ms: u64,
    silence_ms: u64,
    pub create_response: bool,
    pub interrupt_response: bool,
    /// End of the last frame.
    at_ms: u64,
    loud_frames: u64,
    quiet_ms: u64,
    speaking: bool,
}

impl Vad {
    /// As a session's `turn_detection` says; none: the client says when a turn is over. `at_ms`: how much was heard before.
    pub fn of(settings: &Value, at_ms: u64) -> Option<Self> {
        let number = |name: &str, otherwise: f64| settings.get(name).and_then(Value::as_f64).unwrap_or(otherwise);
        let flag = |name: &str| settings.get(name).and_then(Value::as_bool).unwrap_or(true);
        // The real one's thresholds are probabilities: here 0.5 is -40 dBFS, and each tenth 2 dB more.
        let decibels = -50.0 + 20.0 * number("threshold", 0.5);
        let silence_ms = match (settings.get("type")?.as_str()?, settings.get("eagerness").and_then(Value::as_str)) {
            ("server_vad", _) => number("silence_duration_ms", 500.0) as u64,
            // What was said is not understood here: only the waits differ.
            (_, Some("high")) => 500,
            (_, Some("low")) => 2000,
            _ => 1000,
        };
        Some(Self {
            loud: 32_768_f64.powi(2) * 10_f64.powf(decibels / 10.0),
            padding_ms: number("prefix_padding_ms", 300.0) as u64,
            silence_ms,
            create_response: flag("create_response"),
            interrupt_response: flag("interrupt_response"),
            at_ms,
            loud_frames: 0,
            quiet_ms: 0,
            speaking: false,
        })
    }

    /// Takes the power of the next frame.
    pub fn frame(&mut self, power: f64) -> Option<Edge> {
        self.at_ms += FRAME_MS;
        if power > self.loud {
            self.loud_frames += 1;
            self.quiet_ms = 0;
        } else {
            self.loud_frames = 0;
            self.quiet_ms += FRAME_MS;
        }
        if !self.speaking && self.loud_frames >= ONSET {
            self.speaking = true;
            return Some(Edge::Started {
                audio_start_ms: self.at_ms.saturating_sub(ONSET * FRAME_MS + self.padding_ms),
            });
        }
        if self.speaking && self.quiet_ms >= self.silence_ms {
            self.speaking = false;
            return Some(Edge::Stopped { audio_end_ms: self.at_ms });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::realtime::audio::Format;
    use crate::speech::{ALL, Speech};

    fn edges(settings: &Value, silence_ms: usize, speech: &Speech) -> Vec<Edge> {
        let mut vad = Vad::of(settings, 0).unwrap();
        let sound = [vec![0xd5; silence_ms * 8], speech.alaw.to_vec(), vec![0xd5; 20_000]].concat();
        sound.chunks(160).filter_map(|frame| vad.frame(Format::Alaw.power(frame))).collect()
    }

    #[test]
    fn every_recording_is_one_turn_with_its_padding_and_its_silence() {
        let settings =
            json!({"type": "server_vad", "threshold": 0.55, "prefix_padding_ms": 300, "silence_duration_ms": 500});
        for speech in ALL.iter().filter(|speech| speech.name.starts_with("caller")) {
            let found = edges(&settings, 1000, speech);
            let [Edge::Started { audio_start_ms }, Edge::Stopped { audio_end_ms }] = found[..] else {
                panic!("{speech:?}: {found:?}")
            };
            assert!((600..900).contains(&audio_start_ms), "{speech:?} begins at {audio_start_ms}");
            let end = 1000 + speech.ms() + 500;
            assert!((end - 600..=end).contains(&audio_end_ms), "{speech:?} ends at {audio_end_ms}, not about {end}");
        }
    }

    #[test]
    fn quiet_sound_clicks_and_silence_are_nobody() {
        let settings = json!({"type": "server_vad"});
        let mut vad = Vad::of(&settings, 0).unwrap();
        let click = [1e8, 1e8, 1e8, 0.0];
        assert!(click.iter().cycle().take(400).all(|power| vad.frame(*power).is_none()));
        assert!((0..400).all(|_| vad.frame(200.0 * 200.0).is_none()));
        let strict = json!({"type": "server_vad", "threshold": 1.0});
        let mut vad = Vad::of(&strict, 0).unwrap();
        assert!((0..400).all(|_| vad.frame(1000.0 * 1000.0).is_none()), "-30 dBFS is not loud enough at 1.0");
        assert!(Vad::of(&Value::Null, 0).is_none());
    }

    #[test]
    fn the_beginning_is_never_before_the_first_sound() {
        let mut vad = Vad::of(&json!({"type": "server_vad"}), 0).unwrap();
        let started = (0..10).find_map(|_| vad.frame(1e7));
        assert_eq!(started, Some(Edge::Started { audio_start_ms: 0 }));
    }
}
