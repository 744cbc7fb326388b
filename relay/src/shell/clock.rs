//! The one place that asks for the time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::moment::Moment;

/// Seconds from 1900, where NTP begins, to 1970.
const NTP_EPOCH: u64 = 2_208_988_800;

/// The relay's clock; every copy has the same start.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    started_unix_us: u64,
}

impl Clock {
    /// Starts now.
    #[allow(clippy::disallowed_methods, reason = "the shell brings the time")]
    pub fn start() -> Clock {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), started_unix_us: u64::try_from(since_1970.as_micros()).unwrap_or_default() }
    }

    /// The present.
    pub fn now(&self) -> Moment {
        Moment::from_micros(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// A moment for the runtime's timers.
    pub fn instant(&self, at: Moment) -> tokio::time::Instant {
        (self.start + at.since(Moment::default())).into()
    }

    /// A moment as milliseconds since 1970. It does not jump when the system's clock is set.
    pub fn unix_ms(&self, at: Moment) -> i64 {
        i64::try_from((self.started_unix_us + at.as_micros()) / 1000).unwrap_or(i64::MAX)
    }

    /// The start as NTP time, 32.32 fixed point.
    pub fn ntp_at_start(&self) -> u64 {
        let seconds = self.started_unix_us / 1_000_000 + NTP_EPOCH;
        let fraction = ((self.started_unix_us % 1_000_000) << 32) / 1_000_000;
        (seconds << 32) | fraction
    }
}
