//! A person's message as work for the consumer of turns: the fields of `begin_sms_turn`.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::channel::{Channel, Provider};
use crate::json::{Part, clip, field, obj, text, without_nul};
use crate::keyword;
use crate::locale;
use crate::timestamp;
use crate::whatsapp_message::{VoiceNote, is_media_id};

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
    /// What was spoken, if it can be listened to; `text` then stands for it until it was.
    pub voice_note: Option<&'a VoiceNote>,
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
        let [keyword, may_answer, language] = words(self.text);
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
            keyword,
            may_answer,
            language,
            ("unsigned", self.unsigned.into()),
            (VOICE_NOTE, self.voice_note.map(note).into()),
        ])
    }
}

const VOICE_NOTE: &str = "voice_note";

/// Set where the edge counted too many messages of who wrote: a word of [`crate::flood::Over`]. Nobody listens to such work,
/// and `begin_sms_turn` stores it without an answer.
pub const OVER_LIMIT: &str = "over_limit";

fn note(note: &VoiceNote) -> Value {
    obj(&mut [("media_id", (&note.media_id).into()), ("mime_type", (&note.mime_type).into())])
}

/// The fields that follow from the words.
fn words(text: &str) -> [(&'static str, Part<'static>); 3] {
    let found = keyword::detect(text);
    let language = found.and_then(|found| found.locale).or_else(|| locale::detect(text));
    [
        ("keyword", found.map(|found| found.keyword.as_str()).into()),
        ("keyword_may_answer", found.is_some_and(|found| found.may_answer).into()),
        ("language_hint", language.into()),
    ]
}

/// The voice note of work that is still to be listened to.
pub fn voice_note(work: &Value) -> Option<VoiceNote> {
    if text(work, OVER_LIMIT).is_some() {
        return None;
    }
    let note = field(work, VOICE_NOTE)?;
    let media_id = text(note, "media_id").filter(|id| is_media_id(id))?;
    Some(VoiceNote { media_id, mime_type: text(note, "mime_type").unwrap_or_default() })
}

/// The work once somebody listened: as if the words had been written, and marked as spoken. A keyword counts when it is spoken.
pub fn listened(work: &Value, spoken: &str) -> Value {
    let mut work = work.clone();
    let Some(fields) = work.as_object_mut() else { return work };
    fields.remove(VOICE_NOTE);
    let spoken = without_nul(spoken);
    let spoken = clip(spoken.trim(), MAX_SPOKEN_CHARS);
    if spoken.is_empty() {
        fields.insert("text".to_owned(), "[voice message in which nothing is said]".into());
        return work;
    }
    fields.insert("text".to_owned(), ["[voice message] ", spoken].concat().into());
    if let Value::Object(found) = obj(&mut words(spoken)) {
        fields.extend(found);
    }
    work
}

/// Longest words kept of a voice note, in characters: some ten minutes of talk.
const MAX_SPOKEN_CHARS: usize = 8_000;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
            voice_note: None,
            text: "ARRETEZ, svp",
            wants_answer: true,
            received_at: DateTime::from_timestamp(1_795_226_400, 0).unwrap(),
            reported_at: None,
            unsigned: false,
        };
        let work = inbound.work();
        assert_eq!((&work["keyword"], &work["language_hint"]), (&"stop".into(), &"fr".into()));
        assert_eq!((&work["keyword_may_answer"], &work["user_id"]), (&false.into(), &Value::Null));
        assert_eq!(voice_note(&work), None);
        let work = Inbound { text: "Ndashaka inzu i Kigali", ..inbound }.work();
        assert_eq!((&work["keyword"], &work["language_hint"]), (&Value::Null, &"rw".into()));
    }
    #[test]
    fn what_is_heard_counts_as_if_it_had_been_written() {
        let note = VoiceNote { media_id: "77".into(), mime_type: "audio/ogg".into() };
        let work = json!({"text": "[voice message]", "keyword": null, "language_hint": null, "provider_message_id": "w",
                          "voice_note": {"media_id": "77", "mime_type": "audio/ogg"}});
        assert_eq!(voice_note(&work), Some(note));
        let heard = listened(&work, " Ndashaka inzu i Kigali\u{0} ");
        assert_eq!(heard["text"], "[voice message] Ndashaka inzu i Kigali");
        assert_eq!((&heard["language_hint"], &heard["provider_message_id"]), (&json!("rw"), &json!("w")));
        assert_eq!(voice_note(&heard), None);
        assert_eq!(listened(&work, "SMS seulement.")["keyword"], "sms_only");
        assert_eq!(listened(&work, " ")["text"], "[voice message in which nothing is said]");
        assert_eq!(listened(&work, &"é".repeat(9_000))["text"].as_str().unwrap().chars().count(), 16 + 8_000);
        assert_eq!(voice_note(&json!({"voice_note": {"media_id": "../me"}})), None);
        let mut flood = work.clone();
        flood[OVER_LIMIT] = "sender".into();
        assert_eq!(voice_note(&flood), None, "listening costs money");
    }
}
