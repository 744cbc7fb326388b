//! What arrived of one stream and how evenly: loss and jitter as RFC 3550 counts them (§6.4.1, §A.3, §A.8).

use super::TICKS_PER_MS;
use crate::moment::Moment;

/// Reception of one stream, from its first packet on.
#[derive(Debug, Default)]
pub struct Reception {
    first: Option<u64>,
    highest: u64,
    received: u64,
    expected_before: u64,
    received_before: u64,
    transit: Option<u32>,
    /// Sixteen times the estimate, in ticks, as in §A.8, to keep the fraction.
    jitter_scaled: u32,
    /// Runs of lost packets, for the pattern of the loss.
    gaps: u64,
}

impl Reception {
    /// One packet, at its place on the long line of sequence numbers.
    pub fn packet(&mut self, now: Moment, place: u64, timestamp: u32) {
        match self.first {
            None => {
                self.first = Some(place);
                self.highest = place;
            }
            Some(first) => {
                if place > self.highest + 1 {
                    self.gaps += 1;
                }
                self.first = Some(first.min(place));
                self.highest = self.highest.max(place);
            }
        }
        self.received += 1;
        // Wrapping throughout: only differences of transit times mean anything.
        let arrival = (now.as_micros() / 1000 * u64::from(TICKS_PER_MS)) as u32
            + (now.as_micros() % 1000 * u64::from(TICKS_PER_MS) / 1000) as u32;
        let transit = arrival.wrapping_sub(timestamp);
        if let Some(before) = self.transit.replace(transit) {
            let difference = (transit.wrapping_sub(before) as i32).unsigned_abs();
            // A clock that was set anew is no jitter.
            if difference < 8000 * 10 {
                self.jitter_scaled =
                    self.jitter_scaled.saturating_add(difference).saturating_sub((self.jitter_scaled + 8) >> 4);
            }
        }
    }

    /// Interarrival jitter in ticks of 125 µs.
    pub fn jitter_ticks(&self) -> u32 {
        self.jitter_scaled >> 4
    }

    /// Packets that came, copies included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Packets that did not come; negative where copies came.
    pub fn lost(&self) -> i64 {
        self.expected() as i64 - self.received as i64
    }

    /// Packets that did not come, of 100.
    fn loss_percent(&self) -> f64 {
        match self.expected() {
            0 => 0.0,
            expected => self.lost().max(0) as f64 * 100.0 / expected as f64,
        }
    }

    /// How much longer the runs of lost packets are than random loss of the same rate would have them; at least 1.
    pub fn burst_ratio(&self) -> f64 {
        if self.gaps == 0 {
            return 1.0;
        }
        let mean_run = self.lost().max(0) as f64 / self.gaps as f64;
        (mean_run * (1.0 - self.loss_percent() / 100.0)).max(1.0)
    }

    /// Highest sequence number with its count of wraps, as a report block wants it.
    pub fn highest(&self) -> u32 {
        // Places begin one wrap up (`rtp::SequenceNumbers`).
        self.highest.saturating_sub(0x1_0000) as u32
    }

    /// The part lost since the last call of this function, in 256ths.
    pub fn fraction_lost(&mut self) -> u8 {
        let (expected, received) = (self.expected(), self.received);
        let expected_since = expected.saturating_sub(self.expected_before);
        let received_since = received.saturating_sub(self.received_before);
        self.expected_before = expected;
        self.received_before = received;
        match expected_since.checked_sub(received_since) {
            Some(lost) if expected_since > 0 => u8::try_from(lost * 256 / expected_since).unwrap_or(u8::MAX),
            _ => 0,
        }
    }

    fn expected(&self) -> u64 {
        self.first.map_or(0, |first| self.highest - first + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(packets: impl IntoIterator<Item = (u64, u64)>) -> Reception {
        let mut reception = Reception::default();
        for (ms, n) in packets {
            reception.packet(Moment::from_millis(ms), 0x1_0000 + n, n as u32 * 160);
        }
        reception
    }

    #[test]
    fn an_even_stream_has_neither_loss_nor_jitter() {
        let mut even = stream((0..100).map(|n| (n * 20, n)));
        assert_eq!((even.lost(), even.jitter_ticks(), even.fraction_lost(), even.highest()), (0, 0, 0, 99));
    }

    #[test]
    fn loss_is_counted_over_all_and_since_the_last_report() {
        let mut reception = stream((0..100).filter(|n| n % 4 != 3).map(|n| (n * 20, n)));
        assert_eq!((reception.lost(), reception.fraction_lost()), (24, 62), "24 of 99, in 256ths");
        assert_eq!(reception.fraction_lost(), 0, "nothing was expected since");
        assert!((reception.loss_percent() - 24.0 * 100.0 / 99.0).abs() < 1e-9);
        assert!((reception.burst_ratio() - 1.0).abs() < 1e-9, "single losses are no bursts");
    }

    #[test]
    fn bursts_are_told_from_single_losses() {
        let bursty = stream((0..1000).filter(|n| n % 100 < 90).map(|n| (n * 20, n)));
        assert!(bursty.burst_ratio() > 8.0, "{}", bursty.burst_ratio());
    }

    #[test]
    fn copies_make_the_loss_negative_and_the_fraction_zero() {
        let mut reception = stream((0..10).flat_map(|n| [(n * 20, n), (n * 20 + 1, n)]));
        assert_eq!((reception.lost(), reception.fraction_lost()), (-10, 0));
    }

    #[test]
    fn alternating_delays_settle_at_their_difference() {
        // Every second packet is 5 ms late: 40 ticks.
        let reception = stream((0..500).map(|n| (n * 20 + n % 2 * 5, n)));
        assert!((38..=40).contains(&reception.jitter_ticks()), "{}", reception.jitter_ticks());
    }
}
