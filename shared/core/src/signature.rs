//! Proof of who sent a request: HMAC signatures, bearer tokens, Standard Webhooks.
//!
//! Every check takes a list of secrets (current and previous) so that they can be changed without an outage, compares in
//! constant time, and answers yes or no without a reason. Verify the bytes as they came, before they are parsed.

use base64ct::{Base64, Encoding};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use sha1::Sha1;
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

/// HMAC-SHA256 as 64 lower-case hexadecimal digits.
pub fn hmac_sha256_hex(key: &[u8], message: &[u8]) -> String {
    hex::encode(hmac_sha256(key, &[message]))
}

/// HMAC-SHA256 in padded base64.
pub fn hmac_sha256_base64(key: &[u8], message: &[u8]) -> String {
    Base64::encode_string(&hmac_sha256(key, &[message]))
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

/// What [`timestamped`] accepts; for tests and for callers of ours.
pub fn sign_timestamped(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let mut out = String::from("sha256=");
    out.push_str(&hex::encode(hmac_sha256(secret.as_bytes(), &[timestamp.as_bytes(), b".", body])));
    out
}

/// Standard Webhooks (OpenAI, Svix): `webhook-id`, `webhook-timestamp`, `webhook-signature`, secrets as `whsec_<base64>`.
pub fn standard_webhook<S: AsRef<str>>(
    id: Option<&str>,
    timestamp: Option<&str>,
    signature: Option<&str>,
    body: &[u8],
    secrets: &[S],
    now: DateTime<Utc>,
) -> bool {
    let (Some(id), Some(timestamp), Some(signature)) = (id, timestamp, signature) else {
        return false;
    };
    if id.is_empty() || !fresh(timestamp, now) {
        return false;
    }
    let mut found = false;
    for secret in secrets {
        let Some(key) = standard_webhook_key(secret.as_ref()) else {
            continue;
        };
        let expected = hmac_sha256(&key, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
        for given in signature.split(' ').take(8).filter_map(|part| part.strip_prefix("v1,")) {
            found |= Base64::decode_vec(given).is_ok_and(|given| same_bytes(&given, &expected));
        }
    }
    found
}

/// Stripe's form, `t=<unix>,v1=<hex>[,v1=<hex>]` over `{t}.{body}`; the whole secret text is the key.
pub fn stripe_style<S: AsRef<str>>(header: Option<&str>, body: &[u8], secrets: &[S], now: DateTime<Utc>) -> bool {
    let Some(header) = header else { return false };
    let mut timestamp = None;
    let mut given = Vec::new();
    for part in header.split(',').take(16) {
        match part.trim().split_once('=') {
            Some(("t", value)) => timestamp = Some(value),
            Some(("v1", value)) => given.extend(hex::decode(value)),
            Some(_) | None => {}
        }
    }
    let Some(timestamp) = timestamp.filter(|timestamp| fresh(timestamp, now)) else {
        return false;
    };
    secrets.iter().filter(|secret| !secret.as_ref().is_empty()).fold(false, |found, secret| {
        let expected = hmac_sha256(secret.as_ref().as_bytes(), &[timestamp.as_bytes(), b".", body]);
        given.iter().fold(found, |found, given| found | same_bytes(given, &expected))
    })
}

/// Twilio's `X-Twilio-Signature`: HMAC-SHA1 in base64 over the URL and all form parameters, sorted by name; several values
/// of one name sorted and without repeats. Tried with and without the scheme's own port, as Twilio's libraries do.
pub fn twilio<S: AsRef<str>>(header: Option<&str>, url: &str, form: &[(String, String)], tokens: &[S]) -> bool {
    let Some(Ok(given)) = header.map(|header| Base64::decode_vec(header.trim())) else {
        return false;
    };
    let mut pairs: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    pairs.sort_unstable();
    pairs.dedup();
    let mut found = false;
    for token in tokens.iter().map(AsRef::as_ref).filter(|token| !token.is_empty()) {
        for url in url_spellings(url) {
            let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(token.as_bytes()) else {
                continue;
            };
            mac.update(url.as_bytes());
            for (name, value) in &pairs {
                mac.update(name.as_bytes());
                mac.update(value.as_bytes());
            }
            found |= same_bytes(&given, &mac.finalize().into_bytes());
        }
    }
    found
}

fn url_spellings(url: &str) -> Vec<String> {
    let mut spellings = vec![url.to_owned()];
    for (scheme, port) in [("https://", ":443"), ("http://", ":80")] {
        let Some(rest) = url.strip_prefix(scheme) else {
            continue;
        };
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let host = match host.strip_suffix(port) {
            Some(bare) => bare.to_owned(),
            None if host.contains(':') => continue,
            None => [host, port].concat(),
        };
        spellings.push([scheme, &host, path].concat());
    }
    spellings
}

fn standard_webhook_key(secret: &str) -> Option<Vec<u8>> {
    let encoded = secret.strip_prefix("whsec_").unwrap_or(secret);
    Base64::decode_vec(encoded).ok().filter(|key| !key.is_empty())
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
            assert_eq!(hmac_sha256_hex(&bytes("key_hex"), &bytes("data_hex")), vector["mac"].as_str().unwrap());
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
        let forged = format!("sha256={}", hmac_sha256_hex(b"", b"body"));
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
        assert_eq!(sign_timestamped(text("secret"), text("timestamp"), text("body").as_bytes()), text("signature"));
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
    fn standard_webhooks_are_verified() {
        let v = vectors();
        let (s, body) = (&v["standard_webhooks"], v["body_event"].as_str().unwrap().as_bytes());
        let text = |name: &str| s[name].as_str().unwrap();
        let check = |signature: &str, timestamp: &str, body: &[u8], offset| {
            standard_webhook(Some(text("id")), Some(timestamp), Some(signature), body, &[text("secret")], now(offset))
        };
        let good = text("signature");
        assert!(check(good, text("timestamp"), body, 0));
        assert!(check(&format!("v1a,xx v2,yy v1,AAAA {good}"), text("timestamp"), body, 0));
        assert!(!check(good, text("timestamp"), b"{}", 0));
        assert!(!check(good, text("timestamp"), body, 301));
        assert!(!check(good, text("timestamp"), body, -301));
        assert!(!check(&good.replace("v1,", "v2,"), text("timestamp"), body, 0));
        assert!(!check("v1,", text("timestamp"), body, 0));
        assert!(!check("", text("timestamp"), body, 0));
        assert!(!standard_webhook(None, Some(text("timestamp")), Some(good), body, &[text("secret")], now(0)));
        assert!(!standard_webhook(Some(text("id")), Some(text("timestamp")), Some(good), body, &["whsec_"], now(0)));
    }

    #[test]
    fn stripe_style_is_verified() {
        let v = vectors();
        let (s, body) = (&v["stripe_style"], v["body_event"].as_str().unwrap().as_bytes());
        let (secret, mac) = (s["secret"].as_str().unwrap(), s["mac"].as_str().unwrap());
        assert!(stripe_style(Some(&format!("t=1764000000,v0=00,v1=abcd,v1={mac}")), body, &[secret], now(10)));
        assert!(!stripe_style(Some(&format!("t=1764000000,v1={mac}")), body, &[secret], now(301)));
        assert!(!stripe_style(Some(&format!("t=1764000001,v1={mac}")), body, &[secret], now(0)));
        assert!(!stripe_style(Some(&format!("t=1764000000,v0={mac}")), body, &[secret], now(0)));
    }

    #[test]
    fn twilio_signs_the_address_and_the_sorted_form() {
        let v = &vectors()["twilio"];
        let text = |name: &str| v[name].as_str().unwrap();
        let mut form = crate::form::parse(text("form"));
        form.reverse();
        let check = |url: &str, form: &[(String, String)]| twilio(Some(text("signature")), url, form, &[text("token")]);
        assert!(check(text("url"), &form));
        assert!(check("https://edge.example.rw:443/v1/sms/twilio/status", &form), "with the port of the scheme");
        assert!(!check("https://edge.example.rw:8443/v1/sms/twilio/status", &form));
        assert!(!check("https://edge.example.rw/v1/sms/twilio/status?x=1", &form));
        form.push(("Extra".into(), "1".into()));
        assert!(!check(text("url"), &form));
        assert!(!twilio(None, text("url"), &form, &[text("token")]));
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
            let secrets = ["s1", "whsec_c2VjcmV0"];
            let (a, b) = (Some(a.as_str()), Some(b.as_str()));
            prop_assert!(!meta(a, &body, &secrets) && !timestamped(a, b, &body, &secrets, now(0)));
            prop_assert!(!standard_webhook(a, b, a, &body, &secrets, now(0)));
            prop_assert!(!stripe_style(a, &body, &secrets, now(0)) && !bearer(a, &secrets));
            prop_assert!(!twilio(a, b.unwrap_or(""), &[], &secrets));
        }

        #[test]
        fn what_we_sign_we_accept_and_one_flipped_bit_we_do_not(body: Vec<u8>, secret in "[!-~]{1,40}", flip: prop::sample::Index) {
            let signature = sign_timestamped(&secret, "1764000000", &body);
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
