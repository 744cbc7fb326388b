//! The time, as the kernel stamps packets with it: all delays are measured with this one clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970.
pub type Nanos = u64;

pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1000 * MS;

pub fn now() -> Nanos {
    from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub fn from(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
