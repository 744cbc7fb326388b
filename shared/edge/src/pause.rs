//! Waiting without holding the CPU.

use std::time::Duration;

/// Sleeps for `ms` milliseconds of the runtime's clock.
pub async fn for_ms(ms: u32) {
    worker::Delay::from(Duration::from_millis(u64::from(ms))).await;
}
