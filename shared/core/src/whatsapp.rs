//! WhatsApp Cloud API: bodies to send, answers, webhooks, and the formatting WhatsApp understands.
//!
//! Graph API as of v25.0 (Meta: whatsapp/messages, /webhooks). Every phone field of a webhook is optional, because people
//! with a user name have none.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::channel::Provider;
use crate::error_class::{Evidence, classify};
use crate::form;
use crate::ids::is_uuid;
use crate::json::{clip, field, text};
use crate::phone::E164;
use crate::problem::Problem;
use crate::send::{Accepted, Outcome, Refused};
use crate::signature;
use crate::status::{self, DeliveryEvent, DeliveryStatus};
use crate::timestamp;

pub use crate::routing::{SERVICE_WINDOW, service_window_open};

/// Longest text body, counted in UTF-16 units because Meta does not say which units it counts.
pub const TEXT_MAX_UNITS: usize = 4096;

/// Largest webhook body: Meta batches up to 1,000 updates into 3 MB.
pub const WEBHOOK_MAX_BYTES: usize = 3 * 1024 * 1024;

/// Most updates read from one webhook.
const MAX_UPDATES: usize = 5_000;

/// The body of a free text message; only inside the 24-hour window.
///
/// `delivery_ref` comes back as `biz_opaque_callback_data` in every status.
pub fn text_message(to: &E164, body: &str, delivery_ref: &str) -> Value {
    json!({
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": to.as_str(),
        "type": "text",
        "biz_opaque_callback_data": clip(delivery_ref, 512),
        "text": {"preview_url": false, "body": fit_text(body)},
    })
}

/// The body of a template message with named parameters.
pub fn template_message<N: AsRef<str>>(
    to: &E164,
    name: &str,
    language: &str,
    parameters: &[(N, String)],
    delivery_ref: &str,
) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|(name, value)| json!({"type": "text", "parameter_name": name.as_ref(), "text": template_value(value)}))
        .collect();
    json!({
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": to.as_str(),
        "type": "template",
        "biz_opaque_callback_data": clip(delivery_ref, 512),
        "template": {
            "name": name,
            "language": {"code": language},
            "components": [{"type": "body", "parameters": parameters}],
        },
    })
}

/// The path of the send request below the Graph API's base.
pub fn messages_path(version: &str, phone_number_id: &str) -> String {
    ["/", version, "/", phone_number_id, "/messages"].concat()
}

/// Reads the answer to a send request.
pub fn parse_send_response(http_status: u16, body: &[u8]) -> Outcome {
    let Ok(answer) = crate::json::object(body) else {
        return Err(Refused::unreadable(Provider::Whatsapp, http_status));
    };
    if let Some(error) = field(&answer, "error") {
        let mut refused = Refused::answered(Provider::Whatsapp, http_status, text(error, "code"));
        refused.provider_request_id = text(error, "fbtrace_id");
        return Err(refused);
    }
    let first = |name: &str| {
        field(&answer, name)
            .and_then(|items| items.get(0))
            .cloned()
            .unwrap_or_default()
    };
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
    (subscribes && signature::equals_any(token, verify_tokens))
        .then(|| clip(challenge, 512).to_owned())
}

/// What a webhook holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Updates {
    /// Reports on messages we sent.
    pub statuses: Vec<DeliveryEvent>,
    /// Messages of people, counted only.
    pub inbound_messages: usize,
    /// Call events, counted only.
    pub calls: usize,
    /// Other fields: templates, account, quality.
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
    let root = crate::json::object(body)?;
    let mut updates = Updates::default();
    for change in array(&root, "entry")
        .iter()
        .flat_map(|entry| array(entry, "changes"))
    {
        let (Some(value), Some(kind)) = (field(change, "value"), text(change, "field")) else {
            updates.unreadable += 1;
            continue;
        };
        let number =
            field(value, "metadata").and_then(|metadata| text(metadata, "phone_number_id"));
        let foreign = match (phone_number_id, number) {
            (Some(ours), Some(theirs)) => ours != theirs,
            (Some(_), None) | (None, _) => false,
        };
        let (statuses, messages, calls) = (
            array(value, "statuses"),
            array(value, "messages"),
            array(value, "calls"),
        );
        if foreign {
            updates.foreign += (statuses.len() + messages.len() + calls.len()).max(1);
            continue;
        }
        match kind.as_str() {
            "messages" | "calls" => {}
            _ => updates.others += 1,
        }
        updates.inbound_messages += messages.len();
        updates.calls += calls.len();
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
    let delivery_ref =
        text(status, "biz_opaque_callback_data").filter(|reference| is_uuid(reference));
    let id = text(status, "id").map(|id| clip(&id, 512).to_owned());
    if id.is_none() && delivery_ref.is_none() {
        return None;
    }
    let mut known = status::from_whatsapp(&raw)?;
    let error_code = array(status, "errors")
        .first()
        .and_then(|error| text(error, "code"));
    let error = match known {
        DeliveryStatus::Failed => Some(classify(Provider::Whatsapp, None, error_code.as_deref())),
        _ => None,
    };
    if error.and_then(|error| error.evidence) == Some(Evidence::NotOnWhatsapp) {
        known = DeliveryStatus::Undeliverable;
    }
    Some(DeliveryEvent {
        provider: Provider::Whatsapp,
        provider_message_id: id,
        delivery_ref,
        status: known,
        occurred_at: text(status, "timestamp")
            .and_then(|at| timestamp::parse_unix(&at))
            .unwrap_or(received_at),
        error_code: error.and(error_code),
        error_class: error.map(|error| error.class),
        evidence: error.and_then(|error| error.evidence),
        raw_status: Some(raw),
        pricing: field(status, "pricing")
            .filter(|pricing| pricing.is_object())
            .cloned(),
    })
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
    for word in value
        .split(|found: char| found.is_whitespace() || found.is_control())
        .filter(|word| !word.is_empty())
    {
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
    let cut = ["\n\n", "\n", " "]
        .iter()
        .find_map(|border| room.rfind(border).filter(|at| *at >= near));
    let mut out = cut
        .and_then(|at| room.get(..at))
        .unwrap_or(room)
        .trim_end()
        .to_owned();
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
                let line = links(line)
                    .replace("***", "*")
                    .replace("**", "*")
                    .replace("__", "_")
                    .replace("~~", "~");
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
        if line.trim_start().starts_with("```")
            && !line.trim_start().trim_start_matches('`').contains('`')
        {
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
        out.push_str(
            before
                .strip_suffix('!')
                .filter(|_| is_link(from))
                .unwrap_or(before),
        );
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
    let sound =
        !label.contains(['[', '\n']) && !url.is_empty() && !url.contains(char::is_whitespace);
    sound.then_some((label, url, after.get(end + 1..)?))
}

fn without(line: &str, marks: &[&str]) -> String {
    marks
        .iter()
        .fold(line.to_owned(), |line, mark| line.replace(mark, ""))
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
        index
            .checked_sub(1)
            .and_then(at)
            .is_some_and(|found| !found.is_whitespace() && found != mark)
            && at(index + 1).is_none_or(|found| !found.is_alphanumeric())
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
