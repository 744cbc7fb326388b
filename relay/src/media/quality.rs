//! How a call sounds, estimated from delay and loss: the simplified E-model (ITU-T G.107).

/// Bursts make loss worse than its rate; 1 is loss without any pattern.
const RANDOM: f64 = 1.0;
/// How well G.711 with concealment bears loss (ITU-T G.113, Appendix I).
const LOSS_ROBUSTNESS: f64 = 25.1;

/// What a call is judged by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// From mouth to ear, jitter buffer included.
    pub one_way_delay_ms: f64,
    /// Packets never played, of 100.
    pub loss_percent: f64,
    /// Mean length of a run of lost packets, against that of random loss of the same rate; at least 1.
    pub burst_ratio: f64,
}

impl Conditions {
    /// The mean opinion score: 1 is bad, 4.5 the most that G.711 can have.
    pub fn mean_opinion_score(&self) -> f64 {
        let delay = self.one_way_delay_ms.max(0.0);
        let too_long = (delay - 177.3).max(0.0);
        let impaired_by_delay = 0.024 * delay + 0.11 * too_long;
        let loss = self.loss_percent.clamp(0.0, 100.0);
        let impaired_by_loss = 95.0 * loss / (loss / self.burst_ratio.max(RANDOM) + LOSS_ROBUSTNESS);
        let r = 93.2 - impaired_by_delay - impaired_by_loss;
        match r {
            _ if r < 0.0 => 1.0,
            _ if r > 100.0 => 4.5,
            _ => 1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_conditions_have_their_known_scores() {
        for (one_way_delay_ms, loss_percent, score) in [
            (100.0, 0.0, 4.36),
            (150.0, 0.0, 4.33),
            (200.0, 0.0, 4.23),
            (300.0, 0.0, 3.71),
            (400.0, 0.0, 3.05),
            (100.0, 1.0, 4.26),
            (150.0, 3.0, 4.00),
            (150.0, 5.0, 3.77),
        ] {
            let found = Conditions { one_way_delay_ms, loss_percent, burst_ratio: 1.0 }.mean_opinion_score();
            assert!((found - score).abs() < 0.01, "{one_way_delay_ms} ms, {loss_percent} %: {found:.3}, not {score}");
        }
    }

    proptest! {
        #[test]
        fn the_score_stays_on_its_scale_and_falls_with_loss(delay in -10.0..5000.0, loss in 0.0..99.0, burst in 0.0..9.0) {
            let score = |loss_percent| {
                Conditions { one_way_delay_ms: delay, loss_percent, burst_ratio: burst }.mean_opinion_score()
            };
            prop_assert!((0.98..=4.5).contains(&score(loss)));
            prop_assert!(score(loss) >= score(loss + 1.0) - 0.05);
        }
    }
}
