//! Proof that a gateway is who it says. Either it holds the trunk's secret and shows it in the head of its request, or
//! whoever sends it here has signed one call for it: `<trunk>.<expires>.<signature>`, good for a minute and once.

use std::collections::VecDeque;

use ihuza_core::signature::{equal, hmac_sha256};

/// A token is good for so long at most.
const LONGEST_S: i64 = 60;
/// The clocks of others.
const LEEWAY_S: i64 = 5;
/// Tokens that are remembered; beyond it none is taken, for one that is forgotten could be used again.
const MOST_REMEMBERED: usize = 10_000;

/// Why a token is not taken. For the log: a gateway only hears that it was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not of the form of one.
    #[error("the token is not of the form <trunk>.<expires>.<signature>")]
    Malformed,
    /// No trunk of that name takes gateways.
    #[error("the token names a trunk that takes no gateways")]
    UnknownTrunk,
    /// Another secret, or another call.
    #[error("the token was signed with another secret or for another call")]
    Signature,
    /// Too old, or good for longer than it may be.
    #[error("the token has expired, or is good for more than 60 s")]
    Expired,
    /// It was used before.
    #[error("the token was used before")]
    Used,
    /// Too many of them at a time.
    #[error("too many tokens were used within a minute")]
    TooMany,
}

/// The token by which `trunk` may bring the call `call_sid` until `expires` (Unix seconds): the signature is the
/// HMAC-SHA256 of `<trunk>.<expires>.<call_sid>` with the trunk's secret, in small hexadecimal digits.
pub fn sign(secret: &str, trunk: &str, call_sid: &str, expires: i64) -> String {
    format!("{trunk}.{expires}.{}", signature(secret, trunk, call_sid, expires))
}

fn signature(secret: &str, trunk: &str, call_sid: &str, expires: i64) -> String {
    let expires = expires.to_string();
    let parts = [trunk.as_bytes(), b".", expires.as_bytes(), b".", call_sid.as_bytes()];
    hmac_sha256(secret.as_bytes(), &parts).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tokens that were used and could be used again.
#[derive(Debug, Default)]
pub struct Tokens {
    used: VecDeque<(i64, String)>,
}

impl Tokens {
    /// Takes a token for a call; the trunk that it was signed for. `secret_of` gives the secret of a trunk.
    pub fn take<'t, 's>(
        &mut self,
        now_s: i64,
        token: &'t str,
        call_sid: &str,
        secret_of: impl Fn(&str) -> Option<&'s str>,
    ) -> Result<&'t str, Rejected> {
        let mut parts = token.splitn(3, '.');
        let (Some(trunk), Some(given), Some(signed)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Rejected::Malformed);
        };
        // Written in one way only: a token has no second spelling.
        let expires =
            given.parse().ok().filter(|expires: &i64| expires.to_string() == given).ok_or(Rejected::Malformed)?;
        let secret = secret_of(trunk).filter(|secret| !secret.is_empty()).ok_or(Rejected::UnknownTrunk)?;
        if !equal(signed, &signature(secret, trunk, call_sid, expires)) {
            return Err(Rejected::Signature);
        }
        if expires <= now_s - LEEWAY_S || expires > now_s + LONGEST_S + LEEWAY_S {
            return Err(Rejected::Expired);
        }
        self.used.retain(|(until, _)| *until > now_s - LEEWAY_S);
        if self.used.iter().any(|(_, known)| known == signed) {
            return Err(Rejected::Used);
        }
        if self.used.len() == MOST_REMEMBERED {
            return Err(Rejected::TooMany);
        }
        self.used.push_back((expires, signed.to_owned()));
        Ok(trunk)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret_of(trunk: &str) -> Option<&'static str> {
        match trunk {
            "mtn-ws" => Some("secret"),
            "careless" => Some(""),
            _ => None,
        }
    }

    fn take(tokens: &mut Tokens, now_s: i64, token: &str, call_sid: &str) -> Result<String, Rejected> {
        tokens.take(now_s, token, call_sid, secret_of).map(str::to_owned)
    }

    #[test]
    fn a_token_is_good_for_its_call_for_a_minute_and_once() {
        let mut tokens = Tokens::default();
        let token = sign("secret", "mtn-ws", "CA1", 1060);
        assert_eq!(take(&mut tokens, 1000, &token, "CA2"), Err(Rejected::Signature), "another call");
        assert_eq!(take(&mut tokens, 1066, &token, "CA1"), Err(Rejected::Expired));
        assert_eq!(take(&mut tokens, 900, &token, "CA1"), Err(Rejected::Expired), "good for too long");
        assert_eq!(take(&mut tokens, 1000, &token, "CA1"), Ok("mtn-ws".into()));
        assert_eq!(take(&mut tokens, 1001, &token, "CA1"), Err(Rejected::Used));
        take(&mut tokens, 2000, &sign("secret", "mtn-ws", "CA2", 2010), "CA2").unwrap();
        assert_eq!(tokens.used.len(), 1, "what cannot be used again is forgotten");
    }

    #[test]
    fn a_signature_of_another_or_of_nobody_is_no_proof() {
        let mut tokens = Tokens::default();
        for (token, why) in [
            (sign("guess", "mtn-ws", "CA1", 1060), Rejected::Signature),
            (sign("secret", "other", "CA1", 1060), Rejected::UnknownTrunk),
            (sign("", "careless", "CA1", 1060), Rejected::UnknownTrunk),
            ("mtn-ws.1060".into(), Rejected::Malformed),
            ("mtn-ws.soon.ab".into(), Rejected::Malformed),
            (sign("secret", "mtn-ws", "CA1", 1060).replace(".1060.", ".+1060."), Rejected::Malformed),
            ("mtn-ws.1060.".into(), Rejected::Signature),
        ] {
            assert_eq!(take(&mut tokens, 1000, &token, "CA1"), Err(why), "{token}");
        }
    }

    #[test]
    fn the_signature_is_what_the_documents_say() {
        // printf 'mtn-ws.1060.CA1' | openssl dgst -sha256 -hmac secret
        let token = sign("secret", "mtn-ws", "CA1", 1060);
        assert_eq!(token, format!("mtn-ws.1060.{KNOWN}"));
    }

    const KNOWN: &str = "e356d36e6ee34f603bc36d4b2e238ebc83a7787ae554acf7572e1877c574c359";

    proptest! {
        #[test]
        fn no_other_text_is_taken(token in "[a-z0-9.-]{0,120}", now in 0_i64..4_000_000_000) {
            prop_assert!(take(&mut Tokens::default(), now, &token, "CA1").is_err());
        }
    }
}
