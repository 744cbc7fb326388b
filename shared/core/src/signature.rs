//! Proof of who sent a request: HMAC signatures and bearer tokens.
//!
//! Every check takes a list of secrets (current and previous) so that they can be changed without an outage, compares in
//! constant time, and answers yes or no without a reason. Verify the bytes as they came, before they are parsed.

use base64ct::{Base64, Encoding};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::form;

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

/// Twilio's `X-Twilio-Signature` (Twilio docs, usage/webhooks/webhooks-security): HMAC-SHA1 with the account's auth token over
/// the URL, query included, and every parameter's name and value, sorted by name; base64. A value given twice counts once.
///
/// `url` is the address that Twilio was given. Whether it writes the scheme's own port is not said anywhere, so both spellings are
/// tried, as Twilio's libraries do.
pub fn twilio<S: AsRef<str>>(header: Option<&str>, url: &str, parameters: &[(String, String)], tokens: &[S]) -> bool {
    let Some(given) = header.map(str::trim) else {
        return false;
    };
    let mut sorted: Vec<&(String, String)> = parameters.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let other = with_or_without_port(url);
    let spellings = [Some(url), other.as_deref()];
    let mut found = false;
    for url in spellings.into_iter().flatten() {
        for token in tokens.iter().map(AsRef::as_ref).filter(|token| !token.is_empty()) {
            let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(token.as_bytes()) else {
                continue;
            };
            mac.update(url.as_bytes());
            for (name, value) in &sorted {
                mac.update(name.as_bytes());
                mac.update(value.as_bytes());
            }
            found |= equal(given, &Base64::encode_string(&mac.finalize().into_bytes()));
        }
    }
    found
}

/// The same over a JSON body: the query's `bodySHA256` is the body's digest in hex, and the URL is signed without parameters.
pub fn twilio_json<S: AsRef<str>>(header: Option<&str>, url: &str, body: &[u8], tokens: &[S]) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let announced = form::parse(query).into_iter().find(|(name, _)| name == "bodySHA256");
    let Some(Ok(announced)) = announced.map(|(_, digest)| hex::decode(digest)) else {
        return false;
    };
    same_bytes(&announced, &Sha256::digest(body)) & twilio(header, url, &[], tokens)
}

/// The other way to write this URL: without the port that its scheme has anyway, or with it. None for another port.
fn with_or_without_port(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let (host, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if let Some(bare) = host.strip_suffix(port) {
        return Some([scheme, "://", bare, tail].concat());
    }
    // The colons of an IPv6 address stand in brackets.
    let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
    (!has_port).then(|| [scheme, "://", host, port, tail].concat())
}

/// Standard Webhooks (its specification, "Signature scheme"; OpenAI's webhooks): one of the `v1,<base64>` in `webhook-signature`
/// is HMAC-SHA256 over `{webhook-id}.{webhook-timestamp}.{body}`, the timestamp within [`TOLERANCE_S`] of now. The key is what
/// follows `whsec_` in the secret, in base64; a secret without that prefix is the key itself.
pub fn standard_webhook<S: AsRef<str>>(
    id: Option<&str>,
    timestamp: Option<&str>,
    signatures: Option<&str>,
    body: &[u8],
    secrets: &[S],
    now: DateTime<Utc>,
) -> bool {
    let (Some(id), Some(timestamp), Some(signatures)) = (id, timestamp, signatures) else {
        return false;
    };
    if id.is_empty() || !fresh(timestamp, now) {
        return false;
    }
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    let mut found = false;
    for secret in secrets.iter().map(AsRef::as_ref).filter(|secret| !secret.is_empty()) {
        let key = match secret.strip_prefix("whsec_") {
            Some(written) => Base64::decode_vec(written).unwrap_or_default(),
            None => secret.as_bytes().to_vec(),
        };
        // What is no base64 signs for nobody.
        if key.is_empty() {
            continue;
        }
        let expected = hmac_sha256(&key, &signed);
        // More than a few are none of a rotation's.
        for given in signatures.split(' ').take(16).filter_map(|entry| entry.strip_prefix("v1,")) {
            let mut decoded = [0; 32];
            found |= Base64::decode(given, &mut decoded).is_ok_and(|given| same_bytes(given, &expected));
        }
    }
    found
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
    fn twilio_signs_the_address_and_every_parameter() {
        let v = vectors();
        let text = |name: &str| v["twilio"][name].as_str().unwrap();
        let (token, url, signature) = (text("token"), text("url"), text("signature"));
        let parameters = form::parse(text("form"));
        assert!(twilio(Some(signature), url, &parameters, &[token]));
        assert!(
            twilio(Some(&format!(" {signature} ")), url, &parameters, &["new", token]),
            "the previous token counts"
        );
        let mut order = parameters.clone();
        order.reverse();
        assert!(twilio(Some(signature), url, &order, &[token]), "in any order");
        order.push(order[0].clone());
        assert!(twilio(Some(signature), url, &order, &[token]), "a value given twice counts once");
        let with_port = url.replace(".rw/", ".rw:443/");
        assert!(twilio(Some(signature), &with_port, &parameters, &[token]));
        assert!(twilio(Some(text("signature_with_port")), url, &parameters, &[token]));
        let mut more = parameters.clone();
        more.push(("New".to_owned(), String::new()));
        let mut changed = parameters.clone();
        changed[4].1 = "failed".to_owned();
        for (header, url, parameters, tokens) in [
            (Some(signature), url, &more, &[token] as &[&str]),
            (Some(signature), url, &changed, &[token]),
            (Some(signature), url, &Vec::new(), &[token]),
            (Some(signature), "https://edge.example.rw/v1/sms/twilio/Status", &parameters, &[token]),
            (Some(signature), "https://edge.example.rw/v1/sms/twilio/status?a=1", &parameters, &[token]),
            (Some(signature), "https://edge.example.rw:8443/v1/sms/twilio/status", &parameters, &[token]),
            (Some(signature), "http://edge.example.rw/v1/sms/twilio/status", &parameters, &[token]),
            (Some(signature), "", &parameters, &[token]),
            (Some(signature), url, &parameters, &["other"]),
            (Some(signature), url, &parameters, &[""]),
            (Some(signature), url, &parameters, &[]),
            (Some(&signature[..27]), url, &parameters, &[token]),
            (Some(&signature.to_lowercase()), url, &parameters, &[token]),
            (Some(""), url, &parameters, &[token]),
            (None, url, &parameters, &[token]),
        ] {
            assert!(!twilio(header, url, parameters, tokens), "{header:?} {url}");
        }
    }

    #[test]
    fn twilio_signs_a_json_body_by_its_digest_in_the_address() {
        let v = vectors();
        let text = |name: &str| v["twilio"][name].as_str().unwrap();
        let (token, url, signature, body) = (text("token"), text("json_url"), text("json_signature"), text("json"));
        let check = |url: &str, body: &str| twilio_json(Some(signature), url, body.as_bytes(), &[token]);
        assert!(check(url, body));
        assert!(!check(url, &body.replace("delivered", "failed")));
        assert!(!check(&url.replace("bodySHA256", "bodySHA25"), body));
        assert!(!check(text("url"), body));
        assert!(!check(&url[..url.len() - 1], body));
        assert!(!twilio_json(Some(text("signature")), url, body.as_bytes(), &[token]));
    }

    #[test]
    fn a_url_is_written_with_or_without_the_port_of_its_scheme() {
        for (url, other) in [
            ("https://e.rw/a?b=c:443", Some("https://e.rw:443/a?b=c:443")),
            ("https://e.rw:443/a", Some("https://e.rw/a")),
            ("http://e.rw?x=/", Some("http://e.rw:80?x=/")),
            ("https://[::1]/a", Some("https://[::1]:443/a")),
            ("https://[::1]:443/a", Some("https://[::1]/a")),
            ("https://e.rw:8443/a", None),
            ("ftp://e.rw/a", None),
            ("e.rw/a", None),
        ] {
            assert_eq!(with_or_without_port(url).as_deref(), other, "{url}");
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
    fn a_standard_webhook_is_signed_over_its_id_its_time_and_its_body() {
        let v = &vectors()["standard_webhook"];
        let text = |name: &str| v[name].as_str().unwrap();
        let (id, at, signature, body) = (text("id"), text("timestamp"), text("signature"), text("body").as_bytes());
        let check = |id: &str, at: &str, signature: &str, body: &[u8], secrets: &[&str], offset| {
            standard_webhook(Some(id), Some(at), Some(signature), body, secrets, now(offset))
        };
        let secrets = &[text("secret")];
        assert!(check(id, at, signature, body, secrets, 0));
        for offset in [300, -300] {
            assert!(check(id, at, signature, body, secrets, offset));
        }
        assert!(check(id, at, signature, body, &["whsec_bmV3", text("secret")], 0), "the previous secret still counts");
        assert!(check(id, at, &format!("v1a,AAAA v1,bad {signature}"), body, secrets, 0), "any of them counts");
        let raw = "whsec-less secret";
        let mac =
            Base64::encode_string(&hmac_sha256(raw.as_bytes(), &[id.as_bytes(), b".", at.as_bytes(), b".", body]));
        assert!(check(id, at, &format!("v1,{mac}"), body, &[raw], 0));
        for (id, at, signature, body, secrets, offset) in [
            (id, at, signature, body, secrets, 301),
            (id, at, signature, body, secrets, -301),
            ("msg_other", at, signature, body, secrets, 0),
            (id, "1764000001", signature, body, secrets, 0),
            (id, "", signature, body, secrets, 0),
            (id, "-1764000000", signature, body, secrets, 0),
            ("", at, signature, body, secrets, 0),
            (id, at, &signature[3..], body, secrets, 0),
            (id, at, &signature.replace("v1,", "v2,"), body, secrets, 0),
            (id, at, &signature[..signature.len() - 1], body, secrets, 0),
            (id, at, "", body, secrets, 0),
            (id, at, signature, &body[1..], secrets, 0),
            (id, at, signature, body, &["whsec_bmV3"], 0),
            (id, at, signature, body, &["whsec_"], 0),
            (id, at, signature, body, &["whsec_!"], 0),
            (id, at, signature, body, &[""], 0),
        ] {
            assert!(!check(id, at, signature, body, secrets, offset), "{id} {at} {signature} {secrets:?} {offset}");
        }
        let empty = Base64::encode_string(&hmac_sha256(b"", &[id.as_bytes(), b".", at.as_bytes(), b".", body]));
        assert!(!check(id, at, &format!("v1,{empty}"), body, &["whsec_"], 0), "an empty key signs for nobody");
        assert!(!standard_webhook(None, Some(at), Some(signature), body, secrets, now(0)));
        assert!(!standard_webhook(Some(id), None, Some(signature), body, secrets, now(0)));
        assert!(!standard_webhook(Some(id), Some(at), None, body, secrets, now(0)));
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
            prop_assert!(!standard_webhook(a, Some("1764000000"), b, &body, &secrets, now(0)));
            let url = b.unwrap_or_default();
            let parameters = [(url.to_owned(), url.to_owned())];
            prop_assert!(!twilio(a, url, &parameters, &secrets) && !twilio_json(a, url, &body, &secrets));
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
