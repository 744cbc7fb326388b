//! A session whose sound the service carries itself: over its own SIP. The client hears of the words and of what is played,
//! never of the sound; what it has missed while it was not connected it has missed.
//!
//! The service plays at `Rules::speed` times the real pace. What a caller cuts off it truncates by itself (the vendor's guide
//! "Telephony and SIP", and `types/realtime/output_audio_buffer_*`).

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use super::audio::Format;
use super::mcp::RemoteCall;
use super::session::{Out, Session};
use crate::speech::Speech;

/// Silence behind what a caller says: longer than any turn detection waits.
const PAUSE_MS: usize = 2_500;

/// What is being played.
#[derive(Debug)]
struct Playing {
    response: String,
    item: String,
    began: Duration,
    /// So much of it came so far.
    ms: u64,
    /// All of it has come.
    whole: bool,
}

/// The session of a call.
pub struct Leg {
    session: Session,
    speed: u32,
    playing: Option<Playing>,
    out: VecDeque<Out>,
}

impl Leg {
    pub fn new(session: Session, speed: u32) -> Self {
        Self { session, speed: speed.max(1), playing: None, out: VecDeque::new() }
    }

    /// The session as somebody finds it who connects now.
    pub fn created(&self) -> Value {
        json!({"type": "session.created", "event_id": super::session::id("event"), "session": self.session.settings()})
    }

    pub fn settings(&self) -> Value {
        self.session.settings().clone()
    }

    /// A message of the client's.
    pub fn hear(&mut self, now: Duration, text: &str) {
        self.session.hear(now, text);
        self.follow(now);
    }

    /// The caller says this, and is silent then.
    pub fn says(&mut self, now: Duration, speech: &Speech) {
        let format = Format::of(self.session.settings().pointer("/audio/input/format"));
        let silence: u8 = match format {
            Format::Alaw => 0xd5,
            Format::Mulaw => 0xff,
            Format::Pcm => 0,
        };
        let mut sound = format.write(speech);
        sound.extend(std::iter::repeat_n(silence, PAUSE_MS * format.bytes_a_ms()));
        self.session.append(now, &sound);
        self.follow(now);
    }

    /// What came of a remote call.
    pub fn remote_done(&mut self, now: Duration, call: &RemoteCall, answer: Result<String, String>) {
        self.session.remote_done(call, answer);
        self.follow(now);
    }

    /// The caller presses a key. The event has no id.
    pub fn presses(&mut self, key: &str) {
        let at = chrono::Utc::now().timestamp();
        self.out.push_back(Out::Event(
            json!({"type": "input_audio_buffer.dtmf_event_received", "event": key, "received_at": at}),
        ));
    }

    pub fn poll(&mut self) -> Option<Out> {
        self.out.pop_front()
    }

    pub fn next_at(&self) -> Duration {
        let stops = self.playing.as_ref().filter(|playing| playing.whole).map(|playing| self.end_of(playing));
        stops.into_iter().fold(self.session.next_at(), Duration::min)
    }

    pub fn tick(&mut self, now: Duration) {
        self.session.tick(now);
        self.follow(now);
        if let Some(played) = self.playing.take_if(|playing| playing.whole && now >= end_of(playing, self.speed)) {
            self.tell("output_audio_buffer.stopped", json!({ "response_id": played.response }));
        }
    }

    fn end_of(&self, playing: &Playing) -> Duration {
        end_of(playing, self.speed)
    }

    /// What the session says, as it is heard over a telephone line.
    fn follow(&mut self, now: Duration) {
        while let Some(out) = self.session.poll() {
            let Out::Event(event) = &out else {
                self.out.push_back(out);
                continue;
            };
            let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            match event.get("type").and_then(Value::as_str) {
                Some("response.output_audio.delta") => {
                    let format = Format::of(self.session.settings().pointer("/audio/output/format"));
                    let bytes = event.get("delta").and_then(Value::as_str).map_or(0, |delta| delta.len() / 4 * 3);
                    let ms = (bytes / format.bytes_a_ms()) as u64;
                    let (response, item) = (text("response_id"), text("item_id"));
                    match &mut self.playing {
                        Some(playing) if playing.response == response => playing.ms += ms,
                        _ => {
                            let begun = json!({ "response_id": response });
                            self.playing = Some(Playing { response, item, began: now, ms, whole: false });
                            self.tell("output_audio_buffer.started", begun);
                        }
                    }
                }
                Some("response.output_audio.done") => {
                    if let Some(playing) = &mut self.playing {
                        playing.whole = true;
                    }
                    self.out.push_back(out);
                }
                Some("input_audio_buffer.speech_started") => {
                    self.out.push_back(out);
                    if let Some(cut) = self.playing.take() {
                        let ms = (now.saturating_sub(cut.began) * self.speed).as_millis().min(u128::from(cut.ms));
                        let truncated = json!({ "item_id": cut.item, "content_index": 0, "audio_end_ms": ms as u64 });
                        self.tell("conversation.item.truncated", truncated);
                        self.tell("output_audio_buffer.cleared", json!({ "response_id": cut.response }));
                    }
                }
                _ => self.out.push_back(out),
            }
        }
    }

    fn tell(&mut self, name: &str, mut event: Value) {
        if let Some(event) = event.as_object_mut() {
            event.insert("type".to_owned(), name.into());
            event.insert("event_id".to_owned(), super::session::id("event").into());
        }
        self.out.push_back(Out::Event(event));
    }
}

fn end_of(playing: &Playing, speed: u32) -> Duration {
    playing.began + Duration::from_millis(playing.ms) / speed
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::{Act, Rules, Script, Turn, script::Progress, settings};
    use super::*;
    use crate::control::Met;
    use crate::speech;

    fn leg() -> Leg {
        let turn = Turn::new(speech::CALLER_QUESTION.text, vec![Act::Say(speech::AGENT_PARKING)]);
        let script = Script { greeting: speech::AGENT_GREETING, turns: vec![turn] };
        let mut given = settings::defaults("sess_1", "gpt-realtime-2.1", 0);
        let transcription =
            json!({"type": "realtime", "audio": {"input": {"transcription": {"model": "gpt-transcribe"}}}});
        settings::merge(&mut given, &transcription);
        let progress = Arc::new(Mutex::new(Progress::new(script)));
        let rules = Rules::default();
        Leg::new(Session::new(Duration::ZERO, given, rules, progress, |_| Met::default()), rules.speed)
    }

    /// Plays until nothing is due for ten seconds; types and texts of what was told.
    fn run(leg: &mut Leg, now: &mut Duration) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            while let Some(out) = leg.poll() {
                if let Out::Event(event) = out {
                    told.push(event["type"].as_str().unwrap().to_owned());
                }
            }
            let next = leg.next_at();
            if next > *now + Duration::from_secs(10) {
                return told;
            }
            *now = next.max(*now);
            leg.tick(*now);
        }
    }

    #[test]
    fn what_is_said_is_played_to_its_end_and_no_sound_is_told() {
        let (mut leg, mut now) = (leg(), Duration::from_secs(1));
        leg.hear(now, r#"{"type": "response.create"}"#);
        let told = run(&mut leg, &mut now);
        let at = |name: &str| told.iter().position(|kind| kind == name);
        assert!(at("output_audio_buffer.started") < at("output_audio_buffer.stopped"), "{told:?}");
        assert!(at("response.done") < at("output_audio_buffer.stopped"), "{told:?}");
        assert!(at("response.output_audio.delta").is_none());
    }

    #[test]
    fn a_caller_who_interrupts_is_understood_and_the_rest_is_not_played() {
        let (mut leg, mut now) = (leg(), Duration::from_secs(1));
        leg.hear(now, r#"{"type": "response.create"}"#);
        while leg.playing.as_ref().is_none_or(|playing| playing.ms == 0) {
            now = leg.next_at();
            leg.tick(now);
        }
        leg.says(now, &speech::CALLER_QUESTION);
        let told = run(&mut leg, &mut now);
        for name in ["conversation.item.truncated", "output_audio_buffer.cleared"] {
            assert!(told.iter().any(|kind| kind == name), "{name}: {told:?}");
        }
        assert!(told.iter().any(|kind| kind.ends_with("input_audio_transcription.completed")), "{told:?}");
        assert_eq!(told.iter().filter(|kind| *kind == "output_audio_buffer.stopped").count(), 1, "the answer's");
    }
}
