//! A person's message as work for the consumer of turns: the fields of `begin_sms_turn`.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::channel::{Channel, Provider};
use crate::json::obj;
use crate::keyword;
use crate::locale;
use crate::timestamp;

/// What somebody wrote, on whichever channel.
#[derive(Debug, Clone, Copy)]
pub struct Inbound<'a> {
    /// Where it was written.
    pub channel: Channel,
    /// Who brought it.
    pub provider: Provider,
    /// The provider's id, by which a repetition is known.
    pub provider_message_id: &'a str,
    /// E.164; absent where a user name hides it.
    pub from: Option<&'a str>,
    /// WhatsApp's business-scoped user id.
    pub user_id: Option<&'a str>,
    /// The name that the person shows.
    pub display_name: Option<&'a str>,
    /// To which of our addresses it was written.
    pub to: &'a str,
    /// The words.
    pub text: &'a str,
    /// Whether it asks for an answer; a reaction is only kept.
    pub wants_answer: bool,
    /// When it was written, as far as we believe it.
    pub received_at: DateTime<Utc>,
    /// The provider's own time, where we do not believe it.
    pub reported_at: Option<DateTime<Utc>>,
    /// Nothing proved who sent it.
    pub unsigned: bool,
}

impl Inbound<'_> {
    /// The body of the queue's message.
    pub fn work(&self) -> Value {
        let found = keyword::detect(self.text);
        let language = found.and_then(|found| found.locale).or_else(|| locale::detect(self.text));
        obj(&mut [
            ("channel", self.channel.into()),
            ("provider", self.provider.into()),
            ("provider_message_id", self.provider_message_id.into()),
            ("from", self.from.into()),
            ("user_id", self.user_id.into()),
            ("display_name", self.display_name.into()),
            ("to", self.to.into()),
            ("text", self.text.into()),
            ("wants_answer", self.wants_answer.into()),
            ("received_at", timestamp::to_rfc3339(self.received_at).into()),
            ("reported_at", self.reported_at.map(timestamp::to_rfc3339).into()),
            ("keyword", found.map(|found| found.keyword.as_str()).into()),
            ("keyword_may_answer", found.is_some_and(|found| found.may_answer).into()),
            ("language_hint", language.into()),
            ("unsigned", self.unsigned.into()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyword_and_the_language_are_found_before_anybody_asks_a_model() {
        let inbound = Inbound {
            channel: Channel::Sms,
            provider: Provider::Mtn,
            provider_message_id: "1",
            from: Some("+250788123456"),
            user_id: None,
            display_name: None,
            to: "8080",
            text: "ARRETEZ, svp",
            wants_answer: true,
            received_at: DateTime::from_timestamp(1_795_226_400, 0).unwrap(),
            reported_at: None,
            unsigned: false,
        };
        let work = inbound.work();
        assert_eq!((&work["keyword"], &work["language_hint"]), (&"stop".into(), &"fr".into()));
        assert_eq!((&work["keyword_may_answer"], &work["user_id"]), (&false.into(), &Value::Null));
        let work = Inbound { text: "Ndashaka inzu i Kigali", ..inbound }.work();
        assert_eq!((&work["keyword"], &work["language_hint"]), (&Value::Null, &"rw".into()));
    }
}
