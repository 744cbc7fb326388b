//! What comes of sound: speech that begins and ends, turns, and their words.

use std::time::Duration;

use serde_json::json;

use super::super::audio::Format;
use super::super::items::Item;
use super::super::vad::{Edge, FRAME_MS, Vad};
use super::{Hearing, Session, TRANSCRIBED_AFTER, id};

impl Session {
    /// Hears from now on as the settings say.
    pub(super) fn listen(&mut self) {
        let format = Format::of(self.settings.pointer("/audio/input/format"));
        if format != self.input {
            self.rest.clear();
            self.input = format;
        }
        let turns = self.settings.pointer("/audio/input/turn_detection").cloned().unwrap_or_default();
        self.vad = Vad::of(&turns, self.heard_ms);
        self.speaking = None;
    }

    pub fn append(&mut self, now: Duration, sound: &[u8]) {
        self.rest.extend_from_slice(sound);
        let frame = FRAME_MS as usize * self.input.bytes_a_ms();
        let whole = self.rest.len() / frame * frame;
        let sound: Vec<u8> = self.rest.drain(..whole).collect();
        for frame in sound.chunks_exact(frame) {
            self.heard_ms += FRAME_MS;
            match self.vad.as_mut().and_then(|vad| vad.frame(self.input.power(frame))) {
                Some(Edge::Started { audio_start_ms }) => self.started(audio_start_ms),
                Some(Edge::Stopped { audio_end_ms }) => self.stopped(now, audio_end_ms),
                None => {}
            }
        }
    }

    pub(super) fn started(&mut self, audio_start_ms: u64) {
        let item = id("item");
        let start = json!({ "audio_start_ms": audio_start_ms, "item_id": item });
        self.speaking = Some((item, audio_start_ms));
        self.tell("input_audio_buffer.speech_started", start);
        if self.vad.as_ref().is_some_and(|vad| vad.interrupt_response) && self.response.is_some() {
            self.cancel("turn_detected");
        }
    }

    pub(super) fn stopped(&mut self, now: Duration, audio_end_ms: u64) {
        let Some((item, from)) = self.speaking.take() else { return };
        self.tell("input_audio_buffer.speech_stopped", json!({ "audio_end_ms": audio_end_ms, "item_id": item }));
        self.commit(now, item, audio_end_ms.saturating_sub(from));
        if self.vad.as_ref().is_some_and(|vad| vad.create_response) && self.response.is_none() {
            self.respond(now, &json!({}));
        }
    }

    /// The caller's turn is an item from here on.
    pub(super) fn commit(&mut self, now: Duration, item: String, ms: u64) {
        self.uncommitted_from_ms = self.heard_ms;
        let before = self.items.last_id();
        self.tell("input_audio_buffer.committed", json!({ "item_id": item, "previous_item_id": before }));
        let content = json!([{"type": "input_audio", "transcript": null}]);
        let value = json!({"id": item, "object": "realtime.item", "type": "message", "status": "completed", "role": "user", "content": content});
        self.added(Item { id: item.clone(), value, audio_ms: ms, of_model: false }, None);
        let (text, language) = self.progress().hears();
        if self.settings.pointer("/audio/input/transcription").is_some_and(|wanted| !wanted.is_null()) {
            self.hearing.push_back(Hearing { at: now + TRANSCRIBED_AFTER, item, text, language, ms });
        }
    }

    pub(super) fn transcribed(&mut self, heard: Hearing) {
        let Hearing { item, text, language, ms, .. } = heard;
        let name = |end: &str| format!("conversation.item.input_audio_transcription.{end}");
        self.tell(&name("delta"), json!({ "item_id": item, "content_index": 0, "delta": text }));
        let mut completed = json!({
            "item_id": item, "content_index": 0, "transcript": text,
            "usage": {"type": "duration", "seconds": ms.div_ceil(1000)},
        });
        if let (Some(language), Some(completed)) = (language, completed.as_object_mut()) {
            completed.insert("languages".to_owned(), json!([language]));
        }
        self.tell(&name("completed"), completed);
        if let Some(part) = self.items.find(&item).and_then(|item| item.value.pointer_mut("/content/0")) {
            *part = json!({"type": "input_audio", "transcript": text});
        }
    }
}
