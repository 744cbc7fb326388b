//! What is written after a call: the summary itself, and its form for SMS, WhatsApp text and WhatsApp template.
//!
//! The SMS is GSM-7 and at most two segments whatever the summary holds. On either channel a reply is promised only where
//! one can arrive.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::{clip, field, text as text_field};
use crate::json_text::parse;
use crate::letters::lower;
use crate::locale::Locale;
use crate::memory;
use crate::phone;
use crate::sms::{self, SmsText};
use crate::whatsapp;

/// What a call was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallSummary {
    /// The language of the texts.
    pub language: Locale,
    /// What was done or asked, in one line.
    #[serde(default)]
    pub headline: String,
    /// The particulars, most important first.
    #[serde(default)]
    pub points: Vec<String>,
    /// What happens next.
    #[serde(default)]
    pub next_step: Option<String>,
    /// A short name of what the person wants, such as `property_listing`.
    #[serde(default)]
    pub intent: Option<String>,
}

/// How a reply on the channel of the message reaches us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyPath {
    /// By answering the message.
    Direct,
    /// By an SMS to this number.
    Via(String),
    /// Not at all: nothing is promised.
    None,
}

impl ReplyPath {
    /// A name such as `EasyMO` is one-way: a reply needs the service code, if there is one. A number receives.
    pub fn of(sender_id: &str, service_code: Option<&str>) -> ReplyPath {
        let receives = |address: &str| {
            phone::is_short_code(address) || phone::E164::parse(address).is_ok_and(|number| number.can_receive_sms())
        };
        let sender_id = sender_id.trim();
        if receives(sender_id) {
            return ReplyPath::Direct;
        }
        match service_code.map(str::trim).filter(|code| receives(code)) {
            Some(code) => ReplyPath::Via(code.to_owned()),
            None => ReplyPath::None,
        }
    }
}

/// Segments of a summary.
pub const SMS_MAX_SEGMENTS: usize = 2;

/// The summary as SMS:
///
/// ```text
/// EasyMO summary:
/// 1) Property registered in Kigali
/// 2) Budget: 300k RWF/month
/// 3) We'll send matches soon
/// Reply to continue
/// ```
///
/// Always GSM-7 and at most `max_segments`. If it is too long, points go first (the last one first), then headline and next
/// step are shortened at a word's end, then the next step goes. Heading and footer are never cut.
pub fn sms_text(summary: &CallSummary, brand: &str, reply: &ReplyPath, max_segments: usize) -> SmsText {
    let max_segments = max_segments.max(1);
    let headline = clip_line(&summary.headline);
    let mut points: Vec<String> = summary.points.iter().take(MAX_POINTS).map(|point| clip_line(point)).collect();
    points.retain(|point| !point.is_empty() && !same(point, &headline));
    let next_step = summary.next_step.as_deref().map(clip_line).filter(|next| !next.is_empty());
    let frame = Frame { summary, brand, reply };

    let mut keep = points.len();
    loop {
        let text = frame.write(&headline, points.get(..keep).unwrap_or(&[]), next_step.as_deref());
        let ready = sms::prepare_gsm7(&text, max_segments);
        if !ready.shortened {
            return SmsText { shortened: keep < points.len(), ..ready };
        }
        if keep == 0 {
            break;
        }
        keep -= 1;
    }
    for next_step in [next_step.as_deref(), None] {
        for max in (1..=16).rev().map(|step| step * 10) {
            let shorter = next_step.map(|next| sms::shorten(next, max));
            let text = frame.write(&sms::shorten(&headline, max), &[], shorter.as_deref());
            let ready = sms::prepare_gsm7(&text, max_segments);
            if !ready.shortened {
                return SmsText { shortened: true, ..ready };
            }
        }
    }
    SmsText { shortened: true, ..sms::prepare_gsm7(&frame.write("", &[], None), max_segments) }
}

struct Frame<'a> {
    summary: &'a CallSummary,
    brand: &'a str,
    reply: &'a ReplyPath,
}

impl Frame<'_> {
    fn write(&self, headline: &str, points: &[String], next_step: Option<&str>) -> String {
        let locale = self.summary.language;
        let brand = clip(self.brand, 20);
        let mut out = String::with_capacity(320);
        match locale {
            Locale::En => out.extend([brand, " summary:"]),
            Locale::Fr => out.extend(["Résumé ", brand, " :"]),
            Locale::Rw => out.extend(["Incamake ya ", brand, ":"]),
            Locale::Sw => out.extend(["Muhtasari wa ", brand, ":"]),
        }
        let items = Some(headline).filter(|headline| !headline.is_empty()).into_iter();
        let items: Vec<&str> = items.chain(points.iter().map(String::as_str)).chain(next_step).collect();
        for (index, item) in items.iter().enumerate() {
            out.push('\n');
            if items.len() > 1 {
                out.push_str(&(index + 1).to_string());
                out.push_str(") ");
            }
            out.push_str(item);
        }
        match (self.reply, locale) {
            (ReplyPath::Direct, Locale::En) => out.push_str("\nReply to continue"),
            (ReplyPath::Direct, Locale::Fr) => out.push_str("\nRépondez pour continuer"),
            (ReplyPath::Direct, Locale::Rw) => out.push_str("\nSubiza kugira ngo dukomeze"),
            (ReplyPath::Direct, Locale::Sw) => out.push_str("\nJibu ili tuendelee"),
            (ReplyPath::Via(number), Locale::En) => out.extend(["\nReply by SMS to ", number]),
            (ReplyPath::Via(number), Locale::Fr) => out.extend(["\nRépondez par SMS au ", number]),
            (ReplyPath::Via(number), Locale::Rw) => out.extend(["\nSubiza wohereza SMS kuri ", number]),
            (ReplyPath::Via(number), Locale::Sw) => out.extend(["\nJibu kwa SMS kwenda ", number]),
            (ReplyPath::None, _) => {}
        }
        out
    }
}

/// The summary as WhatsApp text, at most 4096 characters:
///
/// ```text
/// 📞 EasyMO Call Summary:
/// ✓ Registered your property
/// • Kicukiro, 300k/month
/// ➡️ Next: We'll send matches
/// Reply to continue!
/// ```
///
/// The last line is there only where `reply` is [`ReplyPath::Direct`].
pub fn whatsapp_text(summary: &CallSummary, brand: &str, reply: &ReplyPath) -> String {
    let brand = clip(brand, 60);
    let mut out = String::with_capacity(512);
    out.push_str("📞 ");
    match summary.language {
        Locale::En => out.extend([brand, " Call Summary:"]),
        Locale::Fr => out.extend(["Résumé de votre appel ", brand, " :"]),
        Locale::Rw => out.extend(["Incamake y'ikiganiro cyawe na ", brand, ":"]),
        Locale::Sw => out.extend(["Muhtasari wa simu yako na ", brand, ":"]),
    }
    let headline = clip_line(&summary.headline);
    if !headline.is_empty() {
        out.extend(["\n✓ ", &headline]);
    }
    for point in summary.points.iter().take(MAX_POINTS) {
        let point = clip_line(point);
        if !point.is_empty() && !same(&point, &headline) {
            out.extend(["\n• ", &point]);
        }
    }
    if let Some(next) = summary.next_step.as_deref().map(clip_line).filter(|next| !next.is_empty()) {
        out.push_str("\n➡️ ");
        out.push_str(match summary.language {
            Locale::En => "Next: ",
            Locale::Fr => "Suite : ",
            Locale::Rw => "Igikurikiyeho: ",
            Locale::Sw => "Hatua inayofuata: ",
        });
        out.push_str(&next);
    }
    out.push_str(match (reply, summary.language) {
        (ReplyPath::Direct, Locale::En) => "\nReply to continue!",
        (ReplyPath::Direct, Locale::Fr) => "\nRépondez pour continuer !",
        (ReplyPath::Direct, Locale::Rw) => "\nSubiza kugira ngo dukomeze!",
        (ReplyPath::Direct, Locale::Sw) => "\nJibu ili tuendelee!",
        (ReplyPath::Via(_) | ReplyPath::None, _) => "",
    });
    out
}

/// The values of the template's parameters `topic` and `next_step`: one line each, without runs of spaces, never empty, short
/// enough for the 1024 characters of the whole body.
///
/// Without a next step of its own the summary asks the person to write, or to call where a reply does not arrive.
pub fn template_params(summary: &CallSummary, reply: &ReplyPath) -> Vec<(&'static str, String)> {
    // The same facts as in the other forms: the template has one line for all of them.
    let facts = std::iter::once(&summary.headline).chain(&summary.points);
    let facts: Vec<String> = facts.map(|fact| one_line(fact)).filter(|fact| !fact.is_empty()).collect();
    let mut topic = facts.join("; ");
    if topic.is_empty() {
        topic.push_str(match summary.language {
            Locale::En => "your request",
            Locale::Fr => "votre demande",
            Locale::Rw => "icyo wifuzaga",
            Locale::Sw => "ombi lako",
        });
    }
    let mut next_step = summary.next_step.as_deref().map(one_line).unwrap_or_default();
    if next_step.is_empty() {
        next_step.push_str(match (reply, summary.language) {
            (ReplyPath::Direct, Locale::En) => "write to us whenever you like",
            (ReplyPath::Direct, Locale::Fr) => "écrivez-nous quand vous voulez",
            (ReplyPath::Direct, Locale::Rw) => "twandikire igihe ushakiye",
            (ReplyPath::Direct, Locale::Sw) => "tuandikie wakati wowote",
            (ReplyPath::Via(_) | ReplyPath::None, Locale::En) => "call us whenever you like",
            (ReplyPath::Via(_) | ReplyPath::None, Locale::Fr) => "appelez-nous quand vous voulez",
            (ReplyPath::Via(_) | ReplyPath::None, Locale::Rw) => "duhamagare igihe ushakiye",
            (ReplyPath::Via(_) | ReplyPath::None, Locale::Sw) => "tupigie simu wakati wowote",
        });
    }
    vec![("topic", shorten_line(&topic, 500)), ("next_step", shorten_line(&next_step, 200))]
}

/// Most points kept from a model.
pub const MAX_POINTS: usize = 5;
/// Longest headline, point and next step kept, in characters.
pub const MAX_ITEM_CHARS: usize = 160;

/// The schema the model must answer in (strict subset of structured outputs: every property required, no others).
pub fn schema() -> Value {
    // As text, because a parser that is there anyway costs less wasm than the code that builds the same value.
    const SCHEMA: &str = concat!(
        r#"{"type":"object","additionalProperties":false,
        "required":["language","headline","points","next_step","intent","memories"],
        "properties":{
            "language":{"type":"string","enum":["en","fr","rw","sw"]},
            "headline":{"type":"string","description":"What was done or asked, at most 60 characters"},
            "points":{"type":"array","maxItems":5,
                "items":{"type":"string","description":"One particular, at most 60 characters"}},
            "next_step":{"type":["string","null"],"description":"What happens next, at most 60 characters"},
            "intent":{"type":"string","description":"What the caller wants, in snake_case English"},"#,
        memory::schema!(),
        "}}"
    );
    parse(SCHEMA).unwrap_or_default()
}

/// Why a model's answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SummaryError {
    /// Not JSON, or cut short.
    #[error("the model's summary is not JSON: the plain summary is sent instead")]
    NotJson,
    /// JSON, but nothing in it to write.
    #[error("the model's summary is empty: the plain summary is sent instead")]
    Empty,
}

/// Reads a model's answer, the summary and what is to be remembered ([`memory::memories`]): everything is checked again,
/// flattened to single lines of plain text and cut to length.
pub fn parse_answer(answer: &str, default_language: Locale) -> Result<(CallSummary, Vec<Value>), SummaryError> {
    let value = unfenced(answer).ok_or(SummaryError::NotJson)?;
    let summary = from_value(&value, default_language).ok_or(SummaryError::Empty)?;
    Ok((summary, memory::memories(&value)))
}

/// The object that a model answered with.
pub fn unfenced(answer: &str) -> Option<Value> {
    let answer = answer.trim();
    // Some substitutes wrap JSON in a code fence in spite of the schema.
    let answer = answer.strip_prefix("```json").or_else(|| answer.strip_prefix("```")).unwrap_or(answer);
    let answer = answer.strip_suffix("```").unwrap_or(answer).trim();
    crate::json::foreign_object(answer.as_bytes()).ok()
}

/// Reads a summary from a row or an answer; nothing if there is nothing to write in it.
pub fn from_value(value: &Value, default_language: Locale) -> Option<CallSummary> {
    let language = text_field(value, "language").and_then(|tag| Locale::from_tag(&tag)).unwrap_or(default_language);
    let item = |text: &str| item(text, MAX_ITEM_CHARS);
    let headline = text_field(value, "headline").map(|text| item(&text)).unwrap_or_default();
    let points = match field(value, "points") {
        Some(Value::Array(points)) => points
            .iter()
            .filter_map(crate::json::as_text)
            .map(|text| item(&text))
            .filter(|point| !point.is_empty())
            .take(MAX_POINTS)
            .collect(),
        Some(_) | None => Vec::new(),
    };
    let next_step = text_field(value, "next_step").map(|text| item(&text)).filter(|next| !next.is_empty());
    let intent = text_field(value, "intent").and_then(|text| slug(&text));
    if headline.is_empty() && points.is_empty() && next_step.is_none() {
        return None;
    }
    Some(CallSummary { language, headline, points, next_step, intent })
}

/// Plain text on one line, at most `max` characters.
pub(crate) fn item(text: &str, max: usize) -> String {
    shorten_line(&one_line(text), max)
}

/// Plain text on one line: marks and line breaks gone, spaces single.
fn one_line(text: &str) -> String {
    let plain = whatsapp::plain(text);
    let mut out = String::with_capacity(plain.len());
    for word in plain.split(|found: char| found.is_whitespace() || found.is_control()).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

fn clip_line(text: &str) -> String {
    shorten_line(&one_line(text), 300)
}

fn shorten_line(text: &str, max: usize) -> String {
    sms::shorten(text, max)
}

fn same(a: &str, b: &str) -> bool {
    a.chars().map(lower).eq(b.chars().map(lower))
}

/// A short name in `snake_case`, of what a model or a tool calls an intent.
pub(crate) fn slug(text: &str) -> Option<String> {
    let mut out = String::new();
    for found in sms::base_letters(clip(text, 64)).chars() {
        if found.is_ascii_alphanumeric() {
            out.push(found);
        } else if !out.is_empty() && !out.ends_with('_') {
            out.push('_');
        }
    }
    let out = clip(out.trim_end_matches('_'), 64).to_owned();
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sms::Encoding;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use serde_json::json;

    fn summary(language: Locale, headline: &str, points: &[&str], next_step: &str) -> CallSummary {
        CallSummary {
            language,
            headline: headline.to_owned(),
            points: points.iter().map(|point| (*point).to_owned()).collect(),
            next_step: Some(next_step.to_owned()).filter(|next| !next.is_empty()),
            intent: None,
        }
    }

    fn house(language: Locale) -> CallSummary {
        match language {
            Locale::En => summary(
                language,
                "Property registered in Kigali",
                &["Budget: 300k RWF/month"],
                "We'll send matches soon",
            ),
            Locale::Fr => summary(
                language,
                "Votre recherche est enregistrée : maison à Kicukiro",
                &["Budget : 300\u{202f}000 RWF/mois", "Deux chambres, dès décembre"],
                "Nous vous envoyons bientôt des propositions",
            ),
            Locale::Rw => summary(
                language,
                "Inzu yawe i Kigali yanditswe",
                &["Ingengo y’imari: 300k RWF ku kwezi"],
                "Turakoherereza amazu ahuye n'ibyo wifuza",
            ),
            Locale::Sw => summary(
                language,
                "Nyumba yako Kigali imesajiliwa",
                &["Bajeti: 300k RWF kwa mwezi"],
                "Tutakutumia nyumba zinazofaa hivi karibuni",
            ),
        }
    }

    #[track_caller]
    fn check_sms(summary: &CallSummary, reply: &ReplyPath, expected: Expect) {
        let sms = sms_text(summary, "EasyMO", reply, SMS_MAX_SEGMENTS);
        assert_eq!(sms.encoding, Encoding::Gsm7);
        expected.assert_eq(&format!(
            "{}\n-- {} segment(s){}\n",
            sms.text,
            sms.segments,
            if sms.shortened { ", shortened" } else { "" }
        ));
    }

    #[test]
    fn the_sms_of_the_first_journey_is_exactly_this() {
        let sms = sms_text(&house(Locale::En), "EasyMO", &ReplyPath::Direct, 2);
        assert_eq!(
            sms.text,
            "EasyMO summary:\n1) Property registered in Kigali\n2) Budget: 300k RWF/month\n3) We'll send matches soon\n\
             Reply to continue"
        );
        assert_eq!((sms.segments, sms.encoding, sms.shortened), (1, Encoding::Gsm7, false));
    }

    #[test]
    fn the_whatsapp_text_of_the_second_journey_is_exactly_this() {
        let summary = summary(Locale::En, "Registered your property", &["Kicukiro, 300k/month"], "We'll send matches");
        assert_eq!(
            whatsapp_text(&summary, "EasyMO", &ReplyPath::Direct),
            "📞 EasyMO Call Summary:\n✓ Registered your property\n• Kicukiro, 300k/month\n➡️ Next: We'll send matches\n\
             Reply to continue!"
        );
    }

    #[test]
    fn sms_in_four_languages() {
        check_sms(
            &house(Locale::En),
            &ReplyPath::Via("8080".into()),
            expect![[r#"
                EasyMO summary:
                1) Property registered in Kigali
                2) Budget: 300k RWF/month
                3) We'll send matches soon
                Reply by SMS to 8080
                -- 1 segment(s)
            "#]],
        );
        check_sms(
            &house(Locale::Fr),
            &ReplyPath::Direct,
            expect![[r#"
            Résumé EasyMO :
            1) Votre recherche est enregistrée : maison à Kicukiro
            2) Budget : 300 000 RWF/mois
            3) Deux chambres, dès décembre
            4) Nous vous envoyons bientot des propositions
            Répondez pour continuer
            -- 2 segment(s)
        "#]],
        );
        check_sms(
            &house(Locale::Fr),
            &ReplyPath::Via("8080".into()),
            expect![[r#"
                Résumé EasyMO :
                1) Votre recherche est enregistrée : maison à Kicukiro
                2) Budget : 300 000 RWF/mois
                3) Deux chambres, dès décembre
                4) Nous vous envoyons bientot des propositions
                Répondez par SMS au 8080
                -- 2 segment(s)
            "#]],
        );
        check_sms(
            &house(Locale::Rw),
            &ReplyPath::Direct,
            expect![[r#"
            Incamake ya EasyMO:
            1) Inzu yawe i Kigali yanditswe
            2) Ingengo y'imari: 300k RWF ku kwezi
            3) Turakoherereza amazu ahuye n'ibyo wifuza
            Subiza kugira ngo dukomeze
            -- 1 segment(s)
        "#]],
        );
        check_sms(
            &house(Locale::Rw),
            &ReplyPath::Via("8080".into()),
            expect![[r#"
                Incamake ya EasyMO:
                1) Inzu yawe i Kigali yanditswe
                2) Ingengo y'imari: 300k RWF ku kwezi
                3) Turakoherereza amazu ahuye n'ibyo wifuza
                Subiza wohereza SMS kuri 8080
                -- 2 segment(s)
            "#]],
        );
        check_sms(
            &house(Locale::Sw),
            &ReplyPath::Direct,
            expect![[r#"
            Muhtasari wa EasyMO:
            1) Nyumba yako Kigali imesajiliwa
            2) Bajeti: 300k RWF kwa mwezi
            3) Tutakutumia nyumba zinazofaa hivi karibuni
            Jibu ili tuendelee
            -- 1 segment(s)
        "#]],
        );
        check_sms(
            &house(Locale::Sw),
            &ReplyPath::Via("8080".into()),
            expect![[r#"
                Muhtasari wa EasyMO:
                1) Nyumba yako Kigali imesajiliwa
                2) Bajeti: 300k RWF kwa mwezi
                3) Tutakutumia nyumba zinazofaa hivi karibuni
                Jibu kwa SMS kwenda 8080
                -- 1 segment(s)
            "#]],
        );
    }

    #[test]
    fn nothing_is_promised_where_no_reply_can_arrive() {
        for language in crate::locale::ALL {
            let sms = sms_text(&house(language), "EasyMO", &ReplyPath::None, 2).text;
            let whatsapp = whatsapp_text(&house(language), "EasyMO", &ReplyPath::None);
            let template = template_params(&summary(language, "", &[], ""), &ReplyPath::None);
            for text in [sms, whatsapp].into_iter().chain(template.into_iter().map(|(_, value)| value)) {
                let text = text.to_lowercase();
                for promise in ["reply", "pondez", "subiza", "jibu", "write to us", "crivez", "twandik", "tuandik"] {
                    assert!(!text.contains(promise), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_long_summary_loses_points_first_and_never_its_footer() {
        let long = summary(
            Locale::En,
            "House search registered in Kimironko with two bedrooms and a garden",
            &[
                "Budget: 300k RWF per month, up to 350k for a house with a water tank",
                "Move in from the first week of December or a little later",
                "Close to the market and to a primary school",
                "Parking for one car",
                "Pets: one dog",
            ],
            "We send you three houses by tomorrow evening",
        );
        check_sms(
            &long,
            &ReplyPath::Direct,
            expect![[r#"
            EasyMO summary:
            1) House search registered in Kimironko with two bedrooms and a garden
            2) Budget: 300k RWF per month, up to 350k for a house with a water tank
            3) Move in from the first week of December or a little later
            4) We send you three houses by tomorrow evening
            Reply to continue
            -- 2 segment(s), shortened
        "#]],
        );
        let one = sms_text(&long, "EasyMO", &ReplyPath::Direct, 1);
        expect![[r#"
            EasyMO summary:
            1) House search registered in Kimironko with two bedrooms and a garden
            2) We send you three houses by tomorrow evening
            Reply to continue"#]]
        .assert_eq(&one.text);
        assert_eq!(one.segments, 1);
    }

    #[test]
    fn one_item_needs_no_number_and_other_scripts_become_question_marks() {
        check_sms(
            &summary(Locale::En, "House registered 🏠", &[], ""),
            &ReplyPath::Direct,
            expect![[r#"
                EasyMO summary:
                House registered
                Reply to continue
                -- 1 segment(s)
            "#]],
        );
        check_sms(
            &summary(Locale::En, "Имя", &["“Quote” — *bold*"], ""),
            &ReplyPath::None,
            expect![[r#"
                EasyMO summary:
                1) ???
                2) "Quote" - bold
                -- 1 segment(s)
            "#]],
        );
    }

    #[test]
    fn whatsapp_in_four_languages() {
        let all: Vec<String> = crate::locale::ALL
            .iter()
            .map(|language| whatsapp_text(&house(*language), "EasyMO", &ReplyPath::Direct))
            .collect();
        expect![[r#"
            📞 EasyMO Call Summary:
            ✓ Property registered in Kigali
            • Budget: 300k RWF/month
            ➡️ Next: We'll send matches soon
            Reply to continue!

            📞 Résumé de votre appel EasyMO :
            ✓ Votre recherche est enregistrée : maison à Kicukiro
            • Budget : 300 000 RWF/mois
            • Deux chambres, dès décembre
            ➡️ Suite : Nous vous envoyons bientôt des propositions
            Répondez pour continuer !

            📞 Incamake y'ikiganiro cyawe na EasyMO:
            ✓ Inzu yawe i Kigali yanditswe
            • Ingengo y’imari: 300k RWF ku kwezi
            ➡️ Igikurikiyeho: Turakoherereza amazu ahuye n'ibyo wifuza
            Subiza kugira ngo dukomeze!

            📞 Muhtasari wa simu yako na EasyMO:
            ✓ Nyumba yako Kigali imesajiliwa
            • Bajeti: 300k RWF kwa mwezi
            ➡️ Hatua inayofuata: Tutakutumia nyumba zinazofaa hivi karibuni
            Jibu ili tuendelee!"#]]
        .assert_eq(&all.join("\n\n"));
    }

    #[test]
    fn template_values_are_single_lines_and_never_empty() {
        let params =
            template_params(&summary(Locale::En, "A\nhouse\tin    Kimironko", &[], "We *send* it"), &ReplyPath::None);
        assert_eq!(params, [("topic", "A house in Kimironko".to_owned()), ("next_step", "We send it".to_owned())]);
        let empty = |reply: &ReplyPath| -> String {
            let params = crate::locale::ALL.map(|language| template_params(&summary(language, "", &[], ""), reply));
            params.concat().into_iter().map(|(_, value)| value).collect::<Vec<_>>().join("\n")
        };
        expect![[r#"
            your request
            write to us whenever you like
            votre demande
            écrivez-nous quand vous voulez
            icyo wifuzaga
            twandikire igihe ushakiye
            ombi lako
            tuandikie wakati wowote"#]]
        .assert_eq(&empty(&ReplyPath::Direct));
        expect![[r#"
            your request
            call us whenever you like
            votre demande
            appelez-nous quand vous voulez
            icyo wifuzaga
            duhamagare igihe ushakiye
            ombi lako
            tupigie simu wakati wowote"#]]
        .assert_eq(&empty(&ReplyPath::None));
    }

    #[test]
    fn a_reply_needs_a_number_that_receives() {
        for (sender, code, expected) in [
            ("EasyMO", None, ReplyPath::None),
            ("EasyMO", Some("EasyMO"), ReplyPath::None),
            ("EasyMO", Some(" 8080 "), ReplyPath::Via("8080".into())),
            ("EasyMO", Some("+250788000000"), ReplyPath::Via("+250788000000".into())),
            ("8080", None, ReplyPath::Direct),
            ("+250788000000", Some("8080"), ReplyPath::Direct),
            ("", Some(""), ReplyPath::None),
        ] {
            assert_eq!(ReplyPath::of(sender, code), expected, "{sender} {code:?}");
        }
    }

    #[test]
    fn a_models_answer_is_checked_again() {
        let answer = r#"{"language":"rw","headline":"**Inzu**\nyanditswe","points":["a","", 3, "b","c","d","e","f"],"next_step":null,"intent":"Property Listing!","memories":[{"kind":"fact","key":"children","value":"two","confidence":100}]}"#;
        let (summary, memories) = parse_answer(answer, Locale::En).unwrap();
        assert_eq!(memories.len(), 1);
        assert_eq!(summary.language, Locale::Rw);
        assert_eq!(summary.headline, "Inzu yanditswe");
        assert_eq!(summary.points, ["a", "3", "b", "c", "d"]);
        assert_eq!(summary.intent.as_deref(), Some("property_listing"));
        assert!(parse_answer(&format!("```json\n{answer}\n```"), Locale::En).is_ok());
        assert_eq!(parse_answer("{\"headline\":\"cut off", Locale::En), Err(SummaryError::NotJson));
        assert_eq!(parse_answer("{\"headline\":\" \",\"points\":[]}", Locale::En), Err(SummaryError::Empty));
        let long = format!("{{\"language\":\"de\",\"headline\":\"{}\"}}", "word ".repeat(200));
        let (summary, memories) = parse_answer(&long, Locale::Sw).unwrap();
        assert!(memories.is_empty());
        assert_eq!(summary.language, Locale::Sw);
        assert!(summary.headline.chars().count() <= MAX_ITEM_CHARS && summary.headline.ends_with("word..."));
    }

    #[test]
    fn the_schema_is_in_the_strict_subset() {
        let schema = schema();
        let mut required: Vec<&str> = schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let mut properties: Vec<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        required.sort_unstable();
        properties.sort_unstable();
        assert_eq!(required, properties);
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["points"]["maxItems"], MAX_POINTS);
    }

    fn any_item() -> impl Strategy<Value = String> {
        prop_oneof!["[a-zA-Z éèç’,.]{0,80}", "\\PC{0,60}", any::<String>(), "[a-z]{150,400}"]
    }

    fn any_summary() -> impl Strategy<Value = CallSummary> {
        (0_usize..4, any_item(), prop::collection::vec(any_item(), 0..8), prop::option::of(any_item())).prop_map(
            |(language, headline, points, next_step)| CallSummary {
                language: crate::locale::ALL[language],
                headline,
                points,
                next_step,
                intent: None,
            },
        )
    }

    proptest! {
        #[test]
        fn any_summary_fits_and_keeps_its_footer(summary in any_summary(), brand in "[A-Za-z ]{1,11}", max in 1_usize..3) {
            let sms = sms_text(&summary, &brand, &ReplyPath::Via("8080".into()), max);
            prop_assert!(sms.segments <= max && sms.encoding == Encoding::Gsm7);
            prop_assert!(sms.text.ends_with(" 8080"), "{}", sms.text);
            prop_assert_eq!(crate::sms::transliterate(&sms.text), sms.text);
        }

        #[test]
        fn whatsapp_text_and_template_keep_metas_limits(summary in any_summary(), brand in "\\PC{0,80}") {
            prop_assert!(whatsapp_text(&summary, &brand, &ReplyPath::Direct).encode_utf16().count() <= 4096);
            let params = template_params(&summary, &ReplyPath::None);
            prop_assert!(params.iter().map(|(_, value)| value.chars().count()).sum::<usize>() <= 700);
            for (_, value) in params {
                prop_assert!(!value.is_empty() && !value.contains(['\n', '\t', '\r']) && !value.contains("    "));
            }
        }

        #[test]
        fn no_answer_panics(text: String, headline: String, point: String) {
            let _ = parse_answer(&text, Locale::En);
            let _ = parse_answer(&json!({"headline": headline, "points": [point], "language": text}).to_string(), Locale::En);
        }
    }
}
