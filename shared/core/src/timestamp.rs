//! Times as the outside world writes them: RFC 3339, carriers' local forms, HTTP dates, Unix seconds.
//!
//! Written by hand because chrono's format engine costs more wasm than all of these together.

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Timelike, Utc};

/// Africa/Kigali is UTC+2 all year, without daylight saving time.
pub const KIGALI_OFFSET_MINUTES: i32 = 120;

/// Writes RFC 3339 with milliseconds and `Z`.
pub fn to_rfc3339(at: DateTime<Utc>) -> String {
    let mut out = String::with_capacity(24);
    padded(&mut out, at.year().unsigned_abs(), 4);
    for (before, value) in
        [('-', at.month()), ('-', at.day()), ('T', at.hour()), (':', at.minute()), (':', at.second())]
    {
        out.push(before);
        padded(&mut out, value, 2);
    }
    out.push('.');
    padded(&mut out, (at.nanosecond() / 1_000_000).min(999), 3);
    out.push('Z');
    out
}

/// For `#[serde(with = "...")]`: RFC 3339 by this module, which spares the wasm chrono's own parser.
pub mod rfc3339 {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the time.
    pub fn serialize<S: Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_rfc3339(*at))
    }

    /// Reads the time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_rfc3339(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"))
    }
}

/// For `#[serde(with = "...")]`: [`rfc3339`] of what may be absent.
pub mod rfc3339_or_none {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the time, or null.
    pub fn serialize<S: Serializer>(at: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::rfc3339::serialize(at, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads the time; null is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| super::parse_rfc3339(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time")))
            .transpose()
    }
}

/// How far a provider's clock may be ahead of ours.
const SKEW: TimeDelta = TimeDelta::minutes(2);

/// A provider's time as it is believed, and as it came where it is not: nothing happened in our future.
///
/// ```
/// # use {chrono::{DateTime, TimeDelta}, ihuza_core::timestamp::believable};
/// let now = DateTime::from_timestamp(1_795_226_400, 0).unwrap();
/// let year_2040 = now + TimeDelta::days(5000);
/// assert_eq!(believable(now, now), (now, None));
/// assert_eq!(believable(year_2040, now), (now + TimeDelta::minutes(2), Some(year_2040)));
/// ```
pub fn believable(at: DateTime<Utc>, now: DateTime<Utc>) -> (DateTime<Utc>, Option<DateTime<Utc>>) {
    match now.checked_add_signed(SKEW) {
        Some(latest) if at > latest => (latest, Some(at)),
        Some(_) | None => (at, None),
    }
}

/// The date of a moment as people in Rwanda, Kenya and France write it, in Kigali time: `21/11/2026`.
pub fn kigali_date(at: DateTime<Utc>) -> String {
    let local = kigali(at);
    let mut out = String::with_capacity(10);
    padded(&mut out, local.day(), 2);
    out.push('/');
    padded(&mut out, local.month(), 2);
    out.push('/');
    padded(&mut out, local.year().unsigned_abs(), 4);
    out
}

/// The time of day of a moment in Kigali: `14:05`.
pub fn kigali_time(at: DateTime<Utc>) -> String {
    let local = kigali(at);
    let mut out = String::with_capacity(5);
    padded(&mut out, local.hour(), 2);
    out.push(':');
    padded(&mut out, local.minute(), 2);
    out
}

fn kigali(at: DateTime<Utc>) -> DateTime<Utc> {
    at.checked_add_signed(TimeDelta::minutes(i64::from(KIGALI_OFFSET_MINUTES))).unwrap_or(at)
}

fn padded(out: &mut String, value: u32, width: usize) {
    let digits = value.to_string();
    for _ in digits.len()..width {
        out.push('0');
    }
    out.push_str(&digits);
}

/// Reads RFC 3339; the zone must be there.
pub fn parse_rfc3339(text: &str) -> Option<DateTime<Utc>> {
    parse_iso(text, None)
}

/// Reads what carriers put into reports, as far as their papers say: RFC 3339, `YYYY-MM-DD[T ]HH:MM[:SS]`, `YYMMDDhhmm[ss]`,
/// `YYYYMMDDhhmmss`, Unix seconds or milliseconds. Without a zone it is Kigali time.
pub fn parse_carrier(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_digits(text);
    }
    parse_iso(text, Some(KIGALI_OFFSET_MINUTES))
}

/// Unix seconds, as WhatsApp writes them in a string.
pub fn parse_unix(text: &str) -> Option<DateTime<Utc>> {
    let seconds: i64 = text.trim().parse().ok()?;
    plausible(DateTime::from_timestamp(seconds, 0)?)
}

/// The three date forms of RFC 9110 section 5.6.7, of which only the first is still written.
pub fn parse_http_date(text: &str) -> Option<DateTime<Utc>> {
    let mut words = text.trim().split([' ', '-']).filter(|word| !word.is_empty());
    let weekday = words.next()?;
    if weekday.ends_with(',') {
        let day = words.next()?;
        let month = words.next()?;
        let year = words.next()?;
        let time = words.next()?;
        if words.next()? != "GMT" {
            return None;
        }
        let year = match number(year)? {
            // RFC 850: two digits, taken as this century (its dates are gone otherwise).
            short @ 0..=99 => 2000 + short,
            long => long,
        };
        return at_utc(year, month_number(month)?, number(day)?, clock(time)?, 0);
    }
    let month = words.next()?;
    let day = words.next()?;
    let time = words.next()?;
    at_utc(number(words.next()?)?, month_number(month)?, number(day)?, clock(time)?, 0)
}

fn parse_iso(text: &str, default_offset_minutes: Option<i32>) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if !text.is_ascii() || text.len() > 40 {
        return None;
    }
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.split(['-', '/']);
    let (year, month, day) = (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (zone_at, offset) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => (at, parse_zone(rest.get(at..)?)?),
        None => (rest.len(), default_offset_minutes?),
    };
    let time = rest.get(..zone_at)?.trim_end();
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let base = at_utc(year, month, day, clock(time)?, offset)?;
    base.checked_add_signed(TimeDelta::milliseconds(milliseconds(fraction)?))
}

fn parse_zone(zone: &str) -> Option<i32> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, digits) = zone.split_at_checked(1)?;
    let (hours, minutes) = match (digits.split_once(':'), digits.len()) {
        (Some((hours, minutes)), _) => (number(hours)?, number(minutes)?),
        (None, 4) => {
            let (hours, minutes) = digits.split_at_checked(2)?;
            (number(hours)?, number(minutes)?)
        }
        (None, 2) => (number(digits)?, 0),
        (None, _) => return None,
    };
    if hours > 23 || minutes > 59 {
        return None;
    }
    let offset = hours * 60 + minutes;
    Some(if sign == "-" { -offset } else { offset })
}

fn parse_digits(text: &str) -> Option<DateTime<Utc>> {
    match text.len() {
        // Ten digits are Unix seconds from 2001 on when they begin with 1 and make no plausible YYMMDD of this decade.
        10 => match compact(text, 2000) {
            Some(at) if text.starts_with('2') => Some(at),
            _ => parse_unix(text),
        },
        12 => compact(text, 2000),
        13 => plausible(DateTime::from_timestamp_millis(text.parse().ok()?)?),
        14 => {
            let (century, rest) = text.split_at_checked(2)?;
            compact(rest, number(century)?.checked_mul(100)?)
        }
        _ => None,
    }
}

/// `YYMMDDhhmm[ss]` in Kigali time.
fn compact(text: &str, century: i32) -> Option<DateTime<Utc>> {
    let pair = |index: usize| text.get(index * 2..index * 2 + 2).map(number);
    let seconds = match pair(5) {
        Some(seconds) => seconds?,
        None => 0,
    };
    let time = (pair(3)??, pair(4)??, seconds);
    at_utc(century + pair(0)??, pair(1)??, pair(2)??, time, KIGALI_OFFSET_MINUTES)
}

fn clock(text: &str) -> Option<(i32, i32, i32)> {
    let mut parts = text.split(':');
    let (hour, minute) = (number(parts.next()?)?, number(parts.next()?)?);
    let second = match parts.next() {
        Some(second) => number(second)?,
        None => 0,
    };
    parts.next().is_none().then_some((hour, minute, second))
}

fn at_utc(year: i32, month: i32, day: i32, time: (i32, i32, i32), offset_minutes: i32) -> Option<DateTime<Utc>> {
    let (hour, minute, second) = time;
    // A leap second is read as the second before it.
    let second = if second == 60 { 59 } else { second };
    let date = NaiveDate::from_ymd_opt(year, u32::try_from(month).ok()?, u32::try_from(day).ok()?)?;
    let local =
        date.and_hms_opt(u32::try_from(hour).ok()?, u32::try_from(minute).ok()?, u32::try_from(second).ok()?)?;
    plausible(local.and_utc().checked_sub_signed(TimeDelta::minutes(i64::from(offset_minutes)))?)
}

/// Years 1970 to 9999: what Postgres and RFC 3339 both can hold.
fn plausible(at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    (0..253_402_300_800).contains(&at.timestamp()).then_some(at)
}

fn milliseconds(fraction: &str) -> Option<i64> {
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(3);
    Some(digits.fold(0, |sum, byte| sum * 10 + i64::from(byte - b'0')))
}

fn number(text: &str) -> Option<i32> {
    if text.is_empty() || text.len() > 4 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn month_number(name: &str) -> Option<i32> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let index = MONTHS.iter().position(|month| *month == name)?;
    i32::try_from(index).ok().map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(read: Option<DateTime<Utc>>, expected: &str) {
        assert_eq!(read.map(to_rfc3339).as_deref().unwrap_or("none"), expected);
    }

    #[test]
    fn every_form_of_the_carriers_is_read() {
        for (text, expected) in [
            ("2026-11-21T04:00:07Z", "2026-11-21T04:00:07.000Z"),
            ("2026-11-21T04:00:07+02:00", "2026-11-21T02:00:07.000Z"),
            ("2026-11-21T04:00:07.123456-0130", "2026-11-21T05:30:07.123Z"),
            ("2026-11-21T04:00:07", "2026-11-21T02:00:07.000Z"),
            ("2026-11-21 04:00", "2026-11-21T02:00:00.000Z"),
            ("2611210400", "2026-11-21T02:00:00.000Z"),
            ("261121040007", "2026-11-21T02:00:07.000Z"),
            ("20261121040007", "2026-11-21T02:00:07.000Z"),
            ("1795226400", "2026-11-21T02:00:00.000Z"),
            ("1795226400000", "2026-11-21T02:00:00.000Z"),
            ("2026-13-21T04:00:07", "none"),
            ("yesterday", "none"),
            ("", "none"),
        ] {
            check(parse_carrier(text), expected);
        }
        check(parse_rfc3339("2026-11-21T04:00:07"), "none");
    }

    #[test]
    fn http_dates_of_all_three_forms_are_read() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            check(parse_http_date(text), "1994-11-06T08:49:37.000Z");
        }
        check(parse_http_date("Saturday, 21-Nov-26 04:00:00 GMT"), "2026-11-21T04:00:00.000Z");
        check(parse_http_date("Sun, 06 Nov 1994 08:49:37 CET"), "none");
        check(parse_http_date("soon"), "none");
    }

    proptest! {
        #[test]
        fn printed_times_read_back(seconds in 0_i64..253_402_300_800, ms in 0_u32..1000) {
            let at = DateTime::from_timestamp(seconds, ms * 1_000_000).unwrap();
            prop_assert_eq!(parse_rfc3339(&to_rfc3339(at)), Some(at));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", digits in "[0-9:TZ+. -]{0,40}") {
            for text in [text, digits] {
                let _ = (parse_rfc3339(&text), parse_carrier(&text), parse_unix(&text), parse_http_date(&text));
            }
        }
    }
}
