//! What the model is told of the session: sound, turns, languages, tools.

use ihuza_core::locale::{ALL, Locale};
use ihuza_core::realtime::in_language;
use serde_json::{Value, json};

use super::super::Output;
use super::{Realtime, Stage};
use crate::config::{AudioFormat, TurnDetection};
use crate::media::g711::Law;

impl Realtime {
    pub(super) fn session(&self, hints: bool) -> Value {
        let format = self.format();
        let turn_detection = match self.setup.turn_detection {
            TurnDetection::ServerVad => json!({
                "type": "server_vad", "threshold": 0.55, "prefix_padding_ms": 300, "silence_duration_ms": 500,
                "create_response": true, "interrupt_response": true,
            }),
            TurnDetection::SemanticVad => json!({
                "type": "semantic_vad", "eagerness": "auto", "create_response": true, "interrupt_response": true,
            }),
        };
        json!({
            "type": "realtime",
            "output_modalities": ["audio"],
            "instructions": self.setup.instructions,
            "audio": {
                "input": {
                    "format": format, "noise_reduction": { "type": "near_field" },
                    "transcription": self.transcription(hints),
                    "turn_detection": turn_detection,
                },
                "output": { "format": format, "voice": self.setup.voice },
            },
            "tools": self.setup.tools,
            "tool_choice": "auto",
            "truncation": {
                "type": "retention_ratio", "retention_ratio": 0.8, "token_limits": { "post_instructions": 8000 },
            },
        })
    }

    /// The language that is spoken comes first among the hints; the others stay, or a change would never be noticed.
    fn transcription(&self, hints: bool) -> Value {
        let mut transcription = json!({ "model": "gpt-transcribe" });
        if hints && let Some(fields) = transcription.as_object_mut() {
            let current = self.language.current();
            let others = ALL.into_iter().filter(|locale| *locale != current);
            let languages: Vec<_> = [current].into_iter().chain(others).map(Locale::as_str).collect();
            fields.insert("languages".into(), json!(languages));
        }
        transcription
    }

    pub(super) fn format(&self) -> Value {
        match (self.setup.format, self.setup.law) {
            (AudioFormat::Pcm16, _) => json!({ "type": "audio/pcm", "rate": 24000 }),
            (AudioFormat::G711, Law::A) => json!({ "type": "audio/pcma" }),
            (AudioFormat::G711, Law::Mu) => json!({ "type": "audio/pcmu" }),
        }
    }

    /// The caller has changed the language: the agent is told to speak it too, on this connection and on later ones.
    pub(super) fn speak(&mut self, locale: Locale) {
        self.setup.instructions = in_language(&self.setup.instructions, locale);
        self.out.push_back(Output::Language(locale));
        let Some(active) = self.active.as_ref().filter(|active| active.stage == Stage::Ready) else { return };
        let transcription = self.transcription(!active.without_hints);
        let message = json!({
            "type": "session.update",
            "session": {
                "type": "realtime", "instructions": self.setup.instructions,
                "audio": { "input": { "transcription": transcription } },
            },
        });
        self.out.push_back(Output::Send(active.link, message.to_string()));
    }
}
