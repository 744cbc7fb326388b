//! When to try again, and when to stop.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::timestamp;

/// Why a message goes out; it decides how long it is worth sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The summary after a call.
    CallSummary,
    /// The answer to a message.
    Reply,
    /// The fixed answer to a keyword.
    Keyword,
}

impl Purpose {
    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::CallSummary => "call_summary",
            Purpose::Reply => "reply",
            Purpose::Keyword => "keyword",
        }
    }

    /// How long after it was decided on the message is still of use.
    pub fn lifetime(self) -> TimeDelta {
        match self {
            Purpose::CallSummary => TimeDelta::hours(24),
            Purpose::Reply | Purpose::Keyword => TimeDelta::minutes(30),
        }
    }

    /// The moment after which it is not sent any more.
    pub fn deadline(self, decided_at: DateTime<Utc>) -> DateTime<Utc> {
        later(decided_at, self.lifetime())
    }
}

/// How often and how long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Ceiling of the first wait.
    pub base: TimeDelta,
    /// Ceiling of every wait.
    pub cap: TimeDelta,
    /// No attempt at or after this moment.
    pub deadline: DateTime<Utc>,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again then.
    RetryAt(DateTime<Utc>),
    /// The deadline would pass first.
    GiveUp,
}

impl Next {
    /// The moment of the next attempt, if there is one.
    pub fn at(self) -> Option<DateTime<Utc>> {
        match self {
            Next::RetryAt(at) => Some(at),
            Next::GiveUp => None,
        }
    }
}

impl Policy {
    /// When to try again after attempt number `attempt` (the first is 1) failed.
    ///
    /// Full jitter: the wait is drawn evenly from `[0, min(cap, base * 2^(attempt-1)))`; `dice` in `[0, 1)` is that draw.
    /// `retry_after` is the provider's own wish and wins when it is longer.
    pub fn next(&self, attempt: u32, retry_after: Option<TimeDelta>, now: DateTime<Utc>, dice: f64) -> Next {
        let factor = 1_i64 << attempt.saturating_sub(1).min(20);
        let ceiling_ms = self.base.num_milliseconds().saturating_mul(factor).min(self.cap.num_milliseconds());
        // A dice outside its range (or NaN) must not move the wait outside its own.
        let dice = if dice.is_finite() { dice.clamp(0.0, 1.0) } else { 0.5 };
        let drawn = TimeDelta::milliseconds(((ceiling_ms.max(0) as f64) * dice) as i64);
        self.not_before(drawn.max(retry_after.unwrap_or_default()), now)
    }

    /// When to try again if the wait is fixed.
    pub fn not_before(&self, wait: TimeDelta, now: DateTime<Utc>) -> Next {
        match now.checked_add_signed(wait.max(TimeDelta::zero())) {
            Some(at) if at < self.deadline => Next::RetryAt(at),
            Some(_) | None => Next::GiveUp,
        }
    }
}

/// The wait Meta asks for after 131056 (too many messages to one user): 4^n s, n from 0, at most about 4.5 h.
pub fn pair_rate_wait(attempt: u32) -> TimeDelta {
    TimeDelta::seconds(1_i64 << (2 * attempt.saturating_sub(1).min(7)))
}

/// Longest wait that a provider may ask for; more is cut to this.
const RETRY_AFTER_MAX_S: f64 = 7.0 * 86_400.0;

/// Reads `Retry-After`: seconds, seconds with a fraction, or an HTTP date. What lies in the past is no wait at all.
pub fn parse_retry_after(text: &str, now: DateTime<Utc>) -> Option<TimeDelta> {
    let text = text.trim();
    if let Some(seconds) = decimal_seconds(text) {
        return Some(TimeDelta::milliseconds((seconds.min(RETRY_AFTER_MAX_S) * 1000.0) as i64));
    }
    let at = timestamp::parse_http_date(text)?;
    let longest = TimeDelta::seconds(RETRY_AFTER_MAX_S as i64);
    Some(at.signed_duration_since(now).clamp(TimeDelta::zero(), longest))
}

/// Digits with at most one point, no sign and no exponent.
fn decimal_seconds(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || whole.len() > 12 || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let thousandths = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(3)
        .fold(0_u32, |sum, byte| sum * 10 + u32::from(byte - b'0'));
    Some(whole as f64 + f64::from(thousandths) / 1000.0)
}

fn later(at: DateTime<Utc>, by: TimeDelta) -> DateTime<Utc> {
    at.checked_add_signed(by).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400 + seconds, 0).unwrap()
    }

    fn policy() -> Policy {
        until(600)
    }

    fn until(seconds: i64) -> Policy {
        Policy { base: TimeDelta::seconds(30), cap: TimeDelta::hours(1), deadline: at(seconds) }
    }

    fn show(next: Next) -> String {
        match next {
            Next::RetryAt(t) => format!("in {} ms", (t - at(0)).num_milliseconds()),
            Next::GiveUp => "give up".to_owned(),
        }
    }

    #[track_caller]
    fn check(attempt: u32, retry_after: Option<i64>, dice: f64, expected: Expect) {
        expected.assert_eq(&show(policy().next(attempt, retry_after.map(TimeDelta::seconds), at(0), dice)));
    }

    #[test]
    fn the_ceiling_doubles_and_the_dice_draws_below_it() {
        check(1, None, 0.5, expect!["in 15000 ms"]);
        check(2, None, 0.5, expect!["in 30000 ms"]);
        check(4, None, 0.999, expect!["in 239760 ms"]);
        check(0, None, 0.0, expect!["in 0 ms"]);
    }

    #[test]
    fn provider_may_ask_for_more_time_but_not_past_the_deadline() {
        check(1, Some(45), 0.5, expect!["in 45000 ms"]);
        check(1, Some(900), 0.5, expect!["give up"]);
    }

    #[test]
    fn an_hour_is_the_longest_wait() {
        let patient = until(86_400);
        assert_eq!(show(patient.next(30, None, at(0), 1.0)), "in 3600000 ms");
    }

    #[test]
    fn a_summary_is_worth_a_day_and_a_reply_half_an_hour() {
        assert_eq!(Purpose::CallSummary.deadline(at(0)), at(86_400));
        assert_eq!(Purpose::Reply.deadline(at(0)), at(1800));
        assert_eq!(Purpose::Keyword.deadline(at(0)), at(1800));
    }

    #[test]
    fn the_pair_rate_waits_grow_by_four() {
        let waits: Vec<i64> = (1..=4).map(|attempt| pair_rate_wait(attempt).num_seconds()).collect();
        assert_eq!(waits, [1, 4, 16, 64]);
        assert_eq!(pair_rate_wait(u32::MAX).num_seconds(), 16_384);
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        let read = |text| parse_retry_after(text, at(0)).map(|wait| wait.num_milliseconds());
        assert_eq!(read("120"), Some(120_000));
        assert_eq!(read(" 1.5 "), Some(1_500));
        assert_eq!(read("Sat, 21 Nov 2026 02:00:30 GMT"), Some(30_000));
        assert_eq!(read("Sat, 21 Nov 2020 02:00:30 GMT"), Some(0));
        assert_eq!(read("999999999999"), Some(7 * 86_400_000));
        for bad in ["", "-5", "1e9", "soon", "NaN"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_in_the_past_nor_after_the_deadline(n in 0_u32..1000, ra in 0_i64..10_000, dice in 0.0..1.0) {
            if let Next::RetryAt(t) = policy().next(n, Some(TimeDelta::seconds(ra)), at(0), dice) {
                prop_assert!(t >= at(0) && t < policy().deadline);
            }
        }

        #[test]
        fn no_dice_and_no_wish_panic(n: u32, ra: i64, dice: f64) {
            let wish = TimeDelta::try_milliseconds(ra);
            let _ = policy().next(n, wish, at(0), dice);
        }

        #[test]
        fn no_header_panics(text: String) {
            let _ = parse_retry_after(&text, at(0));
        }
    }
}
