//! Identifiers: correlation ids, hashes that stand for content, and UUIDs made from bytes the shell brings.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What ties a request, its log lines and its rows together: 1 to 64 ASCII letters, digits and any of `-._~:+=@,`, so that
/// it can stand in a path as it is. `health` is none: the page of that name stands where its status would.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct CorrelationId(String);

/// Longest correlation id taken from outside.
pub const CORRELATION_ID_MAX: usize = 64;

impl CorrelationId {
    /// Takes the caller's id if it is one.
    pub fn parse(text: &str) -> Option<CorrelationId> {
        let fits = (1..=CORRELATION_ID_MAX).contains(&text.len());
        let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:+=@,".contains(&byte);
        (fits && text != "health" && text.bytes().all(may_stand)).then(|| CorrelationId(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CorrelationId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<CorrelationId, D::Error> {
        let text = String::deserialize(deserializer)?;
        CorrelationId::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("correlation id is 1 to 64 letters, digits and -._~:+=@,"))
    }
}

/// A version 4 UUID (RFC 9562 section 5.4) from 16 random bytes, in lower case.
///
/// ```
/// assert_eq!(ihuza_core::ids::uuid_v4([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
/// ```
pub fn uuid_v4(random: [u8; 16]) -> String {
    let mut bytes = random;
    if let Some(byte) = bytes.get_mut(6) {
        *byte = (*byte & 0x0f) | 0x40;
    }
    if let Some(byte) = bytes.get_mut(8) {
        *byte = (*byte & 0x3f) | 0x80;
    }
    let mut out = String::with_capacity(36);
    for (at, digit) in hex::encode(bytes).chars().enumerate() {
        if matches!(at, 8 | 12 | 16 | 20) {
            out.push('-');
        }
        out.push(digit);
    }
    out
}

/// SHA-256 over all parts as 64 hexadecimal digits; each part is preceded by its length, so that moving a border between
/// two parts changes the digest.
pub fn content_hash(parts: &[&[u8]]) -> String {
    hex::encode(digest_parts(parts))
}

fn digest_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Whether the text is a UUID in its usual form: 8-4-4-4-12 hexadecimal digits, of either case.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_uuid_of_random_bytes_has_its_version_and_variant() {
        assert_eq!(uuid_v4([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert!(is_uuid(&uuid_v4([0xab; 16])));
    }

    #[test]
    fn moving_a_border_between_parts_changes_the_hash() {
        assert_ne!(content_hash(&[b"ab", b"c"]), content_hash(&[b"a", b"bc"]));
    }

    #[test]
    fn a_correlation_id_is_short_and_can_stand_in_a_path() {
        for good in ["a", "7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11", "call:42.x"] {
            assert_eq!(CorrelationId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "é", "a\n", "a/b", "a?b", "a#b", "a%20b", "health", &"x".repeat(65)] {
            assert_eq!(CorrelationId::parse(bad), None);
        }
    }

    proptest! {
        #[test]
        fn every_uuid_we_make_is_one(random: [u8; 16]) {
            prop_assert!(is_uuid(&uuid_v4(random)));
        }

        #[test]
        fn nothing_read_panics(text: String) {
            let _ = (CorrelationId::parse(&text), is_uuid(&text));
        }
    }
}
