//! The conversation of a session as the service keeps it, and what it costs to read it again.

use serde_json::{Value, json};

/// Speech of the caller is a token for each of these, and of the model one for half as much.
const CALLER_TOKEN_MS: u64 = 100;
const MODEL_TOKEN_MS: u64 = 50;

/// One entry of a conversation.
#[derive(Clone, Debug)]
pub struct Item {
    pub id: String,
    /// As it is shown.
    pub value: Value,
    /// Sound of the caller or of the model.
    pub audio_ms: u64,
    pub of_model: bool,
}

impl Item {
    fn field(&self, name: &str) -> Option<&str> {
        self.value.get(name)?.as_str()
    }
}

/// All entries, oldest first.
#[derive(Debug, Default)]
pub struct Items {
    all: Vec<Item>,
    /// What the last response read: it is cached by now.
    read: Tokens,
}

/// Text and sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub text: u64,
    pub audio: u64,
}

impl Items {
    pub fn last_id(&self) -> Option<String> {
        self.all.last().map(|item| item.id.clone())
    }

    pub fn find(&mut self, id: &str) -> Option<&mut Item> {
        self.all.iter_mut().find(|item| item.id == id)
    }

    /// Behind another one, or at the end. The id of the one before it.
    pub fn add(&mut self, item: Item, behind: Option<&str>) -> Option<String> {
        let at = match behind {
            Some("root") => 0,
            Some(id) => self.all.iter().position(|other| other.id == id).map_or(self.all.len(), |at| at + 1),
            None => self.all.len(),
        };
        let before = at.checked_sub(1).and_then(|at| self.all.get(at)).map(|item| item.id.clone());
        self.all.insert(at, item);
        before
    }

    pub fn remove(&mut self, id: &str) -> bool {
        let before = self.all.len();
        self.all.retain(|item| item.id != id);
        self.all.len() < before
    }

    /// Whether a function call with this id was made.
    pub fn has_call(&self, call_id: &str) -> bool {
        let is = |item: &Item| item.field("type") == Some("function_call") && item.field("call_id") == Some(call_id);
        self.all.iter().any(is)
    }

    /// The newest output of a function, or of a remote tool.
    pub fn told(&self) -> Option<&str> {
        let is_output = |item: &&Item| matches!(item.field("type"), Some("function_call_output" | "mcp_call"));
        let newest = self.all.iter().rev().find(is_output);
        newest?.field("output")
    }

    /// Input and output of a response that reads all of this and makes `made`.
    pub fn usage(&mut self, instructions: usize, made: Tokens) -> Value {
        let mut read = Tokens { text: text_tokens(instructions), audio: 0 };
        for item in &self.all {
            if item.audio_ms == 0 {
                read.text += text_tokens(item.value.to_string().len());
            } else {
                read.audio += audio_tokens(item.audio_ms, item.of_model);
            }
        }
        let cached = Tokens { text: self.read.text.min(read.text), audio: self.read.audio.min(read.audio) };
        self.read = read;
        json!({
            "total_tokens": read.text + read.audio + made.text + made.audio,
            "input_tokens": read.text + read.audio, "output_tokens": made.text + made.audio,
            "input_token_details": {
                "text_tokens": read.text, "audio_tokens": read.audio, "image_tokens": 0, "cached_tokens": cached.text + cached.audio,
                "cached_tokens_details": {"text_tokens": cached.text, "audio_tokens": cached.audio, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": made.text, "audio_tokens": made.audio},
        })
    }
}

/// About four characters a token.
pub fn text_tokens(characters: usize) -> u64 {
    characters.div_ceil(4) as u64
}

pub fn audio_tokens(ms: u64, of_model: bool) -> u64 {
    ms.div_ceil(if of_model { MODEL_TOKEN_MS } else { CALLER_TOKEN_MS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_response_reads_the_first_ones_input_from_the_cache() {
        let mut items = Items::default();
        let speech = |id: &str, audio_ms, of_model| Item { id: id.into(), value: json!({}), audio_ms, of_model };
        items.add(speech("a", 2000, false), None);
        let first = items.usage(400, Tokens { text: 10, audio: 20 });
        assert_eq!(
            (&first["input_token_details"]["audio_tokens"], &first["input_token_details"]["cached_tokens"]),
            (&json!(20), &json!(0))
        );
        assert_eq!(
            (&first["input_tokens"], &first["output_tokens"], &first["total_tokens"]),
            (&json!(120), &json!(30), &json!(150))
        );
        items.add(speech("b", 1000, true), None);
        let second = items.usage(400, Tokens::default());
        assert_eq!(second["input_token_details"]["audio_tokens"], 40);
        assert_eq!(
            second["input_token_details"]["cached_tokens_details"],
            json!({"text_tokens": 100, "audio_tokens": 20, "image_tokens": 0})
        );
    }
}
