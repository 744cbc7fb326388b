//! Templates as Meta judges them: what webhooks tell of their status, category and quality, and which may be sent.
//!
//! Meta: whatsapp/webhooks/reference/message_template_status_update, /template_category_update,
//! /message_template_quality_update. A language is an approval of its own, and the category decides the price.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::json::{field, obj, str_at, text};
use crate::locale::Locale;
use crate::timestamp;

/// What a webhook says of one template in one language. Words are Meta's, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateUpdate {
    /// The WhatsApp Business Account.
    pub account: String,
    /// The template's name.
    pub name: String,
    /// Meta's code, as it is written when sending: `rw_RW`.
    pub language: String,
    /// When Meta said so, by its clock; else when it arrived.
    pub occurred_at: DateTime<Utc>,
    /// `approved`, `rejected`, `paused`, `disabled`, ...
    pub status: Option<String>,
    /// `utility`, `marketing`, `authentication`.
    pub category: Option<String>,
    /// The category until now, where it changed.
    pub previous_category: Option<String>,
    /// The category in a day's time, where it is going to change.
    pub coming_category: Option<String>,
    /// `green`, `yellow`, `red`, `unknown`.
    pub quality: Option<String>,
}

/// Whether a webhook's field is about a template and is read by [`read`].
pub fn is_about_templates(kind: &str) -> bool {
    matches!(kind, "message_template_status_update" | "template_category_update" | "message_template_quality_update")
}

/// Reads the `value` of such a change; `None` if it names no template, no language or says nothing about it.
pub fn read(kind: &str, value: &Value, account: &str, at: DateTime<Utc>) -> Option<TemplateUpdate> {
    let say = |name: &str| text(value, name).and_then(|found| word(&found));
    let mut update = TemplateUpdate {
        account: account.chars().filter(char::is_ascii_alphanumeric).take(64).collect(),
        name: text(value, "message_template_name").filter(|name| is_name(name))?,
        language: code(&text(value, "message_template_language")?)?,
        occurred_at: at,
        status: None,
        category: None,
        previous_category: None,
        coming_category: None,
        quality: None,
    };
    match kind {
        "message_template_status_update" => {
            update.status = Some(say("event")?);
            update.category = say("message_template_category");
        }
        "template_category_update" => {
            update.category = Some(say("new_category")?);
            update.previous_category = say("previous_category");
            update.coming_category = say("correct_category");
        }
        "message_template_quality_update" => update.quality = Some(say("new_quality_score")?),
        _ => return None,
    }
    Some(update)
}

impl TemplateUpdate {
    /// An element of `updates` of `record_template_updates`.
    pub fn to_value(&self) -> Value {
        obj(&mut [
            ("account", (&self.account).into()),
            ("name", (&self.name).into()),
            ("language", (&self.language).into()),
            ("occurred_at", timestamp::to_rfc3339(self.occurred_at).into()),
            ("status", (&self.status).into()),
            ("category", (&self.category).into()),
            ("previous_category", (&self.previous_category).into()),
            ("coming_category", (&self.coming_category).into()),
            ("quality", (&self.quality).into()),
        ])
    }
}

/// A language in which a template may be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    /// Ours.
    pub locale: Locale,
    /// Meta's code of it.
    pub language: String,
    /// What it is paid for as.
    pub category: String,
}

/// The languages in which `name` may be sent. `rows` are `{name, language, category, status}` of `message_templates`; a language
/// whose status they do not tell counts as approved where the setting `WHATSAPP_TEMPLATE_LANGUAGES` names it. Without a word
/// about the category it is utility.
pub fn approved(name: &str, rows: &[Value], setting: &str) -> Vec<Approved> {
    let ours: Vec<&Value> = rows.iter().filter(|row| str_at(row, "name") == Some(name)).collect();
    let one = |locale: Locale, language: &str, row: Option<&Value>| {
        let category = row.and_then(|row| str_at(row, "category")).unwrap_or("utility");
        Approved { locale, language: language.to_owned(), category: category.to_owned() }
    };
    let of_row = |row: &&Value| {
        let language = str_at(row, "language")?;
        may_be_sent(str_at(row, "status")?).then_some(())?;
        Some(one(Locale::from_tag(language)?, language, Some(row)))
    };
    let mut found: Vec<Approved> = ours.iter().filter_map(of_row).collect();
    for locale in setting.split(',').filter_map(|tag| Locale::from_tag(tag.trim())) {
        let language = locale.whatsapp_code();
        let row = ours.iter().find(|row| str_at(row, "language") == Some(language)).copied();
        if row.is_none_or(|row| str_at(row, "status").is_none()) {
            found.push(one(locale, language, row));
        }
    }
    found
}

/// The one to send in a language: under the code that we know Meta by, else under another of the same language.
pub fn choose(approved: &[Approved], locale: Locale) -> Option<&Approved> {
    let fits = || approved.iter().filter(|one| one.locale == locale);
    fits().find(|one| one.language == locale.whatsapp_code()).or_else(|| fits().next())
}

/// Flagged ones go on until Meta stops them; a reinstated one is approved again.
fn may_be_sent(status: &str) -> bool {
    matches!(status, "approved" | "reinstated" | "flagged" | "unarchived")
}

fn is_name(name: &str) -> bool {
    (1..=512).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// `en-US` of a webhook is `en_US` when sending.
fn code(language: &str) -> Option<String> {
    let fits = (2..=16).contains(&language.len())
        && language.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    fits.then(|| language.replace('-', "_"))
}

fn word(found: &str) -> Option<String> {
    let fits = (1..=40).contains(&found.len()) && found.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    fits.then(|| found.to_ascii_lowercase())
}

/// When the entry says that it was made.
pub fn time_of(entry: &Value, arrived_at: DateTime<Utc>) -> DateTime<Utc> {
    let stamp = text(entry, "time").and_then(|at| timestamp::parse_unix(&at));
    stamp.map_or(arrived_at, |stamp| timestamp::believable(stamp, arrived_at).0)
}

/// The account that an entry is about.
pub fn account_of(entry: &Value) -> String {
    field(entry, "id").and_then(crate::json::as_text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_600, 0).unwrap()
    }

    fn about(more: Value) -> Value {
        let mut value = json!({"message_template_id": 278_077_987_957_091_u64, "message_template_name": "call_summary_v1",
                               "message_template_language": "rw-RW"});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    }

    #[track_caller]
    fn said(kind: &str, more: Value) -> Value {
        let mut said = read(kind, &about(more), "102290129340398", now()).unwrap().to_value();
        let fields = said.as_object_mut().unwrap();
        fields.retain(|_, value| !value.is_null());
        for (name, value) in [("account", "102290129340398"), ("name", "call_summary_v1"), ("language", "rw_RW")] {
            assert_eq!(fields.remove(name), Some(json!(value)));
        }
        fields.remove("occurred_at");
        said
    }

    #[test]
    fn the_three_webhooks_are_read() {
        assert_eq!(
            said(
                "message_template_status_update",
                json!({"event": "PAUSED", "reason": "NONE", "message_template_category": "UTILITY"})
            ),
            json!({"status": "paused", "category": "utility"})
        );
        assert_eq!(
            said("template_category_update", json!({"previous_category": "UTILITY", "new_category": "MARKETING"})),
            json!({"category": "marketing", "previous_category": "utility"})
        );
        assert_eq!(
            said("template_category_update", json!({"correct_category": "MARKETING", "new_category": "UTILITY"})),
            json!({"category": "utility", "coming_category": "marketing"}),
            "in a day's time"
        );
        assert_eq!(
            said(
                "message_template_quality_update",
                json!({"previous_quality_score": "GREEN", "new_quality_score": "RED"})
            ),
            json!({"quality": "red"})
        );
        for kind in ["message_template_status_update", "template_category_update", "message_template_quality_update"] {
            assert!(is_about_templates(kind));
            assert_eq!(read(kind, &about(json!({})), "1", now()), None, "it says nothing");
        }
        assert!(!is_about_templates("message_template_components_update"));
    }

    #[test]
    fn what_names_no_template_or_no_language_is_none() {
        for broken in [
            json!({"message_template_name": "Has Spaces"}),
            json!({"message_template_name": "x".repeat(513)}),
            json!({"message_template_name": null}),
            json!({"message_template_language": "'; drop"}),
            json!({"message_template_language": null}),
            json!({"event": "NOT A WORD"}),
            json!({"event": "x".repeat(41)}),
        ] {
            let mut value = json!({"event": "APPROVED"});
            value.as_object_mut().unwrap().extend(broken.as_object().unwrap().clone());
            assert_eq!(read("message_template_status_update", &about(value), "1", now()), None, "{broken}");
        }
    }

    fn row(language: &str, status: &str, category: &str) -> Value {
        json!({"name": "call_summary_v1", "language": language, "status": status, "category": category})
    }

    #[track_caller]
    fn check(rows: &[Value], setting: &str, locale: Locale, expected: Option<(&str, &str)>) {
        let approved = approved("call_summary_v1", rows, setting);
        let chosen = choose(&approved, locale).map(|one| (one.language.as_str(), one.category.as_str()));
        assert_eq!(chosen, expected);
    }

    #[test]
    fn the_table_says_what_may_be_sent_and_the_setting_only_where_it_says_nothing() {
        check(&[], "en, rw-RW", Locale::Rw, Some(("rw_RW", "utility")));
        check(&[], "en", Locale::Rw, None);
        check(&[row("rw_RW", "paused", "utility")], "en,rw_RW", Locale::Rw, None);
        check(&[row("rw_RW", "paused", "utility")], "en,rw_RW", Locale::En, Some(("en", "utility")));
        check(&[row("rw_RW", "approved", "marketing")], "", Locale::Rw, Some(("rw_RW", "marketing")));
        check(
            &[row("fr", "rejected", "utility"), row("fr_FR", "approved", "utility")],
            "fr",
            Locale::Fr,
            Some(("fr_FR", "utility")),
        );
        check(
            &[row("en_US", "approved", "utility"), row("en", "flagged", "utility")],
            "",
            Locale::En,
            Some(("en", "utility")),
        );
        let unknown = json!({"name": "call_summary_v1", "language": "rw_RW", "status": null, "category": "marketing"});
        check(std::slice::from_ref(&unknown), "rw", Locale::Rw, Some(("rw_RW", "marketing")));
        check(&[unknown], "", Locale::Rw, None);
        let another = json!({"name": "another", "language": "rw_RW", "status": "approved"});
        check(&[another], "", Locale::Rw, None);
    }

    #[test]
    fn an_entry_has_a_time_and_an_account() {
        let entry = json!({"id": "102290129340398", "time": 1_795_226_500});
        assert_eq!(
            (account_of(&entry), time_of(&entry, now()).timestamp()),
            ("102290129340398".to_owned(), 1_795_226_500)
        );
        assert_eq!((account_of(&json!({})), time_of(&json!({"time": "soon"}), now())), (String::new(), now()));
    }

    proptest! {
        #[test]
        fn no_value_panics_and_what_is_read_is_bounded(word: String, n: i64, flag: bool) {
            for value in [json!(word), json!(n), json!(flag), json!([word]), json!({word.as_str(): n})] {
                for kind in ["message_template_status_update", "template_category_update", "message_template_quality_update", word.as_str()] {
                    for name in ["event", "new_category", "correct_category", "new_quality_score", "message_template_name", "message_template_language"] {
                        let mut given = about(json!({"event": "APPROVED", "new_category": "UTILITY", "new_quality_score": "RED"}));
                        given[name] = value.clone();
                        if let Some(update) = read(kind, &given, &word, time_of(&value, now())) {
                            prop_assert!(update.to_value().to_string().len() < 1_200);
                        }
                    }
                }
                let _ = (account_of(&value), approved(&word, std::slice::from_ref(&value), &word));
            }
        }
    }
}
