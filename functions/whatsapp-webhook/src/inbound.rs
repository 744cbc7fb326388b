//! A person's message as work for the consumer of turns.

use ihuza_core::{
    channel::{Channel, Provider},
    flood::Keys,
    phone::E164,
    turn::Inbound,
    whatsapp_message::InboundWhatsapp,
};
use serde_json::Value;

/// What the edge counts the sender by.
pub fn keys(message: &InboundWhatsapp, home: &str) -> Option<Keys> {
    Keys::of(Channel::Whatsapp, message.from.number.as_ref(), message.from.user_id.as_deref(), home, false)
}

pub fn work_of(message: &InboundWhatsapp) -> Value {
    Inbound {
        channel: Channel::Whatsapp,
        provider: Provider::Whatsapp,
        provider_message_id: &message.provider_message_id,
        from: message.from.number.as_ref().map(E164::as_str),
        user_id: message.from.user_id.as_deref(),
        display_name: message.from.display_name.as_deref(),
        to: &message.to,
        text: &message.text,
        voice_note: message.voice_note.as_ref(),
        wants_answer: message.wants_answer,
        received_at: message.received_at,
        reported_at: message.reported_at,
        unsigned: false,
    }
    .work()
}
