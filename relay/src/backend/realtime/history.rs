//! What was said, short enough to be told to a new connection.

use std::collections::VecDeque;

use serde_json::json;

use super::super::Speaker;

/// Turns told; the eldest is forgotten first.
const MOST_TURNS: usize = 40;
/// Of each turn.
const MOST_CHARS: usize = 600;

/// The last turns of a conversation.
#[derive(Debug, Default)]
pub struct History {
    turns: VecDeque<(Speaker, String)>,
}

impl History {
    /// One more turn.
    pub fn push(&mut self, speaker: Speaker, text: &str) {
        if self.turns.len() == MOST_TURNS {
            self.turns.pop_front();
        }
        self.turns.push_back((speaker, text.chars().take(MOST_CHARS).collect()));
    }

    /// Whether nothing was said yet.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Whether the caller had the last word.
    pub fn ends_with_caller(&self) -> bool {
        self.turns.back().is_some_and(|(speaker, _)| *speaker == Speaker::Caller)
    }

    /// The messages that tell a new connection.
    pub fn replay(&self) -> impl Iterator<Item = String> {
        self.turns.iter().map(|(speaker, text)| message(*speaker, text))
    }
}

/// The message that tells a connection of one turn.
pub fn message(speaker: Speaker, text: &str) -> String {
    let (role, kind) = match speaker {
        Speaker::Caller => ("user", "input_text"),
        Speaker::Agent => ("assistant", "output_text"),
    };
    super::created(&json!({ "type": "message", "role": role, "content": [{ "type": kind, "text": text }] }))
}
