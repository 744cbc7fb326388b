//! WhatsApp Cloud API: bodies to send, answers, webhooks, and the formatting WhatsApp understands.
//!
//! Graph API as of v25.0 (Meta: whatsapp/messages, /webhooks). Every phone field of a webhook is optional, because people
//! with a user name have none.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::channel::Provider;
use crate::error_class::{Evidence, classify};
use crate::form;
use crate::ids::is_uuid;
use crate::json::{clip, field, record, text};
use crate::letters::is_of_a_word;
use crate::phone::E164;
use crate::problem::Problem;
use crate::send::{Accepted, Outcome, Refused};
use crate::signature;
use crate::status::{self, DeliveryEvent, DeliveryStatus};
use crate::timestamp;
use crate::whatsapp_call::{self, CallEvent};
use crate::whatsapp_message::{self, InboundWhatsapp, Item};
use crate::whatsapp_template::{self, TemplateUpdate};

pub use crate::routing::{SERVICE_WINDOW, service_window_open};

/// Longest text body, counted in UTF-16 units because Meta does not say which units it counts.
pub const TEXT_MAX_UNITS: usize = 4096;

/// Largest webhook body: Meta batches up to 1,000 updates into 3 MB.
pub const WEBHOOK_MAX_BYTES: usize = 3 * 1024 * 1024;

/// Most updates read from one webhook.
const MAX_UPDATES: usize = 5_000;

/// Whom a message goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    /// A number.
    Phone(E164),
    /// A business-scoped user id, of somebody who shares no number. Some templates cannot be sent there (131062).
    UserId(String),
}

impl Recipient {
    /// Reads what `message_delivery_log.recipient` holds.
    pub fn parse(text: &str) -> Option<Recipient> {
        if whatsapp_message::is_user_id(text) {
            return Some(Recipient::UserId(text.to_owned()));
        }
        E164::parse(text).ok().map(Recipient::Phone)
    }
}

/// The body of a free text message; only inside the 24-hour window.
///
/// `delivery_ref` comes back as `biz_opaque_callback_data` in every status.
pub fn text_message(to: &Recipient, body: &str, delivery_ref: &str) -> Value {
    let text = record(vec![("preview_url", Value::Bool(false)), ("body", Value::from(fit_text(body)))]);
    message(to, "text", text, delivery_ref)
}

/// The body of a template message with named parameters.
pub fn template_message<N: AsRef<str>>(
    to: &Recipient,
    name: &str,
    language: &str,
    parameters: &[(N, String)],
    delivery_ref: &str,
) -> Value {
    let parameter = |(name, value): &(N, String)| {
        record(vec![
            ("type", Value::from("text")),
            ("parameter_name", Value::from(name.as_ref())),
            ("text", Value::from(template_value(value))),
        ])
    };
    let parameters = Value::Array(parameters.iter().map(parameter).collect());
    let body = record(vec![("type", Value::from("body")), ("parameters", parameters)]);
    let template = record(vec![
        ("name", Value::from(name)),
        ("language", record(vec![("code", Value::from(language))])),
        ("components", Value::Array(vec![body])),
    ]);
    message(to, "template", template, delivery_ref)
}

fn message(to: &Recipient, kind: &str, content: Value, delivery_ref: &str) -> Value {
    let (name, address) = match to {
        Recipient::Phone(number) => ("to", number.as_str()),
        Recipient::UserId(id) => ("recipient", id.as_str()),
    };
    record(vec![
        ("messaging_product", Value::from("whatsapp")),
        ("recipient_type", Value::from("individual")),
        (name, Value::from(address)),
        ("type", Value::from(kind)),
        ("biz_opaque_callback_data", Value::from(clip(delivery_ref, 512))),
        (kind, content),
    ])
}

/// The path of the send request below the Graph API's base.
pub fn messages_path(version: &str, phone_number_id: &str) -> String {
    ["/", version, "/", phone_number_id, "/messages"].concat()
}

/// The path of what Meta keeps, such as a voice note, below the Graph API's base.
pub fn media_path(version: &str, media_id: &str) -> String {
    ["/", version, "/", media_id].concat()
}

/// Reads where it can be fetched, for about five minutes and with our token: never from a host that is not Meta's, or, for a
/// proxy in front of it, that of `base_url`.
pub fn parse_media_url(http_status: u16, body: &[u8], base_url: &str) -> Result<String, Refused> {
    let Ok(answer) = crate::json::foreign_object(body) else {
        return Err(Refused::unreadable(Provider::Whatsapp, http_status));
    };
    if let Some(error) = field(&answer, "error") {
        return Err(Refused::answered(Provider::Whatsapp, http_status, text(error, "code")));
    }
    let is_ours = |url: &String| {
        let host = host_of(url);
        let is_metas = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        (200..300).contains(&http_status)
            && (url.starts_with("https://") && ["fbsbx.com", "facebook.com", "whatsapp.net"].into_iter().any(is_metas)
                || origin_of(url) == origin_of(base_url))
    };
    text(&answer, "url").filter(is_ours).ok_or_else(|| Refused::unreadable(Provider::Whatsapp, http_status))
}

/// Scheme, host and port.
fn origin_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let rest = url.get(start..).unwrap_or_default();
    let end = start + rest.find(['/', '?', '#']).unwrap_or(rest.len());
    url.get(..end).unwrap_or_default()
}

/// The host; nothing if there is a name or a password before it, which no address of Meta's has.
fn host_of(url: &str) -> &str {
    let origin = origin_of(url);
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    if authority.contains(['@', '\\']) {
        return "";
    }
    authority.split(':').next().unwrap_or_default()
}

/// Reads the answer to a send request.
pub fn parse_send_response(http_status: u16, body: &[u8]) -> Outcome {
    let Ok(answer) = crate::json::foreign_object(body) else {
        return Err(Refused::unreadable(Provider::Whatsapp, http_status));
    };
    if let Some(error) = field(&answer, "error") {
        let mut refused = Refused::answered(Provider::Whatsapp, http_status, text(error, "code"));
        refused.provider_request_id = text(error, "fbtrace_id");
        return Err(refused);
    }
    let first = |name: &str| field(&answer, name).and_then(|items| items.get(0)).cloned().unwrap_or_default();
    let (message, contact) = (first("messages"), first("contacts"));
    match text(&message, "id") {
        Some(id) if (200..300).contains(&http_status) => Ok(Accepted {
            provider_message_id: Some(id),
            provider_request_id: None,
            wa_id: text(&contact, "wa_id"),
            user_id: text(&contact, "user_id"),
        }),
        Some(_) | None => Err(Refused::unreadable(Provider::Whatsapp, http_status)),
    }
}

/// The answer to Meta's verification of the webhook address (GET): the challenge, if the token is ours.
pub fn verify_subscription<S: AsRef<str>>(query: &str, verify_tokens: &[S]) -> Option<String> {
    let pairs = form::parse(query.strip_prefix('?').unwrap_or(query));
    let token = form::value(&pairs, "hub.verify_token")?;
    let challenge = form::value(&pairs, "hub.challenge")?;
    let subscribes = form::value(&pairs, "hub.mode") == Some("subscribe");
    (subscribes && signature::equals_any(token, verify_tokens)).then(|| clip(challenge, 512).to_owned())
}

/// What a webhook holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Updates {
    /// Reports on messages we sent.
    pub statuses: Vec<DeliveryEvent>,
    /// What people wrote.
    pub messages: Vec<InboundWhatsapp>,
    /// Why items among the messages are left alone: nobody said anything.
    pub ignored: Vec<&'static str>,
    /// What happened to calls.
    pub calls: Vec<CallEvent>,
    /// What became of templates.
    pub templates: Vec<TemplateUpdate>,
    /// Other fields: account, number.
    pub others: usize,
    /// Items of another phone number of the same app.
    pub foreign: usize,
    /// Items that cannot be read.
    pub unreadable: usize,
}

/// Reads a webhook: every entry, change and item for itself, so that one bad item loses no other.
///
/// `phone_number_id` is ours; items of others are counted and left.
pub fn parse_webhook(
    body: &[u8],
    phone_number_id: Option<&str>,
    received_at: DateTime<Utc>,
) -> Result<Updates, Problem> {
    let root = crate::json::foreign_object(body)?;
    let mut updates = Updates::default();
    let changes =
        array(&root, "entry").iter().flat_map(|entry| array(entry, "changes").iter().map(move |one| (entry, one)));
    for (entry, change) in changes {
        let (Some(value), Some(kind)) = (field(change, "value"), text(change, "field")) else {
            updates.unreadable += 1;
            continue;
        };
        let number = field(value, "metadata").and_then(|metadata| text(metadata, "phone_number_id"));
        let foreign = match (phone_number_id, &number) {
            (Some(ours), Some(theirs)) => ours != *theirs,
            (Some(_), None) | (None, _) => false,
        };
        let (statuses, messages, calls) = (array(value, "statuses"), array(value, "messages"), array(value, "calls"));
        if foreign {
            updates.foreign += (statuses.len() + messages.len() + calls.len()).max(1);
            continue;
        }
        match kind.as_str() {
            "messages" | "calls" => {}
            kind if whatsapp_template::is_about_templates(kind) => {
                let account = whatsapp_template::account_of(entry);
                let at = whatsapp_template::time_of(entry, received_at);
                match whatsapp_template::read(kind, value, &account, at) {
                    Some(update) if updates.templates.len() < MAX_UPDATES => updates.templates.push(update),
                    Some(_) | None => updates.unreadable += 1,
                }
            }
            _ => updates.others += 1,
        }
        let contacts = array(value, "contacts");
        let our_number = number.as_deref().unwrap_or_default();
        for call in calls {
            match whatsapp_call::read(call, contacts, our_number, received_at) {
                Some(call) if updates.calls.len() < MAX_UPDATES => updates.calls.push(call),
                Some(_) | None => updates.unreadable += 1,
            }
        }
        for message in messages {
            match whatsapp_message::read(message, contacts, our_number, received_at) {
                Item::Message(message) if updates.messages.len() < MAX_UPDATES => updates.messages.push(*message),
                Item::Ignored(reason) => updates.ignored.push(reason),
                Item::Message(_) | Item::Unreadable => updates.unreadable += 1,
            }
        }
        for status in statuses {
            match parse_status(status, received_at) {
                Some(event) if updates.statuses.len() < MAX_UPDATES => updates.statuses.push(event),
                Some(_) | None => updates.unreadable += 1,
            }
        }
    }
    Ok(updates)
}

fn parse_status(status: &Value, received_at: DateTime<Utc>) -> Option<DeliveryEvent> {
    let raw = text(status, "status")?;
    let delivery_ref = text(status, "biz_opaque_callback_data").filter(|reference| is_uuid(reference));
    let id = text(status, "id").map(|id| clip(&id, 512).to_owned());
    if id.is_none() && delivery_ref.is_none() {
        return None;
    }
    let mut known = status::from_whatsapp(&raw)?;
    let error_code =
        array(status, "errors").first().and_then(|error| text(error, "code")).map(|code| clip(&code, 64).to_owned());
    let error = match known {
        DeliveryStatus::Failed => Some(classify(Provider::Whatsapp, None, error_code.as_deref())),
        _ => None,
    };
    if error.and_then(|error| error.evidence) == Some(Evidence::NotOnWhatsapp) {
        known = DeliveryStatus::Undeliverable;
    }
    let stamp = text(status, "timestamp").and_then(|at| timestamp::parse_unix(&at)).unwrap_or(received_at);
    let (occurred_at, reported_at) = timestamp::believable(stamp, received_at);
    Some(DeliveryEvent {
        provider: Provider::Whatsapp,
        provider_message_id: id,
        delivery_ref,
        status: known,
        occurred_at,
        reported_at,
        by_arrival: false,
        error_code: error.and(error_code),
        error_class: error.map(|error| error.class),
        evidence: error.and_then(|error| error.evidence),
        raw_status: Some(raw),
        pricing: field(status, "pricing").and_then(pricing),
    })
}

/// What is known of a pricing object, in bounds: `jsonb` takes no number like 1e999999, and one such value would take the whole
/// batch with it.
fn pricing(given: &Value) -> Option<Value> {
    let mut kept = Map::new();
    for name in ["billable", "pricing_model", "type", "category"] {
        let value = match field(given, name) {
            Some(Value::Bool(flag)) => Value::Bool(*flag),
            Some(Value::String(word)) => Value::from(clip(word, 64)),
            Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => continue,
        };
        kept.insert(name.to_owned(), value);
    }
    (!kept.is_empty()).then_some(Value::Object(kept))
}

fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    match field(value, name) {
        Some(Value::Array(items)) => items,
        Some(_) | None => &[],
    }
}

/// One line, no run of more than one space: what Meta accepts as a template's value (else 132018).
fn template_value(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for word in value.split(|found: char| found.is_whitespace() || found.is_control()).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Cuts a text to what one message holds, at the end of a paragraph, line or word where one is near.
pub fn fit_text(text: &str) -> String {
    let mut units = 0;
    let mut end = text.len();
    for (at, found) in text.char_indices() {
        units += found.len_utf16();
        if units > TEXT_MAX_UNITS {
            end = at;
            break;
        }
    }
    if end == text.len() {
        return text.to_owned();
    }
    // Room for the three points.
    let room = text.get(..end).unwrap_or("");
    let room = clip(room, room.chars().count().saturating_sub(3));
    let near = room.len() - room.len() / 8;
    let cut = ["\n\n", "\n", " "].iter().find_map(|border| room.rfind(border).filter(|at| *at >= near));
    let mut out = cut.and_then(|at| room.get(..at)).unwrap_or(room).trim_end().to_owned();
    out.push_str("...");
    out
}

/// Turns the Markdown that models write into WhatsApp's marks: `**x**` to `*x*`, headings to bold, links to `text: url`.
///
/// ```
/// assert_eq!(ihuza_core::whatsapp::from_markdown("## Houses\n**Kimironko**, [map](https://x.rw/1)"),
///     "*Houses*\n*Kimironko*, map: https://x.rw/1");
/// ```
pub fn from_markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            out.push_str("```");
            continue;
        }
        if in_code {
            out.push_str(line);
            continue;
        }
        match heading(line) {
            Some(title) => {
                let title = without(&links(title), &["**", "__"]);
                out.extend(["*", title.trim(), "*"]);
            }
            None => {
                let line = links(line).replace("***", "*").replace("**", "*").replace("__", "_").replace("~~", "~");
                out.push_str(&bullet(&line));
            }
        }
    }
    out
}

/// Takes Markdown and WhatsApp marks off, for SMS: bold, italics, headings, code fences; bullets become `- `.
///
/// ```
/// assert_eq!(ihuza_core::whatsapp::plain("*Muraho!* 2*3=6, `code`"), "Muraho! 2*3=6, code");
/// ```
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut first = true;
    for line in text.lines() {
        if line.trim_start().starts_with("```") && !line.trim_start().trim_start_matches('`').contains('`') {
            continue;
        }
        if !first {
            out.push('\n');
        }
        first = false;
        let line = heading(line).unwrap_or(line);
        let line = bullet(&links(line)).replace("```", "").replace('`', "");
        let mut line = without(&line, &["**", "__", "~~"]);
        for mark in ['*', '_', '~'] {
            line = without_pairs(&line, mark);
        }
        out.push_str(line.strip_prefix("> ").unwrap_or(&line));
    }
    out
}

fn heading(line: &str) -> Option<&str> {
    let title = line.trim_start_matches('#');
    let depth = line.len() - title.len();
    ((1..=6).contains(&depth) && title.starts_with(' ')).then(|| title.trim())
}

fn bullet(line: &str) -> String {
    let body = line.trim_start();
    let indent = line.get(..line.len() - body.len()).unwrap_or("");
    for mark in ["* ", "• ", "+ "] {
        if let Some(item) = body.strip_prefix(mark) {
            return [indent, "- ", item].concat();
        }
    }
    line.to_owned()
}

/// `[text](url)` becomes `text: url`, or the address alone where the text says no more.
fn links(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open);
        out.push_str(before.strip_suffix('!').filter(|_| is_link(from)).unwrap_or(before));
        match link(from) {
            Some((label, url, after)) => {
                if !label.is_empty() && label != url {
                    out.extend([label, ": "]);
                }
                out.push_str(url);
                rest = after;
            }
            None => {
                out.push('[');
                rest = from.get(1..).unwrap_or("");
            }
        }
    }
    out.push_str(rest);
    out
}

fn is_link(from: &str) -> bool {
    link(from).is_some()
}

fn link(from: &str) -> Option<(&str, &str, &str)> {
    // A label longer than this is no label; it also keeps the search short.
    let close = clip(from, 200).find("](")?;
    let label = from.get(1..close)?;
    let after = from.get(close + 2..)?;
    let end = clip(after, 2000).find(')')?;
    let url = after.get(..end)?;
    let sound = !label.contains(['[', '\n']) && !url.is_empty() && !url.contains(char::is_whitespace);
    sound.then_some((label, url, after.get(end + 1..)?))
}

fn without(line: &str, marks: &[&str]) -> String {
    marks.iter().fold(line.to_owned(), |line, mark| line.replace(mark, ""))
}

/// Takes off pairs of a mark that hug their words, as WhatsApp reads them: `*so*`, but neither `2*3*4` nor `a_b_c`.
fn without_pairs(line: &str, mark: char) -> String {
    if line.matches(mark).nth(1).is_none() {
        return line.to_owned();
    }
    let characters: Vec<char> = line.chars().collect();
    let at = |index: usize| characters.get(index).copied();
    let opens = |index: usize| {
        let before = index.checked_sub(1).and_then(at);
        before.is_none_or(|found| found.is_whitespace() || "([{\"'*_~-:«“".contains(found))
            && at(index + 1).is_some_and(|found| !found.is_whitespace() && found != mark)
    };
    let closes = |index: usize| {
        index.checked_sub(1).and_then(at).is_some_and(|found| !found.is_whitespace() && found != mark)
            && at(index + 1).is_none_or(|found| !is_of_a_word(found))
    };
    // A pair spans at most this many characters; it also bounds the search.
    const REACH: usize = 300;
    let mut drop_next_at = None;
    let mut out = String::with_capacity(line.len());
    for (index, found) in characters.iter().enumerate() {
        if drop_next_at == Some(index) {
            drop_next_at = None;
            continue;
        }
        if *found == mark && drop_next_at.is_none() && opens(index) {
            let closing = (index + 2..(index + REACH).min(characters.len()))
                .find(|candidate| at(*candidate) == Some(mark) && closes(*candidate));
            if closing.is_some() {
                drop_next_at = closing;
                continue;
            }
        }
        out.push(*found);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_class::ErrorClass;
    use proptest::prelude::*;
    use serde_json::json;

    const REF: &str = "7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11";

    fn number() -> Recipient {
        Recipient::parse("+250788123456").unwrap()
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_500, 0).unwrap()
    }

    fn webhook(value: Value) -> Vec<u8> {
        json!({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn what_meta_keeps_is_fetched_from_meta_alone() {
        let base = "https://graph.facebook.com";
        let found =
            |url: &str| parse_media_url(200, json!({ "url": url, "id": "1" }).to_string().as_bytes(), base).ok();
        let known = "https://lookaside.fbsbx.com/whatsapp_business/attachments/?mid=1&ext=2&hash=3";
        assert_eq!(found(known).as_deref(), Some(known));
        assert!(found("https://graph.facebook.com/v25.0/1").is_some());
        for foreign in [
            "http://lookaside.fbsbx.com/x",
            "https://fbsbx.com.attacker.example/x",
            "https://notfbsbx.com/x",
            "https://lookaside.fbsbx.com@attacker.example/x",
            "https://attacker.example\\.fbsbx.com/x",
            "https://attacker.example/?https://lookaside.fbsbx.com",
            "https://attacker.example#.fbsbx.com",
            "file:///etc/passwd",
            "",
        ] {
            assert_eq!(found(foreign), None, "{foreign}");
        }
        let proxied = json!({ "url": "http://127.0.0.1:9/media/1" }).to_string();
        assert!(parse_media_url(200, proxied.as_bytes(), "http://127.0.0.1:9").is_ok());
        assert!(parse_media_url(200, proxied.as_bytes(), "http://127.0.0.1:99").is_err());
        let gone = br#"{"error": {"code": 100, "message": "Unsupported get request"}}"#;
        assert_eq!(parse_media_url(400, gone, base).unwrap_err().error_code.as_deref(), Some("100"));
        assert_eq!(media_path("v25.0", "1440918273645501"), "/v25.0/1440918273645501");
    }

    #[test]
    fn a_text_is_sent_with_the_plus_and_our_reference() {
        assert_eq!(
            text_message(&number(), "Muraho", REF),
            json!({
                "messaging_product": "whatsapp", "recipient_type": "individual", "to": "+250788123456", "type": "text",
                "biz_opaque_callback_data": REF, "text": {"preview_url": false, "body": "Muraho"},
            })
        );
    }

    #[test]
    fn somebody_without_a_number_is_written_to_by_user_id() {
        let to = Recipient::parse("RW.70415296338120457711").unwrap();
        let body = text_message(&to, "Muraho", REF);
        assert_eq!((&body["recipient"], &body["to"]), (&json!("RW.70415296338120457711"), &Value::Null));
        assert_eq!(Recipient::parse("somebody"), None);
    }

    #[test]
    fn a_template_has_named_single_line_parameters() {
        let body = template_message(
            &number(),
            "call_summary_v1",
            "rw_RW",
            &[("topic", "Inzu\n yo   gukodesha".into()), ("next_step", "Turakoherereza".into())],
            REF,
        );
        assert_eq!(
            body["template"],
            json!({
                "name": "call_summary_v1", "language": {"code": "rw_RW"},
                "components": [{"type": "body", "parameters": [
                    {"type": "text", "parameter_name": "topic", "text": "Inzu yo gukodesha"},
                    {"type": "text", "parameter_name": "next_step", "text": "Turakoherereza"},
                ]}],
            })
        );
        assert_eq!(messages_path("v25.0", "118"), "/v25.0/118/messages");
    }

    #[test]
    fn accepted_is_the_wamid_and_what_is_known_of_the_recipient() {
        let body = br#"{"messaging_product":"whatsapp","contacts":[{"input":"+250788123456","wa_id":"250788123456","user_id":"RW.704"}],"messages":[{"id":"wamid.HBg","message_status":"accepted"}]}"#;
        let accepted = parse_send_response(200, body).unwrap();
        assert_eq!(accepted.provider_message_id.as_deref(), Some("wamid.HBg"));
        assert_eq!((accepted.wa_id.as_deref(), accepted.user_id.as_deref()), (Some("250788123456"), Some("RW.704")));
        assert!(
            parse_send_response(200, br#"{"messages":[{"id":"wamid.x"}]}"#).is_ok(),
            "no contact when sent by user id"
        );
    }

    #[test]
    fn an_error_is_classified_by_its_code() {
        let error = |code: u32| json!({"error": {"message": "x", "code": code, "fbtrace_id": "AX"}}).to_string();
        let refused = |http, code| parse_send_response(http, error(code).as_bytes()).unwrap_err();
        let found = refused(400, 131_026);
        assert_eq!(
            (found.classified.class, found.classified.evidence),
            (ErrorClass::Permanent, Some(Evidence::NotOnWhatsapp))
        );
        assert_eq!((found.error_code.as_deref(), found.provider_request_id.as_deref()), (Some("131026"), Some("AX")));
        assert_eq!(refused(400, 131_047).classified.evidence, Some(Evidence::WindowClosed));
        assert_eq!(refused(401, 190).classified.class, ErrorClass::Config);
        assert_eq!(refused(500, 131_000).classified.class, ErrorClass::Retryable);
        assert_eq!(refused(400, 999).classified.class, ErrorClass::Bug);
        for (http, body, class) in [
            (500, b"oops" as &[u8], ErrorClass::Unknown),
            (503, b"", ErrorClass::Retryable),
            (200, b"{}", ErrorClass::Unknown),
            (200, b"<html>", ErrorClass::Unknown),
        ] {
            assert_eq!(parse_send_response(http, body).unwrap_err().classified.class, class, "{http}");
        }
    }

    #[test]
    fn the_webhooks_address_is_verified_by_our_token() {
        let query = "hub.mode=subscribe&hub.challenge=730915526&hub.verify_token=s%C3%A9same";
        assert_eq!(verify_subscription(query, &["sésame"]).as_deref(), Some("730915526"));
        assert_eq!(verify_subscription(query, &["other"]), None);
        assert_eq!(verify_subscription(query, &[""; 0]), None);
        assert_eq!(verify_subscription("hub.mode=subscribe&hub.verify_token=&hub.challenge=1", &[""]), None);
        assert_eq!(verify_subscription("hub.challenge=1&hub.verify_token=x", &["x"]), None);
    }

    #[test]
    fn statuses_become_delivery_events() {
        let body = webhook(json!({
            "metadata": {"phone_number_id": "118"},
            "statuses": [
                {"id": "wamid.1", "status": "sent", "timestamp": "1795226405", "recipient_id": "250788123456",
                 "biz_opaque_callback_data": REF, "pricing": {"billable": true, "category": "utility"}},
                {"id": "wamid.2", "status": "played", "timestamp": "bad"},
                {"id": "wamid.3", "status": "failed", "timestamp": "1795226409", "errors": [{"code": 131026, "title": "x"}]},
                {"id": "wamid.4", "status": "failed", "timestamp": "1795226409", "errors": [{"code": 131049}]},
                {"id": "wamid.5", "status": "dreamt"},
                {"status": "sent"},
                "nonsense",
            ],
        }));
        let updates = parse_webhook(&body, Some("118"), now()).unwrap();
        assert_eq!((updates.statuses.len(), updates.unreadable), (4, 3));
        let [sent, played, not_there, filtered] = updates.statuses.as_slice() else { panic!() };
        assert_eq!((sent.status, sent.delivery_ref.as_deref()), (DeliveryStatus::Sent, Some(REF)));
        assert_eq!(sent.occurred_at.timestamp(), 1_795_226_405);
        assert_eq!(sent.pricing, Some(json!({"billable": true, "category": "utility"})));
        assert_eq!((played.status, played.raw_status.as_deref()), (DeliveryStatus::Read, Some("played")));
        assert_eq!(played.occurred_at, now(), "a bad time becomes the time of arrival");
        assert_eq!(
            (not_there.status, not_there.evidence),
            (DeliveryStatus::Undeliverable, Some(Evidence::NotOnWhatsapp))
        );
        assert_eq!((filtered.status, filtered.evidence), (DeliveryStatus::Failed, None));
        assert_eq!(filtered.error_code.as_deref(), Some("131049"));
    }

    #[test]
    fn a_price_that_no_database_holds_costs_no_status() {
        let statuses = r#"[{"id": "wamid.1", "status": "sent", "timestamp": "2524608000", "pricing": {"billable": 1e999999,
            "pricing_model": "PMP", "category": {"deep": 1e999999}, "type": 1e999999, "other": 1e999999}},
            {"id": "wamid.2", "status": "sent", "pricing": 1e999999},
            {"id": "wamid.3", "status": "failed", "errors": [{"code": 1e999999}], "pricing": {"category": "LONG"}}]"#;
        let statuses = statuses.replace("LONG", &"x".repeat(1000));
        let body = format!(r#"{{"entry":[{{"changes":[{{"field":"messages","value":{{"statuses":{statuses}}}}}]}}]}}"#);
        let updates = parse_webhook(body.as_bytes(), None, now()).unwrap();
        let [first, second, third] = updates.statuses.as_slice() else { panic!() };
        assert_eq!((&first.pricing, &second.pricing), (&Some(json!({"pricing_model": "PMP"})), &None));
        assert_eq!(third.pricing, Some(json!({"category": "x".repeat(64)})));
        assert_eq!(first.occurred_at, now() + chrono::TimeDelta::minutes(2), "the year 2050 is not believed");
        assert_eq!(first.reported_at.map(|at| at.timestamp()), Some(2_524_608_000));
        for event in &updates.statuses {
            let number = |value: &Value| value.is_number();
            assert!(!event.to_value().as_object().unwrap().values().any(number), "{event:?}");
        }
    }

    #[test]
    fn messages_calls_and_other_fields_are_counted_and_strangers_left() {
        let body = webhook(json!({
            "metadata": {"phone_number_id": "118"},
            "contacts": [{"profile": {"name": "Aline"}, "user_id": "RW.1"}],
            "messages": [{"from_user_id": "RW.1", "id": "wamid.x", "type": "text", "text": {"body": "Muraho"}}],
        }));
        assert_eq!(parse_webhook(&body, Some("118"), now()).unwrap().messages.len(), 1);
        assert_eq!(parse_webhook(&body, Some("999"), now()).unwrap().foreign, 1);
        assert_eq!(parse_webhook(&body, None, now()).unwrap().messages.len(), 1);
        let other = json!({"entry": [{"changes": [
            {"field": "phone_number_quality_update", "value": {"event": "FLAGGED"}}, {"value": 1}, 3]}]});
        let updates = parse_webhook(other.to_string().as_bytes(), Some("118"), now()).unwrap();
        assert_eq!((updates.others, updates.unreadable), (1, 2));
        assert_eq!(parse_webhook(b"{}", None, now()).unwrap(), Updates::default());
        assert_eq!(parse_webhook(b"[", None, now()).unwrap_err().status, 400);
    }

    #[test]
    fn what_becomes_of_templates_is_read_with_its_account_and_time() {
        let paused = json!({"event": "PAUSED", "message_template_name": "call_summary_v1", "message_template_language": "en-US"});
        let body = json!({"entry": [{"id": "1022", "time": 1_795_226_000, "changes": [
            {"field": "message_template_status_update", "value": paused},
            {"field": "message_template_status_update", "value": {"event": "APPROVED"}}]}]});
        let updates = parse_webhook(body.to_string().as_bytes(), Some("118"), now()).unwrap();
        let [update] = updates.templates.as_slice() else { panic!() };
        assert_eq!((update.account.as_str(), update.language.as_str()), ("1022", "en_US"));
        assert_eq!(update.occurred_at.timestamp(), 1_795_226_000);
        assert_eq!((updates.unreadable, updates.others), (1, 0), "one names no template");
    }

    #[test]
    fn markdown_becomes_what_whatsapp_understands() {
        for (from, to) in [
            ("**Kimironko** is *nice*", "*Kimironko* is *nice*"),
            ("# Houses\n\n* one\n* two", "*Houses*\n\n- one\n- two"),
            ("### **Bold head**", "*Bold head*"),
            ("see [our site](https://easymo.rw)", "see our site: https://easymo.rw"),
            ("[https://x.rw](https://x.rw) ![pic](https://x.rw/p.png)", "https://x.rw pic: https://x.rw/p.png"),
            ("~~old~~ __new__ ***both***", "~old~ _new_ *both*"),
            ("```rust\nlet **x** = 1;\n```", "```\nlet **x** = 1;\n```"),
            ("a [b] (c) #tag", "a [b] (c) #tag"),
        ] {
            assert_eq!(from_markdown(from), to);
        }
    }

    #[test]
    fn marks_come_off_for_sms_and_arithmetic_stays() {
        for (from, to) in [
            ("*Muraho!* _neza_ ~oya~", "Muraho! neza oya"),
            ("**A** and ***B*** `c`", "A and B c"),
            ("2*3*4 and snake_case_name", "2*3*4 and snake_case_name"),
            ("https://x.rw/_a_/b", "https://x.rw/_a_/b"),
            ("# Head\n• one\n> quote", "Head\n- one\nquote"),
            ("5 * 3 * 2", "5 * 3 * 2"),
            ("*two words* here", "two words here"),
            ("```\ncode\n```", "code"),
        ] {
            assert_eq!(plain(from), to);
        }
    }

    #[test]
    fn a_text_that_is_too_long_ends_at_a_paragraph_or_word() {
        let text = format!("{}\n\n{}", "a ".repeat(1950), "b".repeat(900));
        let cut = fit_text(&text);
        assert!(cut.ends_with("a...") && cut.len() < 4000, "{}", cut.len());
        assert_eq!(fit_text("short"), "short");
        assert_eq!(fit_text(&"😀".repeat(3000)).encode_utf16().count(), 4093);
    }

    #[test]
    fn half_an_emoji_in_one_update_costs_no_status() {
        let body = br#"{"entry":[{"changes":[{"field":"messages","value":{"contacts":[{"profile":{"name":"Aline \ud83d"}}],
            "statuses":[{"id":"wamid.1","status":"delivered","timestamp":"1795226400","recipient_id":"250788123456"}]}}]}]}"#;
        assert_eq!(parse_webhook(body, None, now()).unwrap().statuses.len(), 1);
    }

    proptest! {
        #[test]
        fn no_webhook_and_no_answer_panics(body: Vec<u8>, text: String) {
            let _ = parse_webhook(&body, Some("1"), now());
            let _ = parse_send_response(200, &body);
            let _ = verify_subscription(&text, &["x"]);
        }

        #[test]
        fn odd_shapes_do_not_panic(a in "\\PC{0,20}", n: i64, b: bool) {
            for value in [json!({"statuses": a}), json!({"statuses": [[a]], "messages": n}), json!({"statuses": [{"id": n, "status": "failed",
                "timestamp": n, "errors": [{"code": a}], "pricing": b}]}), json!([n]), json!(b)] {
                let updates = parse_webhook(&webhook(value), None, now()).unwrap();
                prop_assert!(updates.statuses.len() <= 1);
            }
        }

        #[test]
        fn a_text_that_is_sent_is_never_too_long(text in "(\\PC{0,50}|[a-z \n😀]{3000,6000})") {
            prop_assert!(fit_text(&text).encode_utf16().count() <= TEXT_MAX_UNITS);
        }

        #[test]
        fn formatting_never_panics(text in "[a-z*_~`#\\[\\]() \n>:/.-]{0,200}", any: String) {
            for text in [text, any] {
                let _ = (from_markdown(&text), plain(&text));
            }
        }
    }
}
