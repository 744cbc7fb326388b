//! A person's message as work for the consumer of turns: the fields of `begin_sms_turn`.

use ihuza_core::{json::obj, keyword, locale, timestamp, whatsapp_message::InboundWhatsapp};
use serde_json::Value;

pub fn work_of(message: &InboundWhatsapp) -> Value {
    let found = keyword::detect(&message.text);
    let language = found.as_ref().and_then(|found| found.locale).or_else(|| locale::detect(&message.text));
    obj(&mut [
        ("channel", "whatsapp".into()),
        ("provider", "whatsapp".into()),
        ("provider_message_id", (&message.provider_message_id).into()),
        ("from", message.from.number.as_ref().map(|number| number.as_str()).into()),
        ("user_id", (&message.from.user_id).into()),
        ("display_name", (&message.from.display_name).into()),
        ("to", (&message.to).into()),
        ("text", (&message.text).into()),
        ("wants_answer", message.wants_answer.into()),
        ("received_at", timestamp::to_rfc3339(message.received_at).into()),
        ("reported_at", message.reported_at.map(timestamp::to_rfc3339).into()),
        ("keyword", found.as_ref().map(|found| found.keyword.as_str()).into()),
        ("keyword_may_answer", found.is_some_and(|found| found.may_answer).into()),
        ("language_hint", language.into()),
    ])
}
