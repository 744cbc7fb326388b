//! What the pure core may not have: the time and dice, taken from the Workers runtime.

use chrono::{DateTime, Utc};

/// Milliseconds since 1970. In a Worker the clock stands still between I/O operations, so one decision has one `now`.
pub fn now_ms() -> i64 {
    #[allow(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit an i64 for 292 million years")]
    let now = js_sys::Date::now() as i64;
    now
}

pub fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(now_ms()).unwrap_or_default()
}

/// Random bytes from the runtime's `crypto.getRandomValues`.
///
/// If the runtime refuses (it never has), the clock stands in: ids stay distinct enough to be refused as duplicates by the
/// database instead of taking the request down.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    if getrandom::fill(&mut bytes).is_err() {
        for (byte, clock) in bytes.iter_mut().zip(now_ms().to_le_bytes().into_iter().cycle()) {
            *byte = clock;
        }
    }
    bytes
}

/// A number drawn evenly from `[0, 1)`.
pub fn dice() -> f64 {
    f64::from(u32::from_le_bytes(random_bytes())) / (f64::from(u32::MAX) + 1.0)
}

/// A new random UUID (version 4).
pub fn new_uuid() -> String {
    ihuza_core::ids::uuid_v4(random_bytes())
}
