//! Comfort noise (RFC 3389): the other side is silent on purpose and says how loud its silence is.
//!
//! The spectrum that may follow the level is not imitated: nobody listens to this noise but a model.

/// Level of the silence, in decibels below the overload point (dBov); 127 is next to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoiseLevel(u8);

impl NoiseLevel {
    /// The first byte of the payload (§3).
    pub fn parse(payload: &[u8]) -> Option<NoiseLevel> {
        payload.first().map(|level| NoiseLevel(level & 0x7f))
    }

    /// The root mean square of the noise, in steps of 16-bit PCM.
    fn rms(self) -> f32 {
        32_768.0 * 10_f32.powf(f32::from(self.0) / -20.0)
    }
}

/// White noise that is the same for the same seed.
#[derive(Debug, Clone)]
pub struct Noise {
    state: u32,
}

impl Noise {
    /// A source of its own for each call.
    pub fn new(seed: u32) -> Noise {
        Noise { state: seed | 1 }
    }

    /// That many samples at the level.
    pub fn samples(&mut self, level: NoiseLevel, count: usize) -> Vec<i16> {
        // Numbers spread evenly over [-1, 1) have a root mean square of 1/sqrt(3).
        let scale = level.rms() * 3_f32.sqrt();
        (0..count).map(|_| (self.draw() * scale) as i16).collect()
    }

    /// Xorshift: evenly spread over [-1, 1).
    fn draw(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        (self.state as i32) as f32 / 2_147_483_648.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_is_as_loud_as_the_payload_says() {
        for level in [20, 40, 60] {
            let samples = Noise::new(7).samples(NoiseLevel::parse(&[level, 1, 2]).unwrap(), 8000);
            let power: f64 = samples.iter().map(|sample| f64::from(*sample).powi(2)).sum::<f64>() / 8000.0;
            let found = -20.0 * (power.sqrt() / 32_768.0).log10();
            assert!((found - f64::from(level)).abs() < 0.6, "asked for -{level} dBov, got -{found:.2}");
        }
    }

    #[test]
    fn the_quietest_level_is_silence_and_an_empty_payload_no_level() {
        assert!(Noise::new(1).samples(NoiseLevel::parse(&[127]).unwrap(), 160).iter().all(|sample| *sample == 0));
        assert_eq!(NoiseLevel::parse(&[]), None);
        assert_eq!(NoiseLevel::parse(&[0x80 | 30]), NoiseLevel::parse(&[30]), "the highest bit is reserved");
    }
}
