//! Session timers (RFC 4028): a call whose BYE was lost does not stay for ever.

use std::time::Duration;

use super::admission::Refusal;
use crate::moment::Moment;

/// The shortest interval we bear, and the shortest that the RFC allows (§5).
pub const MIN_SE: u32 = 90;
/// Longer ones are shortened: what nobody has refreshed for an hour is over.
const MOST_SECONDS: u32 = 3600;

/// Who has to refresh, seen from a request of the peer's: there the peer is the client, and we are the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresher {
    /// The peer.
    Uac,
    /// We.
    Uas,
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Without a refresh for so long the session is over.
    pub seconds: u32,
    /// Whose part it is.
    pub refresher: Refresher,
    /// The caller knows of timers, so that the answer may require them.
    pub peer_supports: bool,
}

impl Interval {
    /// What an INVITE, re-INVITE or UPDATE asks for. `session_expires` is the header's value.
    pub fn of_request(session_expires: Option<&str>, peer_supports: bool) -> Result<Option<Interval>, Refusal> {
        let Some(value) = session_expires else { return Ok(None) };
        let mut parts = value.split(';').map(str::trim);
        let seconds: u32 = parts.next().and_then(|seconds| seconds.parse().ok()).ok_or(Refusal::Malformed)?;
        if seconds < MIN_SE {
            return Err(Refusal::IntervalTooShort);
        }
        let wished = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("refresher").then(|| value.trim())
        });
        let refresher = match wished {
            Some(wished) if wished.eq_ignore_ascii_case("uas") => Refresher::Uas,
            // Theirs, if they can; they call, they know when it is over.
            _ if peer_supports => Refresher::Uac,
            _ => Refresher::Uas,
        };
        Ok(Some(Interval { seconds: seconds.min(MOST_SECONDS), refresher, peer_supports }))
    }

    /// What an INVITE of ours was answered with; nothing if it cannot be read or is shorter than the RFC allows. Who
    /// refreshes is told from our side: the peer is the server of that INVITE, and of no later request of ours.
    pub fn of_answer(session_expires: &str) -> Option<Interval> {
        let interval = Interval::of_request(Some(session_expires), true).ok()??;
        let refresher = match interval.refresher {
            Refresher::Uac => Refresher::Uas,
            Refresher::Uas => Refresher::Uac,
        };
        Some(Interval { refresher, ..interval })
    }

    /// The value of the answer's `Session-Expires`.
    pub fn header(&self) -> String {
        let refresher = match self.refresher {
            Refresher::Uac => "uac",
            Refresher::Uas => "uas",
        };
        format!("{};refresher={refresher}", self.seconds)
    }

    /// The value of `Session-Expires` in a refresh of ours: in that request we are the client (§7.4).
    pub fn refresh_header(&self) -> String {
        format!("{};refresher=uac", self.seconds)
    }

    /// Whether the answer must say `Require: timer` (§9).
    pub fn is_required(&self) -> bool {
        self.peer_supports && self.refresher == Refresher::Uac
    }
}

/// What the passing of time asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// We are to refresh.
    Refresh,
    /// Nobody did: the session is over.
    Expired,
}

/// The timer of one call.
#[derive(Debug, Clone, Copy)]
pub struct SessionTimer {
    interval: Interval,
    since: Moment,
    refreshed: bool,
}

impl SessionTimer {
    /// Begins with the answer.
    pub fn new(now: Moment, interval: Interval) -> SessionTimer {
        SessionTimer { interval, since: now, refreshed: false }
    }

    /// A refresh went through, in either direction.
    pub fn refreshed(&mut self, now: Moment, interval: Interval) {
        *self = SessionTimer::new(now, interval);
    }

    /// What is due; each is told once.
    pub fn poll(&mut self, now: Moment) -> Option<Due> {
        if now >= self.expires_at() {
            return Some(Due::Expired);
        }
        if now >= self.refreshes_at()? && !std::mem::replace(&mut self.refreshed, true) {
            return Some(Due::Refresh);
        }
        None
    }

    /// When to look again.
    pub fn next_timeout(&self) -> Moment {
        self.refreshes_at().filter(|_| !self.refreshed).map_or(self.expires_at(), |at| at.min(self.expires_at()))
    }

    fn refreshes_at(&self) -> Option<Moment> {
        let half = Duration::from_secs(u64::from(self.interval.seconds / 2));
        (self.interval.refresher == Refresher::Uas).then(|| self.since + half)
    }

    /// Before the interval is over, so that the BYE still finds the session there (§10).
    fn expires_at(&self) -> Moment {
        let seconds = self.interval.seconds;
        self.since + Duration::from_secs(u64::from(seconds - (seconds / 3).min(32)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(value: &str, supports: bool, expected: Result<&str, Refusal>) {
        let interval = Interval::of_request(Some(value), supports);
        assert_eq!(interval.map(|interval| interval.unwrap().header()).as_deref(), expected.as_ref().map(|text| *text));
    }

    #[test]
    fn the_caller_refreshes_if_it_can_and_does_not_wish_otherwise() {
        check("1800", true, Ok("1800;refresher=uac"));
        check("1800", false, Ok("1800;refresher=uas"));
        check("1800 ; Refresher=UAS", true, Ok("1800;refresher=uas"));
        check("90;refresher=uac", true, Ok("90;refresher=uac"));
        check("99999", true, Ok("3600;refresher=uac"));
        assert_eq!(Interval::of_request(None, true), Ok(None));
    }

    #[test]
    fn an_answer_to_our_invite_says_whose_part_it_is_the_other_way_round() {
        let read = |value| Interval::of_answer(value).map(|interval| (interval.seconds, interval.refresher));
        assert_eq!(read("1800;refresher=uac"), Some((1800, Refresher::Uas)), "we");
        assert_eq!(read("1800;refresher=uas"), Some((1800, Refresher::Uac)), "the peer");
        assert_eq!((read("10;refresher=uas"), read("soon")), (None, None));
    }

    #[test]
    fn a_refresh_of_ours_is_a_request_in_which_we_are_the_client() {
        let interval = Interval { seconds: 90, refresher: Refresher::Uas, peer_supports: true };
        assert_eq!(
            (interval.header().as_str(), interval.refresh_header().as_str()),
            ("90;refresher=uas", "90;refresher=uac")
        );
    }

    #[test]
    fn what_is_too_short_is_told_from_what_cannot_be_read() {
        check("89", true, Err(Refusal::IntervalTooShort));
        check("soon", true, Err(Refusal::Malformed));
        check("", true, Err(Refusal::Malformed));
    }

    #[test]
    fn a_session_that_nobody_refreshes_ends_before_its_time_is_over() {
        let interval = Interval { seconds: 90, refresher: Refresher::Uac, peer_supports: true };
        let mut timer = SessionTimer::new(Moment::default(), interval);
        assert_eq!(
            (timer.poll(Moment::from_millis(59_999)), timer.next_timeout()),
            (None, Moment::from_millis(60_000))
        );
        timer.refreshed(Moment::from_millis(50_000), interval);
        assert_eq!(timer.poll(Moment::from_millis(109_999)), None);
        assert_eq!(timer.poll(Moment::from_millis(110_000)), Some(Due::Expired));
    }

    #[test]
    fn our_own_refresh_is_due_at_half_time_and_told_once() {
        let interval = Interval { seconds: 1800, refresher: Refresher::Uas, peer_supports: true };
        let mut timer = SessionTimer::new(Moment::default(), interval);
        assert_eq!(timer.poll(Moment::from_millis(900_000)), Some(Due::Refresh));
        assert_eq!(
            (timer.poll(Moment::from_millis(900_001)), timer.next_timeout()),
            (None, Moment::from_millis(1_768_000))
        );
        assert!(!interval.is_required());
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_refused(value in "\\PC{0,40}", supports: bool) {
            if let Ok(Some(interval)) = Interval::of_request(Some(&value), supports) {
                prop_assert!((MIN_SE..=MOST_SECONDS).contains(&interval.seconds));
            }
        }
    }
}
