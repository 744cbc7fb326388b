//! The channels a conversation runs over and the providers that carry them.

use serde::{Deserialize, Serialize};

use crate::json::Part;

/// Where a turn was spoken or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// A call, over whichever trunk.
    Voice,
    /// WhatsApp messages.
    Whatsapp,
    /// Text messages.
    Sms,
}

impl Channel {
    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Channel::Voice => "voice",
            Channel::Whatsapp => "whatsapp",
            Channel::Sms => "sms",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Channel> {
        [Channel::Voice, Channel::Whatsapp, Channel::Sms].into_iter().find(|channel| channel.as_str() == word)
    }
}

impl From<Channel> for Part<'_> {
    fn from(channel: Channel) -> Self {
        Part::Text(channel.as_str())
    }
}

/// Whose service is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// MTN SMS V3.
    Mtn,
    /// Meta's WhatsApp Cloud API.
    Whatsapp,
    /// OpenAI's text endpoints.
    Openai,
    /// Africa's Talking SMS.
    AfricasTalking,
    /// Twilio SMS (never in the voice path).
    Twilio,
}

impl Provider {
    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Mtn => "mtn",
            Provider::Whatsapp => "whatsapp",
            Provider::Openai => "openai",
            Provider::AfricasTalking => "africas_talking",
            Provider::Twilio => "twilio",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Provider> {
        [Provider::Mtn, Provider::Whatsapp, Provider::Openai, Provider::AfricasTalking, Provider::Twilio]
            .into_iter()
            .find(|provider| provider.as_str() == word)
    }
}

impl From<Provider> for Part<'_> {
    fn from(provider: Provider) -> Self {
        Part::Text(provider.as_str())
    }
}
