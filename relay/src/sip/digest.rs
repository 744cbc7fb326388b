//! Digest authentication of a trunk's calls (RFC 7616, RFC 8760), for carriers that do not rely on addresses alone.
//!
//! A nonce carries its own time and is signed, so that nothing is kept for whoever only asks; what is kept is how often
//! a nonce was used, so that a request that was overheard cannot be sent again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::moment::Moment;

const REALM: &str = "ihuza";
const LIFE: Duration = Duration::from_secs(300);
/// Used nonces that are remembered; only who knows the password can make us remember one.
const MOST_NONCES: usize = 4096;
/// Longer ones are no credentials.
const MOST_BYTES: usize = 2048;

/// Who may call.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// The name.
    pub username: &'a str,
    /// The password.
    pub password: &'a str,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is from whom it says.
    Accepted,
    /// It is to be sent again with these challenges answered, the strongest first.
    Challenged(Vec<String>),
}

/// The challenges for a peer that stops at one it does not know, though RFC 8760 §2.4 wants it to look at the next.
pub fn md5_only(mut challenges: Vec<String>) -> Vec<String> {
    challenges.retain(|challenge| challenge.contains("algorithm=MD5"));
    challenges
}

/// Checks credentials.
pub struct Authenticator {
    key: [u8; 64],
    used: HashMap<String, u32>,
    order: VecDeque<String>,
}

impl Authenticator {
    /// `key` is random and known to nobody else.
    pub fn new(key: [u8; 64]) -> Authenticator {
        Authenticator { key, used: HashMap::new(), order: VecDeque::new() }
    }

    /// Judges the `Authorization` header of a request.
    pub fn check(&mut self, now: Moment, header: Option<&str>, method: &str, credentials: Credentials) -> Verdict {
        let Some(given) = header.and_then(Given::parse) else { return self.challenge(now, false) };
        if !self.is_ours(&given.nonce) || !given.matches(method, credentials) {
            return self.challenge(now, false);
        }
        // The password is right; what is wrong from here on is only old.
        if self.age(now, &given.nonce) > LIFE || !self.is_fresh(&given.nonce, given.count) {
            return self.challenge(now, true);
        }
        Verdict::Accepted
    }

    fn challenge(&self, now: Moment, stale: bool) -> Verdict {
        let nonce = self.nonce(now);
        let stale = if stale { ", stale=true" } else { "" };
        let of = |algorithm: &str| {
            format!(r#"Digest realm="{REALM}", nonce="{nonce}", algorithm={algorithm}, qop="auth"{stale}"#)
        };
        Verdict::Challenged(vec![of("SHA-256"), of("MD5")])
    }

    fn nonce(&self, now: Moment) -> String {
        let time = format!("{:016x}", now.as_micros());
        format!("{time}{}", self.sign(&time))
    }

    fn sign(&self, time: &str) -> String {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        mac.update(time.as_bytes());
        hex(&mac.finalize().into_bytes())
    }

    fn is_ours(&self, nonce: &str) -> bool {
        nonce.split_at_checked(16).is_some_and(|(time, signature)| same(&self.sign(time), signature))
    }

    fn age(&self, now: Moment, nonce: &str) -> Duration {
        let issued = nonce.get(..16).and_then(|time| u64::from_str_radix(time, 16).ok()).unwrap_or(0);
        now.since(Moment::from_micros(issued))
    }

    /// Whether the count of a nonce has grown; it is remembered then.
    fn is_fresh(&mut self, nonce: &str, count: u32) -> bool {
        if let Some(used) = self.used.get_mut(nonce) {
            let grown = count > *used;
            *used = count.max(*used);
            return grown;
        }
        if self.order.len() == MOST_NONCES
            && let Some(eldest) = self.order.pop_front()
        {
            self.used.remove(&eldest);
        }
        self.order.push_back(nonce.to_owned());
        self.used.insert(nonce.to_owned(), count);
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Md5,
    Sha256,
}

impl Algorithm {
    fn hash(self, parts: &[&str]) -> String {
        let text = parts.join(":");
        match self {
            Algorithm::Md5 => hex(&Md5::digest(text.as_bytes())),
            Algorithm::Sha256 => hex(&Sha256::digest(text.as_bytes())),
        }
    }
}

/// What a header says. Only `qop=auth` is taken: without it nothing stops a replay.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    username: String,
    realm: String,
    nonce: String,
    uri: String,
    response: String,
    algorithm: String,
    cnonce: String,
    count_text: String,
    count: u32,
}

impl Given {
    fn parse(header: &str) -> Option<Given> {
        let header = header.trim();
        let (scheme, mut rest) = header.split_once(char::is_whitespace).filter(|_| header.len() <= MOST_BYTES)?;
        if !scheme.eq_ignore_ascii_case("digest") {
            return None;
        }
        let mut given = Given { algorithm: "MD5".into(), ..Given::default() };
        let mut qop = String::new();
        while !rest.trim().is_empty() {
            let (name, after) = rest.split_once('=')?;
            let (value, after) = value(after.trim_start())?;
            let name = name.trim().to_ascii_lowercase();
            match name.as_str() {
                "username" => given.username = value,
                "realm" => given.realm = value,
                "nonce" => given.nonce = value,
                "uri" => given.uri = value,
                "response" => given.response = value,
                "algorithm" => given.algorithm = value,
                "cnonce" => given.cnonce = value,
                "nc" => given.count_text = value,
                "qop" => qop = value,
                _ => {}
            }
            rest = after;
        }
        given.count = u32::from_str_radix(&given.count_text, 16).ok()?;
        (qop.eq_ignore_ascii_case("auth") && given.count > 0).then_some(given)
    }

    fn matches(&self, method: &str, credentials: Credentials) -> bool {
        let algorithm = match () {
            () if self.algorithm.eq_ignore_ascii_case("SHA-256") => Algorithm::Sha256,
            () if self.algorithm.eq_ignore_ascii_case("MD5") => Algorithm::Md5,
            () => return false,
        };
        let who = algorithm.hash(&[credentials.username, REALM, credentials.password]);
        let what = algorithm.hash(&[method, &self.uri]);
        let expected = algorithm.hash(&[&who, &self.nonce, &self.count_text, &self.cnonce, "auth", &what]);
        let response = self.response.to_ascii_lowercase();
        self.realm == REALM && same(&self.username, credentials.username) && same(&expected, &response)
    }
}

/// Of the challenges to a request of ours, the strongest that the stack can answer, written as it reads it.
///
/// rsipstack 0.7.14 knows `SHA256` where RFC 7616 says `SHA-256`, and one `qop` where there may be a list. It may go when
/// that does.
pub fn readable_challenge(challenges: &[&str]) -> Option<String> {
    let strength = |challenge: &&&str| match parameter(challenge, "algorithm").unwrap_or_default() {
        text if text.eq_ignore_ascii_case("SHA-256") => 2,
        text if text.is_empty() || text.eq_ignore_ascii_case("MD5") => 1,
        _ => 0,
    };
    let best = challenges.iter().filter(|challenge| challenge.len() <= MOST_BYTES && strength(challenge) > 0);
    let best = best.rev().max_by_key(strength)?;
    let (_, rest) = best.trim().split_once(char::is_whitespace)?;
    let mut written = vec![];
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        let name = name.trim();
        let value = match name.to_ascii_lowercase().as_str() {
            "algorithm" if value.eq_ignore_ascii_case("SHA-256") => "SHA256".to_owned(),
            "qop" => value.split(',').map(str::trim).find(|qop| qop.eq_ignore_ascii_case("auth"))?.to_owned(),
            "algorithm" | "stale" => value,
            _ => value.replace(['"', '\\'], ""),
        };
        let quoted = !["algorithm", "stale"].contains(&name.to_ascii_lowercase().as_str());
        written.push(if quoted { format!("{name}=\"{value}\"") } else { format!("{name}={value}") });
        rest = after.trim_start();
    }
    Some(format!("Digest {}", written.join(", ")))
}

/// Credentials of ours as RFC 7616 §3.4 has them: what [`readable_challenge`] changed, changed back.
pub fn standard_credentials(credentials: &str) -> String {
    credentials.replace("algorithm=SHA256", "algorithm=SHA-256").replace("qop=\"auth\"", "qop=auth")
}

fn parameter(challenge: &str, wanted: &str) -> Option<String> {
    let (_, mut rest) = challenge.trim().split_once(char::is_whitespace)?;
    while !rest.trim().is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
    None
}

/// A token or a quoted string, and what follows its comma.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, rest) = text.split_once(',').unwrap_or((text, ""));
        return Some((token.trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => value.push(chars.next()?.1),
            '"' => {
                let rest = quoted.get(at + 1..)?.trim_start();
                return Some((value, rest.strip_prefix(',').unwrap_or(rest)));
            }
            _ => value.push(char),
        }
    }
    None
}

/// Takes as long for a near miss as for a wide one.
fn same(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && differences == 0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_strongest_challenge_that_can_be_answered_is_chosen_and_put_as_the_stack_reads_it() {
        let (md5, sha) = (
            r#"Digest realm="mtn, kigali",nonce="n",qop="auth-int,auth""#,
            r#"digest realm="a", nonce="n", algorithm=SHA-256, qop="auth", stale=true"#,
        );
        let best = |challenges: &[&str]| readable_challenge(challenges);
        assert_eq!(best(&[md5]).as_deref(), Some(r#"Digest realm="mtn, kigali", nonce="n", qop="auth""#));
        assert_eq!(
            best(&[md5, sha]).as_deref(),
            Some(r#"Digest realm="a", nonce="n", algorithm=SHA256, qop="auth", stale=true"#)
        );
        assert_eq!(best(&[r#"Digest realm="a", nonce="n", algorithm=SHA-512-256"#, md5]), best(&[md5]));
        for unusable in [
            "",
            "Digest",
            "Basic realm=\"a\" x",
            r#"Digest nonce="n", qop="auth-int""#,
            r#"Digest nonce="n", algorithm=AKAv1-MD5"#,
        ] {
            assert_eq!(best(&[unusable]), None, "{unusable}");
        }
        let given = r#"Digest username="a", algorithm=SHA256, qop="auth", nc=00000001"#;
        assert_eq!(standard_credentials(given), r#"Digest username="a", algorithm=SHA-256, qop=auth, nc=00000001"#);
    }

    const TRUNK: Credentials = Credentials { username: "trunk", password: "secret" };

    /// What a carrier would send for a challenge.
    fn answer(challenge: &str, password: &str, count: u32) -> String {
        let nonce = challenge.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap();
        let (name, algorithm) =
            if challenge.contains("SHA-256") { ("SHA-256", Algorithm::Sha256) } else { ("MD5", Algorithm::Md5) };
        let who = algorithm.hash(&["trunk", REALM, password]);
        let what = algorithm.hash(&["INVITE", "sip:1@relay"]);
        let response = algorithm.hash(&[&who, nonce, &format!("{count:08x}"), "c0", "auth", &what]);
        format!(
            r#"Digest username="trunk", realm="{REALM}",nonce="{nonce}", uri="sip:1@relay", response="{response}", algorithm={name}, cnonce="c0", nc={count:08x}, qop=auth"#
        )
    }

    fn challenges(verdict: Verdict) -> Vec<String> {
        match verdict {
            Verdict::Challenged(challenges) => challenges,
            Verdict::Accepted => panic!("accepted"),
        }
    }

    fn fixture() -> (Authenticator, Vec<String>) {
        let mut authenticator = Authenticator::new([7; 64]);
        let challenges = challenges(authenticator.check(Moment::from_millis(5), None, "INVITE", TRUNK));
        (authenticator, challenges)
    }

    #[test]
    fn either_algorithm_is_accepted_and_the_stronger_is_offered_first() {
        let (mut authenticator, challenges) = fixture();
        assert!(challenges[0].contains("SHA-256") && challenges[1].contains("MD5"));
        for (n, challenge) in challenges.iter().enumerate() {
            let header = answer(challenge, "secret", n as u32 + 1);
            assert_eq!(authenticator.check(Moment::from_millis(90), Some(&header), "INVITE", TRUNK), Verdict::Accepted);
        }
    }

    #[test]
    fn a_peer_that_knows_nothing_newer_is_asked_for_md5_alone() {
        let (_, challenges) = fixture();
        assert_eq!(md5_only(challenges.clone()), challenges[1..]);
    }

    #[test]
    fn the_example_of_the_rfc_has_its_digest() {
        // RFC 7616 §3.9.1, but for the realm, which is ours: the parts are the same.
        let who = Algorithm::Md5.hash(&["Mufasa", "http-auth@example.org", "Circle of Life"]);
        let what = Algorithm::Md5.hash(&["GET", "/dir/index.html"]);
        let parts = [
            "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            "00000001",
            "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
            "auth",
        ];
        let response = Algorithm::Md5.hash(&[&who, parts[0], parts[1], parts[2], parts[3], &what]);
        assert_eq!(response, "8ca523f5e9506fed4657c9700eebdbec");
    }

    #[test]
    fn a_wrong_password_another_method_or_a_foreign_nonce_is_challenged_again() {
        let (mut authenticator, challenges) = fixture();
        let mut refused = |header: &str, method| {
            let again =
                super::tests::challenges(authenticator.check(Moment::from_millis(90), Some(header), method, TRUNK));
            assert!(!again[0].contains("stale"), "{again:?}");
        };
        refused(&answer(&challenges[0], "wrong", 1), "INVITE");
        refused(&answer(&challenges[0], "secret", 1), "BYE");
        refused(&answer(r#"nonce="0000000000000000aaaa" SHA-256"#, "secret", 1), "INVITE");
        refused(&answer(&challenges[0], "secret", 1).replace("qop=auth", "qop=auth-int"), "INVITE");
        refused("Basic dHJ1bms6c2VjcmV0", "INVITE");
    }

    #[test]
    fn a_request_that_is_sent_again_or_too_late_is_stale() {
        let (mut authenticator, first) = fixture();
        let header = answer(&first[0], "secret", 1);
        let mut check = |ms, header: &str| authenticator.check(Moment::from_millis(ms), Some(header), "INVITE", TRUNK);
        assert_eq!(check(90, &header), Verdict::Accepted);
        assert!(challenges(check(91, &header))[0].contains("stale=true"));
        assert_eq!(check(92, &answer(&first[0], "secret", 2)), Verdict::Accepted);
        assert!(challenges(check(300_006, &answer(&first[0], "secret", 3)))[0].contains("stale=true"));
    }

    #[test]
    fn strangers_leave_nothing_behind() {
        let (mut authenticator, challenges) = fixture();
        for n in 0..100 {
            authenticator.check(Moment::from_millis(n), Some(&answer(&challenges[0], "wrong", 1)), "INVITE", TRUNK);
        }
        assert!(authenticator.used.is_empty());
    }

    proptest! {
        #[test]
        fn any_challenge_is_put_or_left(challenge in "(Digest )?[ -~]{0,60}") {
            let _ = readable_challenge(&[&challenge]);
        }

        #[test]
        fn any_header_is_read_or_refused(header in "(Digest )?[ -~]{0,200}") {
            let (mut authenticator, _) = fixture();
            prop_assert_ne!(authenticator.check(Moment::default(), Some(&header), "INVITE", TRUNK), Verdict::Accepted);
        }
    }
}
