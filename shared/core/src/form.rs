//! `application/x-www-form-urlencoded`, both ways (WHATWG URL, section 5).

/// Most pairs read from one body.
const MAX_PAIRS: usize = 256;

/// Reads a form body or query string; broken percent signs stay as they are, bad UTF-8 becomes U+FFFD.
pub fn parse(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .take(MAX_PAIRS)
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// The first value of a name.
pub fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// Writes a form body.
pub fn encode(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        encode_into(&mut out, name);
        out.push('=');
        encode_into(&mut out, value);
    }
    out
}

/// Percent-decodes one component, `+` as space.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = match byte {
            b'%' => bytes.get(at + 1..at + 3).and_then(hex_pair),
            _ => None,
        };
        match (byte, escaped) {
            (_, Some(decoded)) => {
                out.push(decoded);
                at += 3;
                continue;
            }
            (b'+', None) => out.push(b' '),
            (_, None) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let mut digits = pair.iter().map(|byte| char::from(*byte).to_digit(16));
    let (high, low) = (digits.next()??, digits.next()??);
    u8::try_from(high * 16 + low).ok()
}

fn encode_into(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => {
                out.push('%');
                for nibble in [byte >> 4, byte & 15] {
                    out.push(HEX.get(usize::from(nibble)).map_or('0', |digit| char::from(*digit)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_form_as_carriers_send_it() {
        let pairs = parse("from=%2B250788123456&text=Yego+rwose%21&&empty=&lonely&bad=%zz%");
        assert_eq!(value(&pairs, "from"), Some("+250788123456"));
        assert_eq!(value(&pairs, "text"), Some("Yego rwose!"));
        assert_eq!(value(&pairs, "lonely"), Some(""));
        assert_eq!(value(&pairs, "bad"), Some("%zz%"));
        assert_eq!(value(&pairs, "none"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(name in "[^\0]{1,20}", text: String) {
            let body = encode(&[(&name, &text)]);
            prop_assert_eq!(parse(&body), vec![(name, text)]);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
