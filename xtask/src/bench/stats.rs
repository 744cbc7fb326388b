//! A few honest statistics: medians and percentiles of what was measured, nothing fitted.

/// The smallest value that at least `percent` of all values do not exceed (nearest rank). Zero of nothing.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).or(sorted.last()).copied().unwrap_or_default()
}

/// The middle value, or the mean of the two in the middle. Zero of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), middle.checked_sub(1).and_then(|before| sorted.get(before))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => lower.midpoint(*upper),
        (Some(middle), _) => *middle,
        (None, _) => 0.0,
    }
}

/// The median of the ratios of neighbours. What slows the machine down for a while slows both of a pair, so it drops out.
/// None when there is no pair with something to divide by.
pub fn paired_ratio(ours: &[f64], peers: &[f64]) -> Option<f64> {
    let ratios = ratios(ours, peers);
    (!ratios.is_empty()).then(|| median(&ratios))
}

/// First and third quartile of the ratios of neighbours: how far the median may be trusted.
pub fn ratio_quartiles(ours: &[f64], peers: &[f64]) -> (f64, f64) {
    let ratios = ratios(ours, peers);
    (percentile(&ratios, 25.0), percentile(&ratios, 75.0))
}

fn ratios(ours: &[f64], peers: &[f64]) -> Vec<f64> {
    ours.iter().zip(peers).filter(|(_, peer)| **peer > 0.0).map(|(our, peer)| our / peer).collect()
}

/// Dice that fall the same way for the same seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    /// A number drawn evenly from `[0, 1)`.
    pub fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([50.0, 95.0, 99.0, 100.0].map(|percent| percentile(&values, percent)), [50.0, 95.0, 99.0, 100.0]);
        assert_eq!([0.0, 50.0, 99.0].map(|percent| percentile(&[7.0], percent)), [7.0; 3]);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50.0), 2.0);
        assert_eq!(percentile(&[], 50.0), 0.0);
    }

    #[test]
    fn a_median_lies_in_the_middle() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[9.0, 1.0, 5.0, 6.0]), 5.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_slow_minute_does_not_move_the_ratio() {
        // Twice as slow as the peer; in the third pair the machine is five times slower for both.
        let (ours, peers) = ([2.0, 2.0, 10.0, 2.2], [1.0, 1.0, 5.0, 1.0]);
        assert_eq!(paired_ratio(&ours, &peers), Some(2.0));
        assert_eq!(ratio_quartiles(&ours, &peers), (2.0, 2.0));
        assert_eq!(paired_ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn dice_repeat_themselves_and_stay_below_one() {
        let rolled = |seed| -> Vec<f64> {
            let mut dice = Dice(seed);
            (0..1000).map(|_| dice.roll()).collect()
        };
        assert_eq!(rolled(7), rolled(7));
        assert_ne!(rolled(7), rolled(8));
        let rolled = rolled(7);
        assert!(rolled.iter().all(|roll| (0.0..1.0).contains(roll)));
        assert!((0.45..0.55).contains(&(rolled.iter().sum::<f64>() / 1000.0)));
    }
}
