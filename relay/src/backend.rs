//! The model that speaks with the caller, behind one trait, so that another one can take its place.
//!
//! A backend is a state machine like the rest: what the socket and the call bring goes in, what is to be sent, played
//! and recorded comes out. It opens no socket itself.

pub mod audio;
pub mod realtime;

use bytes::Bytes;
use ihuza_core::locale::Locale;
pub use ihuza_core::realtime_event::Usage;
use serde::{Deserialize, Serialize};

use crate::media::dtmf::Digit;
use crate::media::playout::{Heard, ItemId};
use crate::moment::Moment;

/// One connection to the model; a later one has a greater number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(pub u32);

/// What a backend is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A connection that was asked for stands.
    Connected(Link),
    /// A connection could not be made, or is gone.
    Disconnected(Link),
    /// A text message came.
    Message(Link, Bytes),
    /// Sound of the caller, in the law of the call.
    Audio(Vec<u8>),
    /// The caller pressed a key.
    Digit(Digit),
    /// The agent is to speak first.
    Greet,
    /// An item was spoken to its end.
    Spoken(Heard),
    /// The answer to `Output::Flush`: what was heard of each item that was cut off, in order.
    Cut(Vec<Heard>),
    /// The answer to `Output::ToolCall`, as JSON text.
    ToolResult {
        /// Which call of a tool.
        call_id: String,
        /// What it gave.
        output: String,
    },
    /// Time has passed.
    Timeout,
}

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The person on the telephone.
    Caller,
    /// The model.
    Agent,
}

/// How the language of a turn is known; the record's `language_source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LanguageSource {
    /// The recogniser said so.
    Transcription,
    /// From the words.
    Detected,
}

impl LanguageSource {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            LanguageSource::Transcription => "transcription",
            LanguageSource::Detected => "detected",
        }
    }
}

/// What a backend wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a connection, and report `Connected` or `Disconnected`.
    Connect(Link),
    /// Send a text message.
    Send(Link, String),
    /// Close a connection.
    Close(Link),
    /// The model is ready: from now on it hears and may speak.
    Ready,
    /// Play this, after what is being played, in the law of the call.
    Play {
        /// Of which item.
        item: ItemId,
        /// The sound.
        audio: Bytes,
    },
    /// Nothing more will come of this item.
    Complete(ItemId),
    /// The caller interrupts: throw away what is not played yet and answer with `Input::Cut`.
    Flush,
    /// Something was said; of the agent only what was heard.
    Said {
        /// By whom.
        speaker: Speaker,
        /// The words.
        text: String,
        /// The language, as the model or we noticed it, and which of the two.
        locale: Option<(Locale, LanguageSource)>,
        /// The agent was interrupted.
        interrupted: bool,
    },
    /// From now on the caller speaks this language, and so does the agent.
    Language(Locale),
    /// Run a tool and answer with `Input::ToolResult`.
    ToolCall {
        /// Names this use of it; the same twice is the same.
        call_id: String,
        /// Which tool.
        name: String,
        /// Its arguments, as the model wrote them.
        arguments: String,
    },
    /// A tool takes long: say something meanwhile.
    Filler,
    /// A response was paid for.
    Used(Usage),
    /// Something is not as it should be, and the call goes on; words of ours, never of the caller.
    Warning(String),
    /// The model is gone and will not come back: apologise and end the call.
    Failed(&'static str),
}

/// A model that speaks.
pub trait VoiceBackend: Send {
    /// Takes something in.
    fn handle_input(&mut self, now: Moment, input: Input);
    /// What is to be done; to be asked until there is nothing.
    fn poll_output(&mut self) -> Option<Output>;
    /// When `Input::Timeout` is to be given next, if ever.
    fn next_timeout(&self) -> Option<Moment>;
}
