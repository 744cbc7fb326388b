//! What people write on WhatsApp: one webhook item becomes one text that an agent can read, whatever kind it is of.
//!
//! Meta: whatsapp/webhooks/reference/messages. A sender with a user name may have no number (business-scoped user ids).

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::json::{clip, field, text, without_nul};
use crate::phone::E164;
use crate::timestamp;

/// Longest text kept of one message, in characters: WhatsApp's own limit.
const MAX_TEXT_CHARS: usize = 4096;

/// A person as WhatsApp names one: by number, by user id, or both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sender {
    /// The number; absent where a user name hides it.
    pub number: Option<E164>,
    /// The business-scoped user id, such as `RW.70415296338120457711`; it changes with the number.
    pub user_id: Option<String>,
    /// The name that the person shows.
    pub display_name: Option<String>,
}

/// Sound that Meta keeps for us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VoiceNote {
    /// Its id at Meta, digits.
    pub media_id: String,
    /// Such as `audio/ogg; codecs=opus`; empty where Meta does not say.
    pub mime_type: String,
}

/// Somebody's message.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundWhatsapp {
    /// The `wamid`.
    pub provider_message_id: String,
    /// Who wrote it.
    pub from: Sender,
    /// The id of our number, to which it was written.
    pub to: String,
    /// Meta's word for the kind: `text`, `button`, `audio`, ...
    pub kind: String,
    /// What the agent reads: the words, or what came instead of words, in square brackets.
    pub text: String,
    /// What was spoken, if it can be fetched.
    pub voice_note: Option<VoiceNote>,
    /// Whether it asks for an answer; a reaction is only kept.
    pub wants_answer: bool,
    /// When it was written, by Meta's clock; else when it arrived.
    pub received_at: DateTime<Utc>,
    /// Meta's own time, where that lies in our future and is not believed.
    pub reported_at: Option<DateTime<Utc>>,
}

/// What a webhook item is.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A message.
    Message(Box<InboundWhatsapp>),
    /// Nothing that anybody said: why it is left alone.
    Ignored(&'static str),
    /// No id, no sender, or no kind.
    Unreadable,
}

/// Reads one item of `messages`; `contacts` are those of the same change.
pub fn read(item: &Value, contacts: &[Value], to: &str, arrived_at: DateTime<Utc>) -> Item {
    let (Some(id), Some(kind)) = (text(item, "id"), text(item, "type")) else {
        return Item::Unreadable;
    };
    let Some(from) = sender(item, "from", "from_user_id", contacts) else {
        return Item::Unreadable;
    };
    let said = match said(&kind, item) {
        Ok(said) => without_nul(&said),
        Err(reason) => return Item::Ignored(reason),
    };
    let said = clip(said.trim(), MAX_TEXT_CHARS);
    if said.is_empty() {
        return Item::Ignored("empty_text");
    }
    let stamp = text(item, "timestamp").and_then(|at| timestamp::parse_unix(&at)).unwrap_or(arrived_at);
    let (received_at, reported_at) = timestamp::believable(stamp, arrived_at);
    Item::Message(Box::new(InboundWhatsapp {
        provider_message_id: clip(&id, 512).to_owned(),
        from,
        to: clip(to, 64).to_owned(),
        voice_note: voice_note(&kind, item),
        wants_answer: kind != "reaction",
        kind: clip(&kind, 32).to_owned(),
        text: said.to_owned(),
        received_at,
        reported_at,
    }))
}

fn voice_note(kind: &str, item: &Value) -> Option<VoiceNote> {
    let audio = field(item, "audio").filter(|_| kind == "audio")?;
    let media_id = text(audio, "id").filter(|id| is_media_id(id))?;
    let mime_type = text(audio, "mime_type").map(|of| clip(&of, 100).to_owned()).unwrap_or_default();
    Some(VoiceNote { media_id, mime_type })
}

/// It becomes part of a path: digits, as all of Meta's.
pub fn is_media_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// Who an item is from, or to: `number` and `user_id` name its fields. `None` if neither can be read.
pub fn sender(item: &Value, number: &str, user_id: &str, contacts: &[Value]) -> Option<Sender> {
    let wa_id = text(item, number).filter(|digits| is_wa_id(digits));
    let user_id = text(item, user_id).filter(|id| is_user_id(id));
    let number = wa_id.as_ref().and_then(|digits| E164::parse(&["+", digits].concat()).ok());
    if number.is_none() && user_id.is_none() {
        return None;
    }
    let mine = |contact: &&Value| {
        let same = |name: &str, id: &Option<String>| id.is_some() && text(contact, name) == *id;
        same("wa_id", &wa_id) || same("user_id", &user_id)
    };
    let name = contacts.iter().find(mine).and_then(|contact| text(field(contact, "profile")?, "name"));
    let display_name = name.map(|name| one_line(&name, 100)).filter(|name| !name.is_empty());
    Some(Sender { number, user_id, display_name })
}

/// Digits without a plus.
fn is_wa_id(id: &str) -> bool {
    (7..=15).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// Two letters of a country, a dot, at most 128 letters and digits.
pub fn is_user_id(id: &str) -> bool {
    id.split_once('.').is_some_and(|(country, rest)| {
        country.len() == 2
            && country.bytes().all(|byte| byte.is_ascii_uppercase())
            && (1..=128).contains(&rest.len())
            && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// The words, or a note in square brackets of what came instead; the error says why nothing was said.
fn said(kind: &str, item: &Value) -> Result<String, &'static str> {
    let part = |name: &str| field(item, kind).and_then(|content| text(content, name));
    Ok(match kind {
        "text" => part("body").unwrap_or_default(),
        "button" => part("text").or_else(|| part("payload")).unwrap_or_default(),
        "interactive" => return interactive(field(item, kind)),
        "reaction" => match part("emoji").filter(|emoji| !emoji.is_empty()) {
            Some(emoji) => note("reaction", &[Some(emoji)]),
            None => return Err("reaction_removed"),
        },
        "location" => {
            let place = match (part("latitude"), part("longitude")) {
                (Some(latitude), Some(longitude)) => Some([&latitude, ", ", &*longitude].concat()),
                _ => None,
            };
            note("location", &[place, part("name"), part("address")])
        }
        "audio" => note("voice message that cannot be listened to here", &[]),
        "image" => note("photo that cannot be seen here", &[part("caption")]),
        "video" => note("video that cannot be seen here", &[part("caption")]),
        "document" => note("document that cannot be opened here", &[part("filename"), part("caption")]),
        "sticker" => note("sticker", &[part("emoji")]),
        "contacts" => note("contact card", &[]),
        "order" => note("order from the catalogue", &[]),
        // Somebody changed a number or an id: nobody spoke.
        "system" => return Err("system"),
        "unsupported" => note("message of a kind that WhatsApp does not pass on", &[]),
        _ => note("message of a kind that cannot be read here", &[]),
    })
}

/// What was tapped. A button of a template and a button of a message are the same to the person.
fn interactive(content: Option<&Value>) -> Result<String, &'static str> {
    let content = content.unwrap_or(&Value::Null);
    let kind = text(content, "type").unwrap_or_default();
    let part = |name: &str| field(content, &kind).and_then(|reply| text(reply, name));
    Ok(match kind.as_str() {
        "button_reply" | "list_reply" => match (part("title"), part("description")) {
            (Some(title), Some(description)) => [&title, " (", &*description, ")"].concat(),
            (title, _) => title.or_else(|| part("id")).unwrap_or_default(),
        },
        "nfm_reply" => note("filled-in form", &[part("response_json").map(|json| one_line(&json, 1_000))]),
        // Whether we may call: nothing for the agent to answer.
        "call_permission_reply" => return Err("call_permission"),
        _ => note("choice of a kind that cannot be read here", &[]),
    })
}

fn note(what: &str, more: &[Option<String>]) -> String {
    let mut out = ["[", what].concat();
    let more = more.iter().flatten().filter(|text| !text.trim().is_empty());
    for (place, text) in more.enumerate() {
        out.push_str(if place == 0 { ": " } else { ", " });
        out.push_str(clip(text.trim(), 1_000));
    }
    out.push(']');
    out
}

fn one_line(words: &str, max_chars: usize) -> String {
    let spaced: String = without_nul(words).chars().map(|found| if found.is_control() { ' ' } else { found }).collect();
    clip(spaced.trim(), max_chars).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_500, 0).unwrap()
    }

    fn item(kind: &str, content: Value) -> Value {
        json!({"from": "250788123456", "from_user_id": "RW.704", "id": "wamid.1", "timestamp": "1795226400",
               "type": kind, kind: content})
    }

    fn message(item: &Value) -> InboundWhatsapp {
        match read(item, &[], "118", now()) {
            Item::Message(message) => *message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_becomes_words_or_a_note() {
        for (kind, content, said) in [
            ("text", json!({"body": " Ndashaka inzu "}), "Ndashaka inzu"),
            ("button", json!({"payload": "sess:1:continue", "text": "Continue"}), "Continue"),
            (
                "interactive",
                json!({"type": "button_reply", "button_reply": {"id": "v", "title": "Book a visit"}}),
                "Book a visit",
            ),
            (
                "interactive",
                json!({"type": "list_reply", "list_reply": {"id": "h", "title": "Kimironko", "description": "250k"}}),
                "Kimironko (250k)",
            ),
            (
                "interactive",
                json!({"type": "nfm_reply", "nfm_reply": {"name": "flow", "response_json": "{\"date\":\n1}"}}),
                "[filled-in form: {\"date\": 1}]",
            ),
            ("interactive", json!({"type": "news"}), "[choice of a kind that cannot be read here]"),
            ("audio", json!({"id": "1", "voice": true}), "[voice message that cannot be listened to here]"),
            ("image", json!({"id": "1", "caption": "Iyi nzu"}), "[photo that cannot be seen here: Iyi nzu]"),
            ("document", json!({"filename": "a.pdf"}), "[document that cannot be opened here: a.pdf]"),
            (
                "location",
                json!({"latitude": -1.9441, "longitude": 30.0619, "name": "Kigali Heights"}),
                "[location: -1.9441, 30.0619, Kigali Heights]",
            ),
            ("reaction", json!({"message_id": "wamid.0", "emoji": "👍"}), "[reaction: 👍]"),
            ("unsupported", json!(null), "[message of a kind that WhatsApp does not pass on]"),
            ("hologram", json!({}), "[message of a kind that cannot be read here]"),
        ] {
            assert_eq!(message(&item(kind, content)).text, said, "{kind}");
        }
        assert!(!message(&item("reaction", json!({"emoji": "👍"}))).wants_answer);
        assert!(message(&item("audio", json!({}))).wants_answer);
    }

    #[test]
    fn what_was_spoken_can_be_fetched_where_meta_keeps_it() {
        let spoken = |audio: Value| message(&item("audio", audio)).voice_note;
        let note = VoiceNote { media_id: "1440918273645501".into(), mime_type: "audio/ogg; codecs=opus".into() };
        let told = json!({"id": "1440918273645501", "mime_type": "audio/ogg; codecs=opus", "voice": true});
        assert_eq!(spoken(told), Some(note));
        for id in ["", "../me", "1/2", "a1", &"1".repeat(65)] {
            assert_eq!(spoken(json!({ "id": id })), None, "{id}");
        }
        assert_eq!(message(&item("image", json!({"id": "1"}))).voice_note, None);
    }

    #[test]
    fn what_nobody_said_is_left_alone_and_says_why() {
        for (kind, content, why) in [
            ("reaction", json!({"message_id": "wamid.0"}), "reaction_removed"),
            ("system", json!({"type": "user_changed_number"}), "system"),
            ("interactive", json!({"type": "call_permission_reply"}), "call_permission"),
            ("text", json!({"body": " \u{0} "}), "empty_text"),
        ] {
            assert_eq!(read(&item(kind, content), &[], "118", now()), Item::Ignored(why));
        }
        for broken in
            [json!({}), json!({"id": "x", "type": "text"}), json!({"id": "x", "from": "250788123456"}), json!(7)]
        {
            assert_eq!(read(&broken, &[], "118", now()), Item::Unreadable, "{broken}");
        }
    }

    #[test]
    fn a_sender_has_a_number_or_an_id_and_perhaps_a_name() {
        let contacts = [
            json!({"profile": {"name": "Somebody else"}, "wa_id": "250788000001"}),
            json!({"profile": {"name": "Uwase\nAline"}, "user_id": "RW.704"}),
        ];
        let hidden = json!({"from_user_id": "RW.704", "id": "wamid.1", "type": "text", "text": {"body": "x"}});
        let Item::Message(found) = read(&hidden, &contacts, "118", now()) else { panic!() };
        assert_eq!((&found.from.number, found.from.user_id.as_deref()), (&None, Some("RW.704")));
        assert_eq!(found.from.display_name.as_deref(), Some("Uwase Aline"));
        assert_eq!(found.received_at, now(), "no time is the time of arrival");
        let both = message(&item("text", json!({"body": "x"})));
        assert_eq!(both.from.number.as_ref().map(E164::as_str), Some("+250788123456"));
        assert_eq!(both.received_at.timestamp(), 1_795_226_400);
        for id in ["RW", "RW.", "rw.1", "RWA.1", "RW.1 2", "RW.é", &["RW.", &"1".repeat(129)].concat()] {
            assert!(!is_user_id(id), "{id}");
        }
    }

    proptest! {
        #[test]
        fn no_item_panics_and_none_is_too_long(kind in "(text|button|interactive|audio|image|location|reaction|document|\\PC{0,9})",
                                               words: String, n: f64, nested in "(button_reply|list_reply|nfm_reply|\\PC{0,5})") {
            for content in [json!({"body": words}), json!({"type": nested, nested.as_str(): {"title": words, "description": words}}),
                            json!({"caption": words, "emoji": words, "latitude": n, "longitude": n, "name": words}), json!(words), json!([n])] {
                if let Item::Message(message) = read(&item(&kind, content), &[json!(words), json!({"profile": words})], &words, now()) {
                    prop_assert!(message.text.chars().count() <= MAX_TEXT_CHARS && !message.text.contains('\0'));
                }
            }
        }
    }
}
