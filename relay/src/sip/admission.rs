//! Whether a call is let in. Every refusal has its own code, its own reason in the log and its own metric, so that a
//! wrong setting is never taken for an attack.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ihuza_core::phone::E164;

use crate::config::{Config, Did, Trunk};
use crate::moment::Moment;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $label:literal, $status:expr, $retry_after:expr;)*) => {
        /// Why a call is not let in.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal { $($(#[$doc])* $name,)* }

        /// Every refusal there is, for metrics that are there from the start.
        pub const REFUSALS: &[Refusal] = &[$(Refusal::$name,)*];

        impl Refusal {
            /// The word in logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Refusal::$name => $label,)* }
            }

            /// The status of the answer; none where an answer would only tell a scanner that we are here.
            pub fn status(self) -> Option<u16> {
                match self { $(Refusal::$name => $status,)* }
            }

            /// Seconds after which it may be tried again.
            pub fn retry_after(self) -> Option<u32> {
                match self { $(Refusal::$name => $retry_after,)* }
            }
        }
    };
}

refusals! {
    /// From an address of no trunk.
    UnknownSource = "unknown_source", None, None;
    /// By a program that looks for open doors.
    Scanner = "scanner", None, None;
    /// A needed header is missing or cannot be read.
    Malformed = "malformed", Some(400), None;
    /// Of another version than SIP/2.0.
    UnsupportedVersion = "unsupported_version", Some(505), None;
    /// A method that nobody knows.
    UnknownMethod = "unknown_method", Some(501), None;
    /// Longer than is read.
    TooLarge = "too_large", Some(513), None;
    /// Accepts no session description for an answer.
    NotAcceptable = "not_acceptable", Some(406), None;
    /// `Max-Forwards` is used up.
    TooManyHops = "too_many_hops", Some(483), None;
    /// Requires an extension that we do not have; the answer names it.
    UnsupportedExtension = "unsupported_extension", Some(420), None;
    /// A request address that is neither `sip:`, `sips:` nor `tel:`.
    UnsupportedScheme = "unsupported_scheme", Some(416), None;
    /// A body that is no session description.
    UnsupportedBody = "unsupported_body", Some(415), None;
    /// The called number is not ours.
    UnknownNumber = "unknown_number", Some(404), None;
    /// Credentials are missing or wrong.
    Unauthenticated = "unauthenticated", Some(401), None;
    /// The same request by two ways (RFC 3261 §8.2.2.2).
    Merged = "merged", Some(482), None;
    /// Nothing in the offer that the trunk may use.
    NoCommonCodec = "no_common_codec", Some(488), None;
    /// The trunk's session timer is shorter than we bear; the answer says how long it must be.
    IntervalTooShort = "interval_too_short", Some(422), None;
    /// The trunk sends more new calls a second than agreed.
    TrunkRate = "trunk_rate", Some(503), Some(5);
    /// One caller calls again and again.
    CallerRate = "caller_rate", Some(480), Some(60);
    /// All lines of the trunk are in use.
    TrunkFull = "trunk_full", Some(503), Some(5);
    /// All lines of the number are in use.
    NumberFull = "number_full", Some(486), None;
    /// The relay bears no more calls.
    RelayFull = "relay_full", Some(503), Some(5);
    /// The relay is about to end.
    Draining = "draining", Some(503), Some(30);
}

/// What is known of a new INVITE before anything is done for it.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// The scheme of the request address.
    pub scheme: &'a str,
    /// Its user part: the called number.
    pub called: &'a str,
    /// Who calls, as far as the trunk says.
    pub caller: Option<E164>,
    /// `Max-Forwards`, if there is one.
    pub max_forwards: Option<u32>,
    /// The option tags of `Require`.
    pub required: Vec<&'a str>,
    /// The type of the body, if there is one.
    pub content_type: Option<&'a str>,
    /// `User-Agent`.
    pub user_agent: Option<&'a str>,
    /// From tag, Call-ID and sequence number, which two copies of a request share, and the branch, which they do not.
    pub identity: [&'a str; 3],
    /// The branch of the topmost Via.
    pub branch: &'a str,
}

/// What is let in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Admitted<'c> {
    /// By which trunk.
    pub trunk: &'c Trunk,
    /// For which number.
    pub did: &'c Did,
}

const SCANNERS: [&str; 9] = [
    "friendly-scanner",
    "sipvicious",
    "sipcli",
    "sip-scan",
    "sundayddr",
    "vaxsipuseragent",
    "iwar",
    "pplsip",
    "sipassault",
];
/// Extensions that an INVITE may require of us.
const SUPPORTED: [&str; 1] = ["timer"];
/// Callers that are remembered; the eldest is forgotten first.
const MOST_CALLERS: usize = 10_000;
/// So many callers are looked at by one `forget`: the calls that run wait meanwhile.
const LOOKED_AT: usize = 1000;
/// A copy of a request comes within the life of its transaction (64*T1).
const COPIES_WITHIN: Duration = Duration::from_secs(32);
const MOST_IDENTITIES: usize = 4096;

/// The doorkeeper.
#[derive(Debug, Default)]
pub struct Admission {
    trunk_buckets: HashMap<String, Bucket>,
    callers: HashMap<String, Bucket>,
    caller_order: VecDeque<String>,
    seen: VecDeque<(Moment, String, String)>,
    running: usize,
    by_trunk: HashMap<String, usize>,
    by_number: HashMap<String, usize>,
    draining: bool,
}

impl Admission {
    /// The trunk that an address belongs to. Cheap: it stands before the parser.
    pub fn trunk_of(config: &Config, source: IpAddr) -> Result<&Trunk, Refusal> {
        let is_from = |trunk: &&Trunk| trunk.sources.iter().any(|range| range.0.contains(source));
        config.trunks.iter().find(is_from).ok_or(Refusal::UnknownSource)
    }

    /// Judges a new call: first what is wrong with it, then what is full. Nothing is counted but what is let in.
    pub fn judge<'c>(
        &mut self,
        now: Moment,
        config: &'c Config,
        source: IpAddr,
        request: &Request,
    ) -> Result<Admitted<'c>, Refusal> {
        self.judge_for(now, config, Admission::trunk_of(config, source)?, request)
    }

    /// As `judge`, for a call whose trunk is known otherwise than by its address.
    pub fn judge_for<'c>(
        &mut self,
        now: Moment,
        config: &Config,
        trunk: &'c Trunk,
        request: &Request,
    ) -> Result<Admitted<'c>, Refusal> {
        let admitted = Admission::route(trunk, request)?;
        if self.is_merged(now, request) {
            return Err(Refusal::Merged);
        }
        self.check_room(config, admitted)?;
        let per_second = f64::from(config.limits.calls_per_second);
        if !self.trunk_buckets.entry(trunk.name.clone()).or_default().take(now, per_second, per_second) {
            return Err(Refusal::TrunkRate);
        }
        if let Some(caller) = &request.caller
            && !self.caller_may(now, caller, f64::from(config.limits.calls_per_minute_and_caller))
        {
            return Err(Refusal::CallerRate);
        }
        Ok(admitted)
    }

    /// Where a call would go, whatever is full: what `route-test` shows.
    pub fn route<'c>(trunk: &'c Trunk, request: &Request) -> Result<Admitted<'c>, Refusal> {
        let agent = request.user_agent.unwrap_or_default().to_ascii_lowercase();
        if SCANNERS.iter().any(|scanner| agent.contains(scanner)) {
            return Err(Refusal::Scanner);
        }
        if request.max_forwards == Some(0) {
            return Err(Refusal::TooManyHops);
        }
        if !["sip", "sips", "tel"].iter().any(|scheme| request.scheme.eq_ignore_ascii_case(scheme)) {
            return Err(Refusal::UnsupportedScheme);
        }
        if !unsupported(&request.required).is_empty() {
            return Err(Refusal::UnsupportedExtension);
        }
        if let Some(kind) = request.content_type
            && !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/sdp")
        {
            return Err(Refusal::UnsupportedBody);
        }
        let called = E164::parse_msisdn(request.called).map_err(|_| Refusal::UnknownNumber)?;
        let did = trunk.dids.iter().find(|did| did.number.0 == called).ok_or(Refusal::UnknownNumber)?;
        Ok(Admitted { trunk, did })
    }

    /// A call begins. The caller of this function calls `ended` exactly once for it.
    pub fn began(&mut self, trunk: &str, number: &E164) {
        self.running += 1;
        *self.by_trunk.entry(trunk.to_owned()).or_default() += 1;
        *self.by_number.entry(number.as_str().to_owned()).or_default() += 1;
    }

    /// A call is over.
    pub fn ended(&mut self, trunk: &str, number: &E164) {
        self.running = self.running.saturating_sub(1);
        for (counts, key) in [(&mut self.by_trunk, trunk), (&mut self.by_number, number.as_str())] {
            if let Some(count) = counts.get_mut(key) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// From now on nothing is let in.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Calls that run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Calls that run on a trunk.
    pub fn running_on(&self, trunk: &str) -> usize {
        self.by_trunk.get(trunk).copied().unwrap_or_default()
    }

    /// Whether a call could be let in at all; what OPTIONS is answered by.
    pub fn is_open(&self, config: &Config) -> Result<(), Refusal> {
        match () {
            _ if self.draining => Err(Refusal::Draining),
            _ if self.running >= config.limits.calls => Err(Refusal::RelayFull),
            _ => Ok(()),
        }
    }

    /// Whether there is a line for one more call, in whichever direction.
    pub fn check_room(&self, config: &Config, Admitted { trunk, did }: Admitted) -> Result<(), Refusal> {
        self.is_open(config)?;
        if self.by_trunk.get(&trunk.name).is_some_and(|count| *count >= trunk.calls) {
            return Err(Refusal::TrunkFull);
        }
        let on_number = self.by_number.get(did.number.0.as_str()).copied().unwrap_or_default();
        if did.calls.is_some_and(|limit| on_number >= limit) {
            return Err(Refusal::NumberFull);
        }
        Ok(())
    }

    fn caller_may(&mut self, now: Moment, caller: &E164, per_minute: f64) -> bool {
        if let Some(bucket) = self.callers.get_mut(caller.as_str()) {
            return bucket.take(now, per_minute / 60.0, per_minute);
        }
        if self.caller_order.len() == MOST_CALLERS
            && let Some(eldest) = self.caller_order.pop_front()
        {
            self.callers.remove(&eldest);
        }
        self.caller_order.push_back(caller.as_str().to_owned());
        self.callers.entry(caller.as_str().to_owned()).or_default().take(now, per_minute / 60.0, per_minute)
    }

    /// Forgets what changes no judgement any more, and gives its room back; to be called now and then, also while nobody calls.
    pub fn forget(&mut self, now: Moment, config: &Config) {
        self.forget_copies(now);
        let per_second = f64::from(config.limits.calls_per_minute_and_caller) / 60.0;
        for _ in 0..self.caller_order.len().min(LOOKED_AT) {
            let Some(caller) = self.caller_order.pop_front() else { break };
            // A caller who may call as often as a new one is remembered for nothing.
            if self.callers.get(&caller).is_some_and(|bucket| bucket.is_in_use(now, per_second)) {
                self.caller_order.push_back(caller);
            } else {
                self.callers.remove(&caller);
            }
        }
        if self.callers.len() < self.callers.capacity() / 8 {
            self.callers.shrink_to_fit();
            self.caller_order.shrink_to_fit();
        }
        if self.seen.len() < self.seen.capacity() / 8 {
            self.seen.shrink_to_fit();
        }
    }

    fn forget_copies(&mut self, now: Moment) {
        while self.seen.pop_front_if(|(at, ..)| now.since(*at) > COPIES_WITHIN).is_some() {}
    }

    fn is_merged(&mut self, now: Moment, request: &Request) -> bool {
        self.forget_copies(now);
        let identity = request.identity.join("\n");
        let copy = self.seen.iter().any(|(_, known, branch)| *known == identity && branch != request.branch);
        if !copy {
            if self.seen.len() == MOST_IDENTITIES {
                self.seen.pop_front();
            }
            self.seen.push_back((now, identity, request.branch.to_owned()));
        }
        copy
    }
}

/// The option tags that we do not have, for the answer's `Unsupported`.
pub fn unsupported<'a>(required: &[&'a str]) -> Vec<&'a str> {
    required.iter().copied().filter(|tag| !SUPPORTED.iter().any(|known| known.eq_ignore_ascii_case(tag))).collect()
}

/// A token bucket; it begins full.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    used: f64,
    at: Moment,
}

impl Bucket {
    pub(super) fn take(&mut self, now: Moment, per_second: f64, size: f64) -> bool {
        self.used = (self.used - now.since(self.at).as_secs_f64() * per_second).max(0.0);
        self.at = now;
        let may = self.used + 1.0 <= size;
        if may {
            self.used += 1.0;
        }
        may
    }

    /// Whether it differs from a new one.
    fn is_in_use(&self, now: Moment, per_second: f64) -> bool {
        self.used > now.since(self.at).as_secs_f64() * per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::parse(include_str!("../../relay.example.toml")).unwrap()
    }

    fn source() -> IpAddr {
        "192.0.2.3".parse().unwrap()
    }

    fn request() -> Request<'static> {
        Request {
            scheme: "sip",
            called: "+250788000100",
            max_forwards: Some(70),
            content_type: Some("application/sdp"),
            identity: ["tag", "call", "1"],
            branch: "z9hG4bK1",
            ..Request::default()
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Request<'static>), expected: Result<&str, Refusal>) {
        let mut request = request();
        change(&mut request);
        let config = config();
        let found = Admission::default().judge(Moment::default(), &config, source(), &request);
        assert_eq!(found.map(|admitted| admitted.did.locale.0.as_str()), expected);
    }

    #[test]
    fn a_call_for_our_number_finds_its_agent_in_every_spelling() {
        for called in ["+250788000100", "250788000100", "0788000100", "00250788000100"] {
            check(|request| request.called = called, Ok("rw"));
        }
        check(|request| request.called = "+250788000101", Ok("fr"));
        check(|request| request.content_type = None, Ok("rw"));
        check(|request| request.content_type = Some("Application/SDP ;charset=utf-8"), Ok("rw"));
        check(|request| request.required = vec!["Timer"], Ok("rw"));
    }

    #[test]
    fn each_fault_has_its_own_refusal() {
        check(|request| request.called = "+250788999999", Err(Refusal::UnknownNumber));
        check(|request| request.called = "1000", Err(Refusal::UnknownNumber));
        check(|request| request.max_forwards = Some(0), Err(Refusal::TooManyHops));
        check(|request| request.required = vec!["timer", "100rel"], Err(Refusal::UnsupportedExtension));
        check(|request| request.scheme = "http", Err(Refusal::UnsupportedScheme));
        check(|request| request.content_type = Some("multipart/mixed"), Err(Refusal::UnsupportedBody));
        check(|request| request.user_agent = Some("friendly-scanner 1.0"), Err(Refusal::Scanner));
        let unknown =
            Admission::default().judge(Moment::default(), &config(), "198.51.100.1".parse().unwrap(), &request()).err();
        assert_eq!(unknown, Some(Refusal::UnknownSource));
    }

    #[test]
    fn a_second_copy_with_another_branch_is_merged_and_the_same_branch_is_not() {
        let (config, mut admission) = (config(), Admission::default());
        let mut judge = |ms, branch| {
            let request = Request { branch, ..request() };
            admission.judge(Moment::from_millis(ms), &config, source(), &request).err()
        };
        assert_eq!(judge(0, "z9hG4bK1"), None);
        assert_eq!(judge(10, "z9hG4bK2"), Some(Refusal::Merged));
        assert_eq!(judge(20, "z9hG4bK1"), None);
        assert_eq!(judge(40_000, "z9hG4bK3"), None, "after the transaction's life it is a new call");
    }

    #[test]
    fn full_lines_are_told_apart_and_emptied_lines_are_free_again() {
        let (mut config, mut admission) = (config(), Admission::default());
        config.limits.calls = 12;
        config.trunks[0].calls = 11;
        let number = config.trunks[0].dids[1].number.0.clone();
        let french = || Request { called: "+250788000101", ..request() };
        let judge = |admission: &mut Admission, request: &Request| {
            admission.judge(Moment::default(), &config, source(), request).err()
        };
        for _ in 0..10 {
            admission.began("mtn_sip", &number);
        }
        assert_eq!(judge(&mut admission, &french()), Some(Refusal::NumberFull));
        assert_eq!(judge(&mut admission, &request()), None);
        admission.began("mtn_sip", &config.trunks[0].dids[0].number.0);
        assert_eq!(judge(&mut admission, &request()), Some(Refusal::TrunkFull));
        admission.began("other", &number);
        assert_eq!(judge(&mut admission, &request()), Some(Refusal::RelayFull));
        admission.ended("other", &number);
        admission.ended("mtn_sip", &number);
        assert_eq!((judge(&mut admission, &french()), admission.running()), (None, 10));
        admission.drain();
        assert_eq!(judge(&mut admission, &request()), Some(Refusal::Draining));
    }

    #[test]
    fn rates_are_kept_a_trunk_and_a_caller() {
        let (mut config, mut admission) = (config(), Admission::default());
        config.limits.calls_per_second = 10;
        config.limits.calls_per_minute_and_caller = 3;
        let mut judge = |ms, caller: &str| {
            let request = Request { caller: E164::parse(caller).ok(), ..request() };
            admission.judge(Moment::from_millis(ms), &config, source(), &request).err()
        };
        for _ in 0..3 {
            assert_eq!(judge(0, "+250788123456"), None);
        }
        assert_eq!(judge(0, "+250788123456"), Some(Refusal::CallerRate));
        assert_eq!(judge(0, "+250788123457"), None, "another caller is another matter");
        for _ in 0..5 {
            judge(0, "+250788123458");
        }
        assert_eq!(judge(0, "+250788123459"), Some(Refusal::TrunkRate));
        assert_eq!(judge(1000, "+250788123459"), None);
        assert_eq!(judge(20_100, "+250788123456"), None, "one more after a third of a minute");
        assert_eq!(judge(20_200, "+250788123456"), Some(Refusal::CallerRate));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut config, mut admission) = (config(), Admission::default());
        config.limits.calls_per_second = u32::MAX;
        for n in 0..12_000_u64 {
            let identity = n.to_string();
            let caller = E164::parse(&format!("+25078812{:04}", n % 10_000)).ok();
            let request = Request { caller, identity: ["t", &identity, "1"], ..request() };
            let _ = admission.judge(Moment::from_micros(n), &config, source(), &request);
        }
        assert!(admission.seen.len() <= MOST_IDENTITIES && admission.callers.len() <= MOST_CALLERS);
        assert_eq!(admission.callers.len(), admission.caller_order.len());
    }

    #[test]
    fn who_has_not_called_for_a_while_is_forgotten_and_who_has_is_not() {
        let (config, mut admission) = (config(), Admission::default());
        let limit = config.limits.calls_per_minute_and_caller;
        let judge = |admission: &mut Admission, ms: u64, caller: u64| {
            let (identity, caller) = (format!("{ms}-{caller}"), E164::parse(&format!("+25078812{caller:04}")).ok());
            let request = Request { caller, identity: [&identity, &identity, "1"], ..request() };
            admission.judge(Moment::from_millis(ms), &config, source(), &request).map(|_| ())
        };
        for n in 0..3000 {
            assert_eq!(judge(&mut admission, n * 100, n), Ok(()));
        }
        for n in 0..u64::from(limit) {
            assert_eq!(judge(&mut admission, 300_000 + n, 0), Ok(()));
        }
        assert_eq!((admission.callers.len(), admission.seen.len() > 300), (3000, true));
        for _ in 0..4 {
            admission.forget(Moment::from_millis(300_100), &config);
        }
        assert!(admission.callers.len() < 3000 / 4, "{} callers", admission.callers.len());
        assert_eq!(judge(&mut admission, 300_200, 0), Err(Refusal::CallerRate), "that one is remembered");
        for _ in 0..2 {
            admission.forget(Moment::from_millis(400_000), &config);
        }
        assert_eq!((admission.callers.len(), admission.caller_order.len(), admission.seen.len()), (0, 0, 0));
        assert!(admission.callers.capacity() + admission.caller_order.capacity() + admission.seen.capacity() < 64);
        assert_eq!(judge(&mut admission, 400_000, 0), Ok(()));
    }

    #[test]
    fn words_are_unique_and_strangers_get_no_answer() {
        let mut words: Vec<_> = REFUSALS.iter().map(|refusal| refusal.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), REFUSALS.len());
        assert_eq!((Refusal::UnknownSource.status(), Refusal::Scanner.status()), (None, None));
        assert!(REFUSALS.iter().all(|refusal| refusal.status() != Some(503) || refusal.retry_after().is_some()));
    }
}
