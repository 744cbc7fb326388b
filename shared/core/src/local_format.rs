//! Numbers, amounts and times as people write them in each of the four languages.
//!
//! Separators are those of Unicode CLDR 47 (`main/{en,fr,rw,sw}`: `symbols-numberSystem-latn`): Kinyarwanda groups by points as
//! its neighbours on the continent do, Swahili by commas. Two things differ on purpose: French has a plain space where CLDR has a
//! narrow no-break one, which no SMS in GSM-7 can hold; and the currency's code follows the number in every language, as on a
//! price tag in Kigali, though CLDR puts it in front in Kinyarwanda and Swahili. Dates are day, month, year and times have 24
//! hours in all four. Swahili counts the hours of the day from sunrise when it is spoken; what is written in digits is the clock's.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::locale::{self, Locale};
use crate::timestamp;

/// The mark between thousands, and the one before a fraction.
fn marks(locale: Locale) -> (char, char) {
    match locale {
        Locale::En | Locale::Sw => (',', '.'),
        Locale::Fr => (' ', ','),
        Locale::Rw => ('.', ','),
    }
}

/// Longest number that is written anew, in characters.
const NUMBER_MAX_CHARS: usize = 32;

/// A plain number (`-1234.5`) as it is written in this language; nothing where it is none.
///
/// ```
/// use ihuza_core::{local_format::number, locale::Locale};
/// assert_eq!(number(Locale::Fr, "1234567.5").as_deref(), Some("1 234 567,5"));
/// assert_eq!(number(Locale::En, "1e9"), None);
/// ```
pub fn number(locale: Locale, plain: &str) -> Option<String> {
    let unsigned = plain.strip_prefix('-').unwrap_or(plain);
    let (whole, fraction) = unsigned.split_once('.').map_or((unsigned, None), |(whole, rest)| (whole, Some(rest)));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain.len() > NUMBER_MAX_CHARS || !is_digits(whole) || !fraction.is_none_or(is_digits) {
        return None;
    }
    let (group, decimal) = marks(locale);
    let mut out = String::with_capacity(plain.len() + plain.len() / 3);
    if unsigned.len() < plain.len() {
        out.push('-');
    }
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(group);
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push(decimal);
        out.push_str(fraction);
    }
    Some(out)
}

/// An amount of money: the number, then the currency's code (`250,000 RWF`).
pub fn amount(locale: Locale, plain: &str, currency: &str) -> Option<String> {
    Some([&*number(locale, plain)?, " ", currency].concat())
}

/// A moment in Kigali, date and time of day (`21/11/2026 at 14:05`).
pub fn moment(locale: Locale, at: DateTime<Utc>) -> String {
    joined(locale, &timestamp::kigali_date(at), &timestamp::kigali_time(at))
}

fn joined(locale: Locale, date: &str, time: &str) -> String {
    let between = match locale {
        Locale::En => " at ",
        Locale::Fr => " à ",
        Locale::Rw | Locale::Sw => ", ",
    };
    [date, between, time].concat()
}

/// The same of a local time as rows and tools have it, `YYYY-MM-DDTHH:MM`; nothing of another text.
fn local_moment(locale: Locale, text: &str) -> Option<String> {
    let (date, time) = text.split_once('T')?;
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let is = |part: &str, length: usize| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit());
    let (hour, minute) = time.split_once(':')?;
    if parts.next().is_some() || !is(year, 4) || ![month, day, hour, minute].iter().all(|part| is(part, 2)) {
        return None;
    }
    Some(joined(locale, &[day, "/", month, "/", year].concat(), time))
}

/// What a model is told of all this: an amount and a moment in each language, which it is to write alike.
pub fn rule() -> String {
    let mut out = String::from("Write amounts, dates and times as the language does: ");
    for locale in locale::ALL {
        out.push_str(locale.english_name());
        out.push(' ');
        out.push_str(&amount(locale, "250000", "RWF").unwrap_or_default());
        out.push_str(if locale == Locale::Sw { "; " } else { ", " });
    }
    out.push_str("21/11/2026 and 14:05 (day, month, year; 24 hours, Kigali) in all of them. ");
    out
}

/// Amounts stand beside a `currency`.
const AMOUNTS: [&str; 2] = ["budget", "price"];
const MOMENTS: [&str; 3] = ["now", "pickup_at", "since"];
/// How deep what a tool answers is looked at.
const MAX_DEPTH: usize = 6;

/// Puts beside each amount and each local time how it is written: `budget_written` beside `budget`. The plain value stays, for
/// tools take that.
pub fn spell_out(value: &mut Value, locale: Locale) {
    deeper(value, locale, MAX_DEPTH);
}

fn deeper(value: &mut Value, locale: Locale, depth: usize) {
    let Some(depth) = depth.checked_sub(1) else { return };
    match value {
        Value::Array(items) => {
            for item in items {
                deeper(item, locale, depth);
            }
        }
        Value::Object(fields) => {
            let mut written: Vec<(&str, String)> = Vec::new();
            let currency = fields.get("currency").and_then(Value::as_str);
            for name in AMOUNTS {
                if let (Some(Value::Number(plain)), Some(currency)) = (fields.get(name), currency) {
                    written.extend(amount(locale, &plain.to_string(), currency).map(|text| (name, text)));
                }
            }
            for name in MOMENTS {
                let text = fields.get(name).and_then(Value::as_str);
                written.extend(text.and_then(|text| local_moment(locale, text)).map(|text| (name, text)));
            }
            for item in fields.values_mut() {
                deeper(item, locale, depth);
            }
            for (name, text) in written {
                fields.insert([name, "_written"].concat(), text.into());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locale::ALL;
    use crate::sms::{self, Encoding};
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    fn at() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_700, 0).unwrap()
    }

    #[test]
    fn each_language_has_its_marks() {
        let mut all = String::new();
        for locale in ALL {
            let amounts = ["250000", "1000", "999", "0", "-1234567.5", "12.50"]
                .map(|plain| amount(locale, plain, "RWF").unwrap())
                .join(" | ");
            all.extend([locale.as_str(), ": ", &amounts, " | ", &moment(locale, at()), "\n"]);
        }
        expect![[r#"
            en: 250,000 RWF | 1,000 RWF | 999 RWF | 0 RWF | -1,234,567.5 RWF | 12.50 RWF | 21/11/2026 at 04:05
            fr: 250 000 RWF | 1 000 RWF | 999 RWF | 0 RWF | -1 234 567,5 RWF | 12,50 RWF | 21/11/2026 à 04:05
            rw: 250.000 RWF | 1.000 RWF | 999 RWF | 0 RWF | -1.234.567,5 RWF | 12,50 RWF | 21/11/2026, 04:05
            sw: 250,000 RWF | 1,000 RWF | 999 RWF | 0 RWF | -1,234,567.5 RWF | 12.50 RWF | 21/11/2026, 04:05
        "#]]
        .assert_eq(&all);
    }

    #[test]
    fn the_rule_is_one_sentence_of_examples() {
        expect![[r#"Write amounts, dates and times as the language does: English 250,000 RWF, French 250 000 RWF, Kinyarwanda 250.000 RWF, Swahili 250,000 RWF; 21/11/2026 and 14:05 (day, month, year; 24 hours, Kigali) in all of them. "#]]
        .assert_eq(&rule());
    }

    #[test]
    fn what_a_tool_answers_has_both_the_value_and_how_it_is_written() {
        let mut answer = json!({"ok": true, "result": {"booking": {"price": 5000, "currency": "RWF", "pickup_at": "2026-11-22T08:00"},
                                "requests": [{"budget": 250_000, "currency": "RWF", "since": "2026-11-21T05:05"}, {"budget": 3, "currency": null}],
                                "services": [{"price": "300k RWF", "currency": "RWF"}], "now": "soon", "pickup_at": "as soon as possible"}});
        spell_out(&mut answer, Locale::Rw);
        expect![[r#"{"ok":true,"result":{"booking":{"currency":"RWF","pickup_at":"2026-11-22T08:00","pickup_at_written":"22/11/2026, 08:00","price":5000,"price_written":"5.000 RWF"},"now":"soon","pickup_at":"as soon as possible","requests":[{"budget":250000,"budget_written":"250.000 RWF","currency":"RWF","since":"2026-11-21T05:05","since_written":"21/11/2026, 05:05"},{"budget":3,"currency":null}],"services":[{"currency":"RWF","price":"300k RWF"}]}}"#]]
        .assert_eq(&answer.to_string());
    }

    proptest! {
        #[test]
        fn the_digits_stay_and_groups_have_three(whole in "0|[1-9][0-9]{0,14}", fraction in proptest::option::of("[0-9]{1,4}"), minus: bool) {
            let plain = [if minus { "-" } else { "" }, &*whole, if fraction.is_some() { "." } else { "" }, fraction.as_deref().unwrap_or_default()].concat();
            for locale in ALL {
                let text = number(locale, &plain).unwrap();
                let (group, decimal) = marks(locale);
                let (left, right) = text.split_once(decimal).map_or((&*text, None), |(left, right)| (left, Some(right)));
                prop_assert_eq!(right, fraction.as_deref());
                let groups: Vec<&str> = left.trim_start_matches('-').split(group).collect();
                prop_assert!((1..=3).contains(&groups[0].len()) && groups[1..].iter().all(|part| part.len() == 3), "{}", text);
                prop_assert_eq!(groups.concat(), whole.clone());
                prop_assert_eq!(text.starts_with('-'), minus);
            }
        }

        #[test]
        fn what_is_written_costs_an_sms_nothing_more(plain in "[0-9]{1,15}", seconds in 0_i64..4_000_000_000) {
            for locale in ALL {
                let text = [amount(locale, &plain, "RWF").unwrap(), moment(locale, DateTime::from_timestamp(seconds, 0).unwrap())].join(" ");
                let sms = sms::prepare(&text, 1);
                prop_assert_eq!(sms.encoding, Encoding::Gsm7);
                prop_assert_eq!(sms.text, text);
            }
        }

        #[test]
        fn no_text_and_no_depth_panics(text: String, date in "[0-9TZ:-]{0,20}", depth in 0_usize..200) {
            let mut value = json!({"now": text, "since": date, "currency": text, "price": 1});
            for _ in 0..depth {
                value = json!([value]);
            }
            for locale in ALL {
                let _ = number(locale, &text);
                spell_out(&mut value, locale);
            }
        }
    }
}
