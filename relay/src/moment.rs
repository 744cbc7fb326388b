//! The relay's monotonic clock, as a value.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in time: microseconds since the relay's own start. It says nothing about the date, and never goes back.
///
/// Pure code is handed one; a test makes its own, and so a call of an hour is replayed in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment {
    micros: u64,
}

impl Moment {
    /// That many microseconds after the start.
    pub const fn from_micros(micros: u64) -> Moment {
        Moment { micros }
    }

    /// That many milliseconds after the start.
    pub const fn from_millis(millis: u64) -> Moment {
        Moment { micros: millis.saturating_mul(1000) }
    }

    /// Microseconds since the start.
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, wait: Duration) -> Moment {
        Moment { micros: self.micros.saturating_add(micros(wait)) }
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, wait: Duration) {
        *self = *self + wait;
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, wait: Duration) -> Moment {
        Moment { micros: self.micros.saturating_sub(micros(wait)) }
    }
}

fn micros(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)
}
