//! Concealment of lost packets after G.711 Appendix I: the last period of the voice goes on, fades, and is silent
//! after 60 ms; the first samples after the gap are blended in.
//!
//! Unlike the appendix it adds no delay: the 3.75 ms before a gap are already gone when the gap shows.

/// What is remembered of the voice: 48.75 ms.
const HISTORY: usize = 390;
/// Shortest period looked for: 200 Hz.
const SHORTEST_PERIOD: usize = 40;
/// Longest period looked for: 66 Hz.
const LONGEST_PERIOD: usize = 120;
/// The stretch that is compared: 20 ms.
const COMPARED: usize = 160;
/// 10 ms.
const STEP: usize = 80;
/// After 60 ms there is nothing left to repeat that anybody would believe.
const LONGEST_CONCEALED: usize = 6 * STEP;
/// 4 ms: the blend after a gap of 10 ms or less; it grows by as much with every further 10 ms.
const SHORTEST_BLEND: usize = 32;

/// Conceals the gaps of one stream.
#[derive(Debug, Clone)]
pub struct Concealer {
    /// The last samples, oldest first. Concealed samples are not among them.
    history: Vec<i16>,
    /// The period found at the start of the gap.
    period: usize,
    /// How many samples this gap has been concealed for; zero outside of a gap.
    concealed: usize,
}

impl Default for Concealer {
    fn default() -> Concealer {
        Concealer { history: vec![0; HISTORY], period: LONGEST_PERIOD, concealed: 0 }
    }
}

impl Concealer {
    /// Remembers a good frame. After a gap its beginning is blended with what the concealment would have gone on with;
    /// true if so, and `samples` is then no longer what came.
    pub fn good(&mut self, samples: &mut [i16]) -> bool {
        let blended = self.concealed > 0;
        if blended {
            let length = (SHORTEST_BLEND * self.concealed.div_ceil(STEP)).min(STEP).min(samples.len());
            let ghost: Vec<i16> = (0..length).map(|_| self.next()).collect();
            for (n, (sample, ghost)) in samples.iter_mut().zip(ghost).enumerate() {
                let weight = (n + 1) as f32 / (length + 1) as f32;
                *sample = (f32::from(*sample) * weight + f32::from(ghost) * (1.0 - weight)).round() as i16;
            }
            self.concealed = 0;
        }
        let kept = samples.get(samples.len().saturating_sub(HISTORY)..).unwrap_or_default();
        self.history.drain(..kept.len().min(self.history.len()));
        self.history.extend_from_slice(kept);
        blended
    }

    /// That many samples in place of lost ones.
    pub fn conceal(&mut self, count: usize) -> Vec<i16> {
        if self.concealed == 0 {
            self.period = self.find_period();
        }
        (0..count).map(|_| self.next()).collect()
    }

    /// Forgets the voice: another one speaks, or the stream began anew.
    pub fn reset(&mut self) {
        *self = Concealer::default();
    }

    fn next(&mut self) -> i16 {
        let at = self.concealed;
        self.concealed += 1;
        if at >= LONGEST_CONCEALED {
            return 0;
        }
        // One period in the first 10 ms, two in the second, then three: a single one sounds like a buzzer.
        let span = self.period * (at / STEP + 1).min(3);
        let past = |back: usize| -> f32 {
            self.history.len().checked_sub(back).and_then(|at| self.history.get(at)).copied().map_or(0.0, f32::from)
        };
        let back = span - at % span;
        let mut value = past(back);
        // The seam between the end of the stretch and its beginning: a quarter of a period, overlapped.
        let overlap = self.period / 4;
        if back <= overlap {
            let weight = back as f32 / overlap as f32;
            value = value * weight + past(back + span) * (1.0 - weight);
        }
        // 20 % less with every 10 ms after the first.
        let faded = 1.0 - 0.2 * (at.saturating_sub(STEP)) as f32 / STEP as f32;
        (value * faded.max(0.0)).round() as i16
    }

    /// The lag at which the last 20 ms resemble the samples before them most.
    fn find_period(&self) -> usize {
        let recent = self.history.get(HISTORY - COMPARED..).unwrap_or_default();
        let mut best = (LONGEST_PERIOD, f32::MIN);
        for lag in SHORTEST_PERIOD..=LONGEST_PERIOD {
            let earlier = self.history.get(HISTORY - COMPARED - lag..HISTORY - lag).unwrap_or_default();
            let (mut product, mut energy) = (0.0_f32, 1.0_f32);
            for (now, then) in recent.iter().zip(earlier) {
                product += f32::from(*now) * f32::from(*then);
                energy += f32::from(*then) * f32::from(*then);
            }
            let likeness = product / energy.sqrt();
            if likeness > best.1 {
                best = (lag, likeness);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice(hz: f64, from: usize, count: usize) -> Vec<i16> {
        let angle = |n: usize| std::f64::consts::TAU * hz * n as f64 / 8000.0;
        (from..from + count).map(|n| (8000.0 * (angle(n).sin() + 0.5 * (2.0 * angle(n)).sin())) as i16).collect()
    }

    fn after(hz: f64, heard: usize) -> Concealer {
        let mut concealer = Concealer::default();
        for n in 0..heard / 160 {
            assert!(!concealer.good(&mut voice(hz, n * 160, 160)), "nothing to blend without a gap");
        }
        concealer
    }

    #[test]
    fn the_first_lost_frame_of_a_steady_voice_is_nearly_what_was_lost() {
        for hz in [80.0, 110.0, 125.0, 180.0] {
            let made = after(hz, 1600).conceal(80);
            let lost = voice(hz, 1600, 80);
            let error: f64 = made.iter().zip(&lost).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let power: f64 = lost.iter().map(|sample| f64::from(*sample).powi(2)).sum();
            let ratio = 10.0 * (power / error.max(1.0)).log10();
            assert!(ratio > 12.0, "{hz} Hz: only {ratio:.1} dB between voice and error");
        }
    }

    #[test]
    fn a_long_gap_fades_and_is_silent_after_sixty_ms() {
        let mut concealer = after(110.0, 1600);
        let peaks: Vec<i16> =
            (0..5).map(|_| concealer.conceal(160).iter().map(|sample| sample.abs()).max().unwrap()).collect();
        assert!(peaks[0] > 9000 && peaks[1] < peaks[0] && peaks[2] < peaks[1], "{peaks:?}");
        assert_eq!(peaks[3..], [0, 0]);
    }

    #[test]
    fn the_frame_after_a_gap_begins_with_the_concealment_and_ends_as_it_came() {
        let mut concealer = after(110.0, 1600);
        let made = concealer.conceal(160);
        let came = voice(110.0, 1760, 160);
        let mut frame = came.clone();
        assert!(concealer.good(&mut frame));
        assert!((i32::from(frame[0]) - i32::from(made[159])).abs() < 2500, "no click at the seam");
        assert_eq!(frame[80..], came[80..]);
        assert!(!concealer.good(&mut frame), "only the first frame is blended");
    }

    #[test]
    fn silence_is_concealed_by_silence_and_frames_of_any_length_are_taken() {
        let mut concealer = Concealer::default();
        assert_eq!(concealer.conceal(160), vec![0; 160]);
        for length in [0, 1, 7, 480, 1000] {
            concealer.good(&mut vec![5; length]);
            assert_eq!(concealer.history.len(), HISTORY);
        }
    }
}
