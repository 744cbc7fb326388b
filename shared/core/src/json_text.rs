//! JSON as text, read into a tree and written from one (RFC 8259).
//!
//! serde_json does the same for any type and any source, and brings what that takes into the wasm of every function: two
//! readers, three writers, the printing of floats, the tables of `{:?}`. For one tree and one text this file does, and the
//! tests hold it to serde_json: what that accepts is accepted, as the same tree, and all else is refused.

use serde_json::{Map, Number, Value};

/// How deep lists and objects may stand in each other; serde_json's own limit. A deeper text is refused.
const DEPTH: usize = 127;

/// Where a text is no JSON: the number of bytes before the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// Bytes that could still be the beginning of JSON.
    pub at: usize,
}

impl Broken {
    /// Line and column of the place in this text, both from 1.
    pub fn line_and_column(self, text: &[u8]) -> (usize, usize) {
        let before = text.get(..self.at).unwrap_or(text);
        let mut lines = before.rsplit(|byte| *byte == b'\n');
        let column = lines.next().map_or(0, <[u8]>::len) + 1;
        (lines.count() + 1, column)
    }
}

/// Reads a text that is one JSON value and nothing else.
///
/// Of two members of one name the last one counts. A number keeps its digits.
///
/// ```
/// use ihuza_core::json_text::{Broken, parse};
/// assert_eq!(parse(r#"{"a": [1, null]}"#), Ok(serde_json::json!({"a": [1, null]})));
/// assert_eq!(parse(r#"{"a": }"#), Err(Broken { at: 6 }));
/// ```
pub fn parse(text: &str) -> Result<Value, Broken> {
    let mut reader = Reader { text, at: 0 };
    match reader.value(0).filter(|_| reader.peek().is_none()) {
        Some(value) => Ok(value),
        None => Err(Broken { at: reader.at }),
    }
}

/// The same for bytes, which have to be UTF-8.
pub fn parse_bytes(text: &[u8]) -> Result<Value, Broken> {
    match std::str::from_utf8(text) {
        Ok(text) => parse(text),
        Err(error) => Err(Broken { at: error.valid_up_to() }),
    }
}

/// Reads forward. Nothing is where the text cannot go on as it does, which is at `at`.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    /// The next byte as it is.
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte behind white space, which is passed.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.byte() {
            self.at += 1;
        }
        self.byte()
    }

    /// Passes `wanted`, if it is next.
    fn pass(&mut self, wanted: u8) -> Option<()> {
        (self.byte()? == wanted).then(|| self.at += 1)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        match self.peek()? {
            b'"' => self.string().map(Value::String),
            b'[' if depth < DEPTH => self.list(depth + 1),
            b'{' if depth < DEPTH => self.object(depth + 1),
            b'-' | b'0'..=b'9' => self.number().map(Value::Number),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Null),
            _ => None,
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Option<Value> {
        word.bytes().all(|wanted| self.pass(wanted).is_some()).then_some(value)
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut items = Vec::new();
        if self.peek()? != b']' {
            loop {
                items.push(self.value(depth)?);
                if self.peek()? != b',' {
                    break;
                }
                self.at += 1;
            }
        }
        self.pass(b']')?;
        Some(Value::Array(items))
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut members = Map::new();
        if self.peek()? != b'}' {
            loop {
                self.peek()?;
                let name = self.string()?;
                self.peek()?;
                self.pass(b':')?;
                let value = self.value(depth)?;
                members.insert(name, value);
                if self.peek()? != b',' {
                    break;
                }
                self.at += 1;
            }
        }
        self.pass(b'}')?;
        Some(Value::Object(members))
    }

    fn string(&mut self) -> Option<String> {
        self.pass(b'"')?;
        let mut string = String::new();
        loop {
            let start = self.at;
            while self.byte().is_some_and(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
                self.at += 1;
            }
            string.push_str(self.text.get(start..self.at)?);
            if self.pass(b'"').is_some() {
                return Some(string);
            }
            self.pass(b'\\')?;
            string.push(self.escaped()?);
        }
    }

    /// The character that an escape stands for, from behind its backslash.
    fn escaped(&mut self) -> Option<char> {
        let character = match self.byte()? {
            byte @ (b'"' | b'\\' | b'/') => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                let first = self.unit()?;
                if !(0xd800..0xdc00).contains(&first) {
                    // Half a pair, the second one without the first, is no character.
                    return char::from_u32(first);
                }
                self.pass(b'\\')?;
                self.pass(b'u')?;
                let second = self.unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                return char::from_u32(0x10000 + ((first - 0xd800) << 10) + second);
            }
            _ => return None,
        };
        self.at += 1;
        Some(character)
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Option<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit << 4 | char::from(self.byte()?).to_digit(16)?;
            self.at += 1;
        }
        Some(unit)
    }

    /// A number, which keeps its digits; an exponent is written `e+5` or `e-5`, however it came.
    fn number(&mut self) -> Option<Number> {
        let start = self.at;
        let _ = self.pass(b'-');
        if self.pass(b'0').is_none() {
            self.digits()?;
        }
        if self.pass(b'.').is_some() {
            self.digits()?;
        }
        let mut text = self.text.get(start..self.at)?.to_owned();
        if self.byte().is_some_and(|byte| byte | 0x20 == b'e') {
            self.at += 1;
            text.push('e');
            let negative = self.pass(b'-').is_some();
            let _ = negative || self.pass(b'+').is_some();
            text.push(if negative { '-' } else { '+' });
            let exponent = self.at;
            self.digits()?;
            text.push_str(self.text.get(exponent..self.at)?);
        }
        // Hidden in the library's pages, and the one way to such a number that reads it no second time, which costs 8 KB.
        Some(Number::from_string_unchecked(text))
    }

    /// One digit or more.
    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

/// Writes a value without white space, with the escapes that JSON needs and no others.
///
/// ```
/// assert_eq!(ihuza_core::json_text::to_text(&serde_json::json!({"a": [1, "é\n"]})), r#"{"a":[1,"é\n"]}"#);
/// ```
pub fn to_text(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => text.push_str(number.as_str()),
        Value::String(string) => write_string(string, text),
        Value::Array(items) => {
            let mut before = '[';
            for item in items {
                text.push(before);
                write(item, text);
                before = ',';
            }
            if items.is_empty() {
                text.push('[');
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut before = '{';
            for (name, member) in members {
                text.push(before);
                write_string(name, text);
                text.push(':');
                write(member, text);
                before = ',';
            }
            if members.is_empty() {
                text.push('{');
            }
            text.push('}');
        }
    }
}

fn write_string(string: &str, text: &mut String) {
    text.push('"');
    let mut rest = string;
    // All that has to be escaped is one byte long.
    while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        let (plain, from) = rest.split_at(at);
        text.push_str(plain);
        let byte = from.bytes().next().unwrap_or_default();
        text.push('\\');
        match byte {
            b'"' | b'\\' => text.push(char::from(byte)),
            8 => text.push('b'),
            b'\t' => text.push('t'),
            b'\n' => text.push('n'),
            12 => text.push('f'),
            b'\r' => text.push('r'),
            control => {
                text.push_str(if control < 16 { "u000" } else { "u001" });
                text.push(char::from_digit(u32::from(control % 16), 16).unwrap_or_default());
            }
        }
        rest = from.get(1..).unwrap_or_default();
    }
    text.push_str(rest);
    text.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Read as serde_json reads it, or refused as it refuses; and written the same.
    #[track_caller]
    fn check(text: &[u8]) {
        let ours = parse_bytes(text);
        let theirs = serde_json::from_slice::<Value>(text);
        assert_eq!(ours.ok(), theirs.as_ref().ok().cloned(), "{:?}", String::from_utf8_lossy(text));
        if let Ok(value) = theirs {
            assert_eq!(to_text(&value), value.to_string());
        }
    }

    #[test]
    fn what_the_standard_allows_is_read_and_all_else_refused() {
        for text in [
            "",
            " ",
            "null",
            " true ",
            "false x",
            "nul",
            "nulll",
            "tru",
            "[]",
            "[ ]",
            "[1",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{}",
            "{ }",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{a:1}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":1,\"a\":2}",
            "{\"b\":1,\"a\":[{}]}",
            "0",
            "-0",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".5",
            "1.50",
            "-1.0e5",
            "1e",
            "1e+",
            "1E5",
            "1e-05",
            "1e+5",
            "1ee5",
            "1.e5",
            "12345678901234567890123",
            "1e999999",
            "0.1e",
            "0x1",
            "1_000",
            "NaN",
            "Infinity",
            "\"\"",
            "\"a",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u00e9\"",
            "\"\\u00E9\"",
            "\"\\u12\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\"\\ude00\"",
            "\"\\ud83dx\"",
            "\"\\ud83d\\n\"",
            "\"\\ud83d\\u0041\"",
            "\"\\ud83d\\ud83d\"",
            "\"\\u0000\"",
            "\"a\nb\"",
            "\"a\tb\"",
            "\"\u{7f}\u{2028}\"",
            "\"\\b\\f\\n\\r\\t\\/\\\\\"",
            "'a'",
            "[1]//",
            "\u{feff}1",
            "\u{a0}1",
            "1\u{c}",
        ] {
            check(text.as_bytes());
        }
        for bytes in [&b"\"\xff\""[..], b"\"\xe9", b"[\xc3", b"\"\xed\xa0\x80\"", b"\xef\xbb\xbf{}"] {
            check(bytes);
        }
    }

    #[test]
    fn nesting_is_bounded() {
        for depth in [1, 126, 127, 128, 129, 100_000] {
            check(&[b"[".repeat(depth), b"]".repeat(depth)].concat());
            check(&[b"{\"a\":".repeat(depth), b"1".to_vec(), b"}".repeat(depth)].concat());
        }
    }

    #[test]
    fn the_place_of_a_fault_is_told_by_line_and_column() {
        for (text, place) in [("{\"a\": }", (1, 7)), ("{\n \"a\":\n\n  x}", (4, 3)), ("", (1, 1)), ("[1", (1, 3))] {
            assert_eq!(parse(text).map_err(|broken| broken.line_and_column(text.as_bytes())), Err(place), "{text}");
        }
        assert_eq!(parse_bytes(b"[\n\"\xe9\"]"), Err(Broken { at: 3 }));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[\\x00-\\x30\\\\]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_tree_is_written_as_serde_json_writes_it_and_read_back(value in any_json()) {
            let text = to_text(&value);
            prop_assert_eq!(&text, &value.to_string());
            prop_assert_eq!(parse(&text), Ok(value));
        }

        #[test]
        fn a_spread_out_text_is_read_as_serde_json_reads_it(value in any_json()) {
            check(serde_json::to_string_pretty(&value).unwrap().as_bytes());
        }

        #[test]
        fn a_damaged_text_is_refused_where_serde_json_refuses_it(value in any_json(), at: prop::sample::Index, byte: u8, cut: bool) {
            let mut text = value.to_string().into_bytes();
            let at = at.index(text.len());
            if cut { text.truncate(at) } else { text[at] = byte }
            check(&text);
        }

        #[test]
        fn any_pieces_of_json_are_read_or_refused_alike(
            pieces in prop::collection::vec("([\\[\\]{},: \n-]|\"a\"|\"|\\\\u|[dD][8-9c-f][0-9]{2}|[eE.+]|[0-9]{1,2}|true|null)", 0..14)
        ) {
            check(pieces.concat().as_bytes());
        }

        #[test]
        fn any_bytes_are_read_or_refused_alike(text: Vec<u8>) {
            check(&text);
        }
    }
}
