//! Proof of who sent a request: HMAC signatures and bearer tokens.
//!
//! Every check takes a list of secrets (current and previous) so that they can be changed without an outage, compares in
//! constant time, and answers yes or no without a reason. Verify the bytes as they came, before they are parsed.

use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// How far a signed time may lie from ours, both ways.
pub const TOLERANCE_S: i64 = 300;

/// HMAC-SHA256 (RFC 2104, FIPS 180-4).
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // A key of any length is accepted by HMAC; the error cannot occur and gives a value nobody can present.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return [0; 32];
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Compares two texts without telling by its time where they differ. Their lengths may show; a secret's is none.
pub fn equal(presented: &str, expected: &str) -> bool {
    !expected.is_empty() && same_bytes(presented.as_bytes(), expected.as_bytes())
}

/// Whether `presented` is one of the secrets. Empty secrets never match.
pub fn equals_any<S: AsRef<str>>(presented: &str, secrets: &[S]) -> bool {
    // Every secret is looked at, so that time does not tell which one matched.
    secrets.iter().fold(false, |found, secret| equal(presented, secret.as_ref()) | found)
}

/// Whether an `Authorization: Bearer ...` header carries one of the secrets.
pub fn bearer<S: AsRef<str>>(header: Option<&str>, secrets: &[S]) -> bool {
    bearer_token(header).is_some_and(|token| equals_any(token, secrets))
}

/// The token of an `Authorization: Bearer ...` header.
pub fn bearer_token(header: Option<&str>) -> Option<&str> {
    let (scheme, token) = header?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Meta's `X-Hub-Signature-256: sha256=<hex>` over the raw body, with the app secret. Upper-case digits are accepted.
pub fn meta<S: AsRef<str>>(header: Option<&str>, body: &[u8], secrets: &[S]) -> bool {
    prefixed_hex(header, &[body], secrets)
}

/// Our own scheme for carriers that sign nothing themselves: `X-Signature: sha256=<hex>` over `{X-Timestamp}.{body}`, where
/// the timestamp is Unix seconds within [`TOLERANCE_S`] of now.
pub fn timestamped<S: AsRef<str>>(
    signature: Option<&str>,
    timestamp: Option<&str>,
    body: &[u8],
    secrets: &[S],
    now: DateTime<Utc>,
) -> bool {
    let Some(timestamp) = timestamp.map(str::trim) else {
        return false;
    };
    fresh(timestamp, now) && prefixed_hex(signature, &[timestamp.as_bytes(), b".", body], secrets)
}

/// The signature that [`timestamped`] accepts, for requests of our own.
pub fn sign(secret: &str, timestamp: &str, body: &[u8]) -> String {
    ["sha256=", &hex::encode(hmac_sha256(secret.as_bytes(), &[timestamp.as_bytes(), b".", body]))].concat()
}

fn prefixed_hex<S: AsRef<str>>(header: Option<&str>, parts: &[&[u8]], secrets: &[S]) -> bool {
    let given = header.and_then(|header| header.trim().strip_prefix("sha256="));
    let Some(Ok(given)) = given.map(hex::decode) else {
        return false;
    };
    secrets
        .iter()
        .filter(|secret| !secret.as_ref().is_empty())
        .fold(false, |found, secret| found | same_bytes(&given, &hmac_sha256(secret.as_ref().as_bytes(), parts)))
}

fn same_bytes(given: &[u8], expected: &[u8]) -> bool {
    given.len() == expected.len() && bool::from(given.ct_eq(expected))
}

fn fresh(timestamp: &str, now: DateTime<Utc>) -> bool {
    let digits = !timestamp.is_empty() && timestamp.len() <= 12 && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    match timestamp.parse::<i64>() {
        Ok(seconds) if digits => (now.timestamp() - seconds).abs() <= TOLERANCE_S,
        Ok(_) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/signatures.json")).unwrap()
    }

    fn now(offset: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_764_000_000 + offset, 0).unwrap()
    }

    #[test]
    fn the_vectors_of_rfc_4231_hold() {
        for vector in vectors()["hmac_sha256"].as_array().unwrap() {
            let bytes = |name: &str| hex::decode(vector[name].as_str().unwrap()).unwrap();
            assert_eq!(
                hex::encode(hmac_sha256(&bytes("key_hex"), &[&bytes("data_hex")])),
                vector["mac"].as_str().unwrap()
            );
        }
    }

    #[test]
    fn meta_signs_the_body_with_the_app_secret() {
        let v = vectors();
        let (header, body) = (v["meta_header"].as_str().unwrap(), v["body_meta"].as_str().unwrap().as_bytes());
        let secret = v["meta_secret"].as_str().unwrap();
        assert!(meta(Some(header), body, &[secret]));
        assert!(meta(Some(header), body, &["new", secret]), "the previous secret still counts");
        let shouted = format!("sha256={}", header["sha256=".len()..].to_uppercase());
        assert!(meta(Some(&shouted), body, &[secret]), "upper-case digits are accepted");
        let mut changed = body.to_vec();
        changed[0] ^= 1;
        for (header, body, secrets) in [
            (Some(header), changed.as_slice(), &[secret] as &[&str]),
            (Some(header), body, &["other"]),
            (Some(header), body, &[""]),
            (Some(header), body, &[]),
            (Some(&header["sha256=".len()..]), body, &[secret]),
            (Some(&header[..header.len() - 2]), body, &[secret]),
            (Some(&header[..header.len() - 1]), body, &[secret]),
            (Some("sha256="), body, &[secret]),
            (Some(""), body, &[secret]),
            (None, body, &[secret]),
        ] {
            assert!(!meta(header, body, secrets), "{header:?}");
        }
    }

    #[test]
    fn an_empty_secret_signs_for_nobody() {
        let forged = format!("sha256={}", hex::encode(hmac_sha256(b"", &[b"body"])));
        assert!(!meta(Some(&forged), b"body", &[""]));
        assert!(!equals_any("", &[""]));
        assert!(!bearer(Some("Bearer "), &[""]));
    }

    #[test]
    fn our_own_scheme_needs_a_fresh_timestamp() {
        let v = &vectors()["timestamped"];
        let text = |name: &str| v[name].as_str().unwrap();
        let check = |signature: &str, timestamp: &str, offset| {
            timestamped(Some(signature), Some(timestamp), text("body").as_bytes(), &[text("secret")], now(offset))
        };
        assert_eq!(sign(text("secret"), text("timestamp"), text("body").as_bytes()), text("signature"));
        assert!(check(text("signature"), text("timestamp"), 0));
        assert!(check(text("signature"), text("timestamp"), 300));
        assert!(check(text("signature"), text("timestamp"), -300));
        assert!(!check(text("signature"), text("timestamp"), 301));
        assert!(!check(text("signature"), text("timestamp"), -301));
        assert!(!check(text("signature"), "1764000001", 0));
        assert!(!check(text("signature"), "-1764000000", 0));
        assert!(!check(text("signature"), "", 0));
        assert!(!timestamped(Some(text("signature")), None, text("body").as_bytes(), &[text("secret")], now(0)));
    }

    #[test]
    fn a_bearer_is_compared_whole() {
        assert!(bearer(Some("Bearer abc"), &["xyz", "abc"]));
        assert!(bearer(Some("bearer  abc "), &["abc"]));
        for header in [None, Some(""), Some("abc"), Some("Basic abc"), Some("Bearer ab"), Some("Bearer abcd")] {
            assert!(!bearer(header, &["abc"]), "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(a in "\\PC{0,80}", b in "\\PC{0,80}", body: Vec<u8>) {
            let secrets = ["s1", "s2"];
            let (a, b) = (Some(a.as_str()), Some(b.as_str()));
            prop_assert!(!meta(a, &body, &secrets) && !timestamped(a, b, &body, &secrets, now(0)));
            prop_assert!(!bearer(a, &secrets));
        }

        #[test]
        fn what_we_sign_we_accept_and_one_flipped_bit_we_do_not(body: Vec<u8>, secret in "[!-~]{1,40}", flip: prop::sample::Index) {
            let signature = sign(&secret, "1764000000", &body);
            prop_assert!(timestamped(Some(&signature), Some("1764000000"), &body, &[&secret], now(0)));
            if !body.is_empty() {
                let mut changed = body.clone();
                let at = flip.index(changed.len());
                changed[at] ^= 1;
                prop_assert!(!timestamped(Some(&signature), Some("1764000000"), &changed, &[&secret], now(0)));
            }
        }
    }
}
