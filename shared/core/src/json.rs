//! Reading JSON bodies of strangers: both spellings of every name, odd types forgiven, NUL characters removed.
//!
//! Postgres refuses U+0000 in `text` and `jsonb`, so it is taken out here, once, before anything is stored. Carriers send
//! Latin-1 and halves of emoji; [`foreign_object`] loses such a character and not the message around it.

use serde_json::{Map, Value};

use crate::json_text;
use crate::problem::Problem;

/// Parses a body as one JSON object, with every NUL removed.
pub fn object(body: &[u8]) -> Result<Value, Problem> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut value = json_text::parse_bytes(body).map_err(|broken| {
        let (line, column) = broken.line_and_column(body);
        let mut detail = String::from("JSON is broken at line ");
        detail.push_str(&line.to_string());
        detail.push_str(", column ");
        detail.push_str(&column.to_string());
        Problem::bad_json(detail)
    })?;
    if !value.is_object() {
        return Err(Problem::bad_json("The body is JSON, but not an object"));
    }
    strip_nul(&mut value);
    Ok(value)
}

/// The same for a body of a carrier, of Meta or of the model, who cannot be asked to write it again: bytes that are no UTF-8
/// and escapes of half a surrogate pair (`\ud83d` alone) are read as U+FFFD. The signature is over the bytes as they came and
/// is checked before. Nesting is bounded as in [`object`]; the text grows to three times the body at most.
pub fn foreign_object(body: &[u8]) -> Result<Value, Problem> {
    object(body).or_else(|problem| {
        let mended = mend(body);
        // Nothing to mend: then what was wrong stays wrong, and its place is told in the sender's own bytes.
        if mended == body { Err(problem) } else { object(&mended) }
    })
}

/// U+FFFD in place of invalid UTF-8 and of lone surrogate escapes.
fn mend(body: &[u8]) -> Vec<u8> {
    let mut bytes = String::from_utf8_lossy(body).into_owned().into_bytes();
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        at += match (surrogate(rest), rest.get(6..).and_then(surrogate)) {
            (Some(High), Some(Low)) => 12,
            (Some(High | Low), _) => {
                for (byte, new) in rest.iter_mut().zip(b"\\ufffd") {
                    *byte = *new;
                }
                6
            }
            // `\\` is one character; what comes after it begins no escape.
            (None, _) if rest.first() == Some(&b'\\') => 2,
            (None, _) => 1,
        };
    }
    bytes
}

enum Half {
    High,
    Low,
}
use Half::{High, Low};

/// Which half of a surrogate pair the escape is that `bytes` begin with, if it is one.
fn surrogate(bytes: &[u8]) -> Option<Half> {
    let digits = std::str::from_utf8(bytes.strip_prefix(b"\\u")?.get(..4)?).ok()?;
    match u16::from_str_radix(digits, 16).ok()? {
        0xd800..=0xdbff => Some(High),
        0xdc00..=0xdfff => Some(Low),
        _ => None,
    }
}

/// Builds an object. Call by call it costs a fraction of the wasm that `json!` does.
pub fn record(pairs: Vec<(&str, Value)>) -> Value {
    // Not `collect`, which sorts first: the sort alone is 6 KB of wasm.
    let mut map = Map::new();
    for (name, value) in pairs {
        map.insert(name.to_owned(), value);
    }
    Value::Object(map)
}

/// One value on its way into an object, borrowed until it is placed there.
///
/// With [`obj`] an object costs a fraction of the wasm (and of the time) of `json!`, which writes out every insertion and
/// sends every value through a serializer.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Part<'a> {
    /// `null`
    #[default]
    Null,
    /// A truth value.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// A text.
    Text(&'a str),
    /// Anything that stands elsewhere and is copied.
    Tree(&'a Value),
    /// Anything, made before.
    Value(Value),
}

impl From<Part<'_>> for Value {
    fn from(part: Part) -> Value {
        match part {
            Part::Null => Value::Null,
            Part::Flag(flag) => Value::Bool(flag),
            Part::Number(number) => Value::from(number),
            Part::Text(text) => Value::from(text),
            Part::Tree(tree) => tree.clone(),
            Part::Value(value) => value,
        }
    }
}

impl<'a> From<&'a str> for Part<'a> {
    fn from(text: &'a str) -> Self {
        Part::Text(text)
    }
}

impl<'a> From<&'a String> for Part<'a> {
    fn from(text: &'a String) -> Self {
        Part::Text(text)
    }
}

impl From<String> for Part<'_> {
    fn from(text: String) -> Self {
        Part::Value(Value::String(text))
    }
}

impl<'a> From<&'a Option<String>> for Part<'a> {
    fn from(maybe: &'a Option<String>) -> Self {
        maybe.as_deref().into()
    }
}

impl<'a> From<&'a Value> for Part<'a> {
    fn from(tree: &'a Value) -> Self {
        Part::Tree(tree)
    }
}

impl<'a, T: Into<Part<'a>>> From<Vec<T>> for Part<'_> {
    fn from(items: Vec<T>) -> Self {
        Part::Value(Value::Array(items.into_iter().map(|item| item.into().into()).collect()))
    }
}

impl From<bool> for Part<'_> {
    fn from(flag: bool) -> Self {
        Part::Flag(flag)
    }
}

impl From<i32> for Part<'_> {
    fn from(number: i32) -> Self {
        Part::Number(i64::from(number))
    }
}

impl From<i64> for Part<'_> {
    fn from(number: i64) -> Self {
        Part::Number(number)
    }
}

impl From<u32> for Part<'_> {
    fn from(number: u32) -> Self {
        Part::Number(i64::from(number))
    }
}

impl From<u16> for Part<'_> {
    fn from(number: u16) -> Self {
        Part::Number(i64::from(number))
    }
}

impl From<usize> for Part<'_> {
    fn from(number: usize) -> Self {
        Part::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<Value> for Part<'_> {
    fn from(value: Value) -> Self {
        Part::Value(value)
    }
}

impl<'a, T: Into<Part<'a>>> From<Option<T>> for Part<'a> {
    fn from(maybe: Option<T>) -> Self {
        maybe.map_or(Part::Null, Into::into)
    }
}

/// An object of these parts, which are taken out of the slice.
///
/// ```
/// use ihuza_core::json::obj;
/// let row = obj(&mut [("channel", "sms".into()), ("segments", 2_usize.into()), ("cost", None::<&str>.into())]);
/// assert_eq!(row.to_string(), r#"{"channel":"sms","cost":null,"segments":2}"#);
/// ```
#[inline(never)]
pub fn obj(parts: &mut [(&str, Part)]) -> Value {
    let mut map = Map::new();
    for (name, part) in parts {
        map.insert((*name).to_owned(), std::mem::take(part).into());
    }
    Value::Object(map)
}

/// A text field by its exact name.
#[inline(never)]
pub fn str_at<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

/// A text field by its exact name, owned.
#[inline(never)]
pub fn string_at(value: &Value, name: &str) -> Option<String> {
    str_at(value, name).map(str::to_owned)
}

/// A number field by its exact name.
#[inline(never)]
pub fn u32_at(value: &Value, name: &str) -> Option<u32> {
    value.get(name)?.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// A truth value by its exact name; absent is false.
#[inline(never)]
pub fn flag_at(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// The items of an array field by its exact name; absent is empty.
#[inline(never)]
pub fn items_at<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Finds a field by its snake_case name, or, where that is absent or null, by the same name in camelCase.
///
/// ```
/// let body = serde_json::json!({"phoneNumber": "+250788123456"});
/// assert!(ihuza_core::json::field(&body, "phone_number").is_some());
/// ```
pub fn field<'a>(value: &'a Value, snake_name: &str) -> Option<&'a Value> {
    let map = value.as_object()?;
    let there = |name: &str| map.get(name).filter(|found| !found.is_null());
    there(snake_name).or_else(|| there(&camel(snake_name)))
}

/// The first of several fields that is present and not null.
pub fn first_field<'a>(value: &'a Value, snake_names: &[&str]) -> Option<&'a Value> {
    snake_names.iter().find_map(|name| field(value, name))
}

/// A field as text: a string that is not blank, trimmed; or a number or boolean in its JSON spelling.
pub fn text(value: &Value, snake_name: &str) -> Option<String> {
    field(value, snake_name).and_then(as_text)
}

/// Any scalar as text, see [`text`].
pub fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(found) => {
            let clean = without_nul(found);
            let clean = clean.trim();
            (!clean.is_empty()).then(|| clean.to_owned())
        }
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(if *flag { "true" } else { "false" }.to_owned()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A field as text, if it is there; the problem that names it if it is there as a list or an object. A text of more than
/// `max_bytes` is a problem too.
pub fn optional_text(value: &Value, name: &'static str, max_bytes: usize) -> Result<Option<String>, Problem> {
    let refused =
        |detail: &str| Err(Problem::invalid_field(name, [name, detail].concat(), "send it as a text, or leave it out"));
    match field(value, name) {
        Some(Value::Array(_) | Value::Object(_)) => refused(" is a list or an object"),
        found => match found.and_then(as_text) {
            Some(long) if long.len() > max_bytes => refused(" is too long"),
            fitting => Ok(fitting),
        },
    }
}

/// A field as a whole number; a string of digits counts.
pub fn integer(value: &Value, snake_name: &str) -> Option<i64> {
    match field(value, snake_name)? {
        Value::Number(number) => number.as_i64(),
        Value::String(digits) => digits.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A field as a flag; `"true"` and `"false"` count.
pub fn flag(value: &Value, snake_name: &str) -> Option<bool> {
    match field(value, snake_name)? {
        Value::Bool(found) => Some(*found),
        Value::String(word) if word.eq_ignore_ascii_case("true") => Some(true),
        Value::String(word) if word.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Removes U+0000 from every string and key, in place.
pub fn strip_nul(value: &mut Value) {
    match value {
        Value::String(found) => {
            if found.contains('\0') {
                *found = without_nul(found);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nul),
        Value::Object(map) => {
            if map.keys().any(|key| key.contains('\0')) {
                let old = std::mem::take(map);
                map.extend(old.into_iter().map(|(key, value)| (without_nul(&key), value)));
            }
            map.values_mut().for_each(strip_nul);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text without U+0000.
pub fn without_nul(text: &str) -> String {
    text.chars().filter(|found| *found != '\0').collect()
}

/// The first `max` characters.
pub fn clip(text: &str, max: usize) -> &str {
    match text.char_indices().nth(max) {
        Some((end, _)) => text.get(..end).unwrap_or(text),
        None => text,
    }
}

fn camel(snake_name: &str) -> String {
    let mut out = String::with_capacity(snake_name.len());
    let mut upper = false;
    for found in snake_name.chars() {
        if found == '_' {
            upper = true;
        } else if upper {
            out.push(found.to_ascii_uppercase());
            upper = false;
        } else {
            out.push(found);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn both_spellings_are_read_and_snake_case_wins() {
        assert_eq!(text(&json!({"callId": "a"}), "call_id").unwrap(), "a");
        assert_eq!(text(&json!({"call_id": "a", "callId": "b"}), "call_id").unwrap(), "a");
        assert_eq!(text(&json!({"call_id": null}), "call_id"), None);
        assert_eq!(text(&json!({"call_id": "  "}), "call_id"), None);
        assert_eq!(text(&json!({"call_id": null, "callId": "b"}), "call_id").unwrap(), "b");
        assert_eq!(text(&json!({"id": 88120453}), "id").unwrap(), "88120453");
        assert_eq!(integer(&json!({"expires_in": "3599"}), "expires_in"), Some(3599));
        assert_eq!(flag(&json!({"mirrorReplies": "True"}), "mirror_replies"), Some(true));
    }

    #[test]
    fn an_optional_field_is_absent_or_a_text_of_bearable_length() {
        let read = |value: Value| optional_text(&value, "phone_number", 5).map_err(|problem| problem.field);
        assert_eq!(read(json!({"phoneNumber": " 12345 "})), Ok(Some("12345".to_owned())));
        for absent in [json!({}), json!({"phoneNumber": null}), json!({"phone_number": " "})] {
            assert_eq!(read(absent), Ok(None));
        }
        for bad in [json!({"phoneNumber": {"a": 1}}), json!({"phone_number": []}), json!({"phone_number": "123456"})] {
            assert_eq!(read(bad), Err(Some("phone_number")));
        }
    }

    #[test]
    fn nul_is_removed_everywhere() {
        let value = object(br#"{"a\u0000b":["x\u0000y",{"c":"\u0000"}]}"#).unwrap();
        assert_eq!(value, json!({"ab": ["xy", {"c": ""}]}));
    }

    #[test]
    fn a_broken_body_says_where() {
        let problem = object(b"{\"a\": }").unwrap_err();
        assert_eq!((problem.status, &*problem.detail), (400, "JSON is broken at line 1, column 7"));
        assert_eq!(object(b"[1]").unwrap_err().type_slug, "bad-json");
        assert!(object(b"\xef\xbb\xbf{}").is_ok(), "a byte order mark is forgiven");
    }

    #[track_caller]
    fn check_foreign(body: &[u8], expected: &str) {
        assert_eq!(
            foreign_object(body).map(|value| value["a"].as_str().map(str::to_owned)),
            Ok(Some(expected.to_owned()))
        );
    }

    #[test]
    fn half_an_emoji_or_a_byte_of_latin_1_costs_that_character_and_not_the_body() {
        check_foreign(br#"{"a":"x\ud83dy"}"#, "x\u{fffd}y");
        check_foreign(br#"{"a":"\uDE00\ud83d\ude00\ud83d\ud83d\ude00"}"#, "\u{fffd}😀\u{fffd}😀");
        check_foreign(br#"{"a":"\\ud800 \\\ud800"}"#, "\\ud800 \\\u{fffd}");
        check_foreign(br#"{"a":"\ud83d\u00e9"}"#, "\u{fffd}é");
        check_foreign(b"{\"a\":\"caf\xe9 \xff\xfe!\"}", "caf\u{fffd} \u{fffd}\u{fffd}!");
        check_foreign(b"\xef\xbb\xbf{\"a\":\"\xe9\"}", "\u{fffd}");
        check_foreign(br#"{"a":"\ud800\u0000"}"#, "\u{fffd}");
        // Our own callers can write it again.
        assert_eq!(object(br#"{"a":"\ud800"}"#).unwrap_err().type_slug, "bad-json");
        assert_eq!(object(b"{\"a\":\"\xe9\"}").unwrap_err().type_slug, "bad-json");
        // What is broken otherwise stays broken, and its place is the sender's.
        assert_eq!(&*foreign_object(b"{\"a\": }").unwrap_err().detail, "JSON is broken at line 1, column 7");
        assert!(foreign_object(br#"{"a":"\ud8"}"#).is_err() && foreign_object(br#"{"a":"\ud800"#).is_err());
        let deep = [b"{\"a\":\"\xe9\",\"b\":".as_slice(), &b"[".repeat(200), &b"]".repeat(200), b"}"].concat();
        assert!(foreign_object(&deep).is_err(), "nesting is bounded in a mended body as well");
    }

    /// JSON text of a string, some of whose characters are escaped, with damage of the kinds that carriers send.
    fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => "[a-z é😀]{1,4}".prop_map(|text| text.into_bytes()),
            1 => (0xd800_u16..0xe000).prop_map(|unit| format!("\\u{unit:04x}").into_bytes()),
            1 => (0xd800_u16..0xe000).prop_map(|unit| format!("\\u{unit:04X}").into_bytes()),
            1 => (0x80_u8..=0xff).prop_map(|byte| vec![byte]),
            1 => Just(br"\\".to_vec()),
            1 => Just(br"\u00e9".to_vec()),
            1 => Just(br#"\""#.to_vec()),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn damage_within_a_text_never_costs_the_body(text in damaged()) {
            let body = [b"{\"a\":\"", text.as_slice(), b"\",\"b\":1}"].concat();
            let value = foreign_object(&body).unwrap();
            prop_assert_eq!(&value["b"], 1);
            prop_assert!(value["a"].is_string());
        }

        #[test]
        fn a_sound_body_reads_the_same_either_way(text: String, number: i32) {
            let body = json!({"a": text, "b": [number]}).to_string();
            prop_assert_eq!(foreign_object(body.as_bytes()), object(body.as_bytes()));
            prop_assert_eq!(mend(body.as_bytes()), body.as_bytes());
        }

        #[test]
        fn mending_grows_a_body_to_three_times_at_most_and_is_done_once(body: Vec<u8>) {
            let mended = mend(&body);
            prop_assert!(mended.len() <= 3 * body.len());
            prop_assert_eq!(mend(&mended), mended);
        }

        #[test]
        fn no_bytes_panic(body: Vec<u8>) {
            let _ = object(&body);
            let _ = foreign_object(&body);
        }

        #[test]
        fn clipping_never_splits_a_character(text: String, max in 0_usize..40) {
            prop_assert!(clip(&text, max).chars().count() <= max);
            prop_assert!(text.starts_with(clip(&text, max)));
        }
    }
}
