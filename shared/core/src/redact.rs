//! Takes phone numbers out of free text before it is logged.

use crate::ids::is_uuid;
use crate::phone;

/// A run of fewer digits is a year, a price or a short code.
const MIN_DIGITS: usize = 8;

/// Masks everything in `text` that may be a phone number: eight digits or more, also with `+`, spaces, points, dashes or
/// brackets between them. UUIDs, 32 hexadecimal digits in a row (a UUID without its dashes, a W3C trace id) and RFC 3339
/// times stay. What is masked keeps its first five and last three digits.
///
/// ```
/// assert_eq!(ihuza_core::redact::scrub("to +250788123456: busy"), "to +25078****456: busy");
/// ```
pub fn scrub(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|found: char| found == '+' || is_digit(found)) {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let after_letter = out.ends_with(|found: char| found.is_ascii_alphanumeric() || found == '-');
        let length = match harmless(before, from, after_letter) {
            Some(length) => {
                out.push_str(from.get(..length).unwrap_or(from));
                length
            }
            None => {
                let length = run(from);
                let found = from.get(..length).unwrap_or(from);
                push_masked(&mut out, found);
                length
            }
        };
        rest = from.get(length..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// What of an id or a time begins here: its length from here on.
fn harmless(before: &str, from: &str, after_letter: bool) -> Option<usize> {
    if let Some(length) = rest_of_id(before, from, 36, is_uuid).or_else(|| rest_of_id(before, from, 32, is_bare_uuid)) {
        return Some(length);
    }
    if after_letter {
        return None;
    }
    // A date with the hour behind a T, as RFC 3339 writes it.
    let shape = from.as_bytes().get(..19)?;
    let fits = shape.iter().enumerate().all(|(at, byte)| match at {
        4 | 7 => *byte == b'-',
        10 => *byte == b'T',
        13 | 16 => *byte == b':',
        _ => byte.is_ascii_digit(),
    });
    fits.then_some(19)
}

/// An id of `length` bytes may begin with letters, which are then already written: what is left of it.
fn rest_of_id(before: &str, from: &str, length: usize, is_id: fn(&str) -> bool) -> Option<usize> {
    let led_by = before.bytes().rev().take_while(u8::is_ascii_hexdigit).count();
    let rest = length.checked_sub(led_by).filter(|rest| *rest > 0)?;
    let begun = before.len().checked_sub(led_by)?;
    let whole = [before.get(begun..)?, from.get(..rest)?].concat();
    let borders = [before.get(..begun)?.chars().next_back(), from.get(rest..)?.chars().next()];
    let stands_alone = !borders.into_iter().flatten().any(|border| border.is_ascii_alphanumeric());
    (stands_alone && is_id(&whole)).then_some(rest)
}

/// Hexadecimal digits, letters among them: 32 of them are no number of a phone.
fn is_bare_uuid(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit()) && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// Length in bytes of the digits and separators from here on; ends behind a digit.
fn run(from: &str) -> usize {
    let mut end = 0;
    let mut gap = 0;
    for (at, found) in from.char_indices() {
        if is_digit(found) {
            end = at + found.len_utf8();
            gap = 0;
        } else if at == 0 || (is_separator(found) && gap < 2) {
            gap += 1;
        } else {
            break;
        }
    }
    // A lone plus sign.
    if end == 0 { from.chars().next().map_or(0, char::len_utf8) } else { end }
}

fn push_masked(out: &mut String, found: &str) {
    let digits = found.chars().filter(|c| is_digit(*c)).count();
    if digits < MIN_DIGITS {
        out.push_str(found);
        return;
    }
    let bare: String = found.chars().filter(|c| is_digit(*c) || *c == '+').collect();
    out.push_str(&phone::mask(&bare));
}

fn is_digit(found: char) -> bool {
    found.is_ascii_digit() || matches!(found, '\u{ff10}'..='\u{ff19}' | '\u{660}'..='\u{669}' | '\u{6f0}'..='\u{6f9}')
}

fn is_separator(found: char) -> bool {
    matches!(found, ' ' | '-' | '.' | '(' | ')' | '/' | '\u{a0}' | '\u{202f}' | '\u{2009}' | '\u{2011}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_masked_however_they_are_written() {
        for (text, expected) in [
            ("+250788123456", "+25078****456"),
            ("0788123456", "07881****456"),
            ("call 0788 123 456 now", "call 07881****456 now"),
            ("tel:+250-788-123-456;x", "tel:+25078****456;x"),
            ("to250788123456x", "to25078****456x"),
            ("(+250) 788.123.456", "(+25078****456"),
            ("250788123456@s.whatsapp.net", "25078****456@s.whatsapp.net"),
            ("１２３４５６７８９０", "１２３４５****８９０"),
            ("00788123456a43369332dc4d96a7f0ff0", "00788****456a43****32dc4d96a7f0ff0"),
            ("07881234560788123456078812345600", "07881****600"),
        ] {
            assert_eq!(scrub(text), expected);
        }
    }

    #[test]
    fn prices_dates_ids_and_short_codes_stay() {
        for text in [
            "Budget: 300 000 RWF",
            "reply to 8080",
            "at 2026-11-21T04:00:07.123Z",
            "id 7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11, ok",
            "id 12345678-1234-4234-8234-123456789012",
            "id ab345678-1234-4234-8234-123456789012",
            "trace-fb488623f71a43369332dc4d96a7f0ff",
            "id 00788123456a43369332dc4d96a7f0ff, ok",
            "after 8003 ms, attempt 2",
            "+",
            "a + b",
        ] {
            assert_eq!(scrub(text), text);
        }
    }

    proptest! {
        #[test]
        fn no_number_slips_through(before in "[a-z:= ]{0,9}", number in "7[2389][0-9]{7}", after in "[a-z,;. ]{0,9}") {
            let (first, second, third) = (&number[..3], &number[3..6], &number[6..]);
            for written in [
                format!("+250{number}"), format!("0{number}"), format!("250{number}"), number.clone(),
                format!("0{first} {second} {third}"), format!("+250-{first}-{second}-{third}"),
                format!("(+250) {first}.{second}.{third}"),
            ] {
                let clean = scrub(&format!("{before}{written}{after}"));
                let digits: String = clean.chars().filter(|found| found.is_ascii_digit()).collect();
                prop_assert!(clean.contains("****") && !digits.contains(&number), "{clean}");
            }
        }

        #[test]
        fn scrubbing_never_panics(text in "\\PC*", digits in "[0-9a-f+ ().-]{0,60}") {
            for text in [text, digits] {
                let clean = scrub(&text);
                let _ = scrub(&clean);
            }
        }
    }
}
