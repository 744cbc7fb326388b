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

/// Compares two texts without telling by its time where they differ; the length is hidden too.
pub fn equal(presented: &str, expected: &str) -> bool {
    let of = |text: &str| hmac_sha256(b"ihuza-equal", &[text.as_bytes()]);
    !expected.is_empty() && bool::from(of(presented).ct_eq(&of(expected)))
}

/// Whether `presented` is one of the secrets. Empty secrets never match.
pub fn equals_any<S: AsRef<str>>(presented: &str, secrets: &[S]) -> bool {
    // Every secret is looked at, so that time does not tell which one matched.
    secrets.iter().fold(false, |found, secret| {
        equal(presented, secret.as_ref()) | found
    })
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
    out.push_str(&hex::encode(hmac_sha256(
        secret.as_bytes(),
        &[timestamp.as_bytes(), b".", body],
    )));
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
        let expected = hmac_sha256(
            &key,
            &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body],
        );
        for given in signature
            .split(' ')
            .take(8)
            .filter_map(|part| part.strip_prefix("v1,"))
        {
            found |= Base64::decode_vec(given).is_ok_and(|given| same_bytes(&given, &expected));
        }
    }
    found
}

/// Stripe's form, `t=<unix>,v1=<hex>[,v1=<hex>]` over `{t}.{body}`; the whole secret text is the key.
pub fn stripe_style<S: AsRef<str>>(
    header: Option<&str>,
    body: &[u8],
    secrets: &[S],
    now: DateTime<Utc>,
) -> bool {
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
    secrets
        .iter()
        .filter(|secret| !secret.as_ref().is_empty())
        .fold(false, |found, secret| {
            let expected = hmac_sha256(
                secret.as_ref().as_bytes(),
                &[timestamp.as_bytes(), b".", body],
            );
            given
                .iter()
                .fold(found, |found, given| found | same_bytes(given, &expected))
        })
}

/// Twilio's `X-Twilio-Signature`: HMAC-SHA1 in base64 over the URL and all form parameters, sorted by name; several values
/// of one name sorted and without repeats. Tried with and without the scheme's own port, as Twilio's libraries do.
pub fn twilio<S: AsRef<str>>(
    header: Option<&str>,
    url: &str,
    form: &[(String, String)],
    tokens: &[S],
) -> bool {
    let Some(Ok(given)) = header.map(|header| Base64::decode_vec(header.trim())) else {
        return false;
    };
    let mut pairs: Vec<(&str, &str)> = form
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    let mut found = false;
    for token in tokens
        .iter()
        .map(AsRef::as_ref)
        .filter(|token| !token.is_empty())
    {
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
    Base64::decode_vec(encoded)
        .ok()
        .filter(|key| !key.is_empty())
}

fn prefixed_hex<S: AsRef<str>>(header: Option<&str>, parts: &[&[u8]], secrets: &[S]) -> bool {
    let given = header.and_then(|header| header.trim().strip_prefix("sha256="));
    let Some(Ok(given)) = given.map(hex::decode) else {
        return false;
    };
    secrets
        .iter()
        .filter(|secret| !secret.as_ref().is_empty())
        .fold(false, |found, secret| {
            found | same_bytes(&given, &hmac_sha256(secret.as_ref().as_bytes(), parts))
        })
}

fn same_bytes(given: &[u8], expected: &[u8]) -> bool {
    given.len() == expected.len() && bool::from(given.ct_eq(expected))
}

fn fresh(timestamp: &str, now: DateTime<Utc>) -> bool {
    let digits = !timestamp.is_empty()
        && timestamp.len() <= 12
        && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    match timestamp.parse::<i64>() {
        Ok(seconds) if digits => (now.timestamp() - seconds).abs() <= TOLERANCE_S,
        Ok(_) | Err(_) => false,
    }
}
