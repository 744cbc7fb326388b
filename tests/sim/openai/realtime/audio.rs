//! Sound as a session exchanges it. Written apart from the relay's own codec, so that the two can disagree.

use serde_json::Value;

use crate::speech::Speech;

/// How sound is written in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Alaw,
    Mulaw,
    /// 16 bit, little-endian, 24 kHz.
    Pcm,
}

impl Format {
    /// Of a session's direction, as `{"type": "audio/pcma"}`.
    pub fn of(format: Option<&Value>) -> Self {
        match format.and_then(|format| format.get("type")).and_then(Value::as_str) {
            Some("audio/pcma") => Self::Alaw,
            Some("audio/pcmu") => Self::Mulaw,
            _ => Self::Pcm,
        }
    }

    pub fn bytes_a_ms(self) -> usize {
        match self {
            Self::Alaw | Self::Mulaw => 8,
            Self::Pcm => 48,
        }
    }

    /// Bytes of one sample.
    pub fn sample(self) -> usize {
        match self {
            Self::Alaw | Self::Mulaw => 1,
            Self::Pcm => 2,
        }
    }

    /// Mean square of the samples.
    pub fn power(self, bytes: &[u8]) -> f64 {
        let square = |sample: i16| f64::from(sample).powi(2);
        let sum: f64 = match self {
            Self::Alaw => bytes.iter().map(|byte| square(from_alaw(*byte))).sum(),
            Self::Mulaw => bytes.iter().map(|byte| square(from_mulaw(*byte))).sum(),
            Self::Pcm => bytes.chunks_exact(2).map(|pair| square(from_pair(pair))).sum(),
        };
        sum / (bytes.len() / self.sample()).max(1) as f64
    }

    /// A recording in this format.
    pub fn write(self, speech: &Speech) -> Vec<u8> {
        match self {
            Self::Alaw => speech.alaw.to_vec(),
            Self::Mulaw => speech.alaw.iter().map(|byte| to_mulaw(from_alaw(*byte))).collect(),
            Self::Pcm => {
                let samples: Vec<i32> = speech.alaw.iter().map(|byte| i32::from(from_alaw(*byte))).collect();
                let next = samples.iter().skip(1).chain(samples.last());
                let thirds = samples
                    .iter()
                    .zip(next)
                    .flat_map(|(one, next)| [0, 1, 2].map(|third| (one + (next - one) * third / 3) as i16));
                thirds.flat_map(i16::to_le_bytes).collect()
            }
        }
    }
}

fn from_pair(pair: &[u8]) -> i16 {
    match pair {
        [low, high] => i16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

/// ITU-T G.711, A-law, as 16 bit.
pub fn from_alaw(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let (segment, step) = ((byte >> 4) & 7, i16::from(byte & 0x0f));
    let magnitude = match segment {
        0 => (step << 4) + 8,
        segment => ((step << 4) + 0x108) << (segment - 1),
    };
    if byte & 0x80 != 0 { magnitude } else { -magnitude }
}

/// ITU-T G.711, mu-law, as 16 bit.
pub fn from_mulaw(byte: u8) -> i16 {
    let byte = !byte;
    let magnitude = (((i32::from(byte & 0x0f) << 3) + 0x84) << ((byte >> 4) & 7)) - 0x84;
    (if byte & 0x80 != 0 { -magnitude } else { magnitude }) as i16
}

fn to_mulaw(sample: i16) -> u8 {
    let magnitude = (i32::from(sample).abs() + 0x84).min(0x7fff);
    // The leading one stands at bit 7 to 14.
    let segment = (24 - (magnitude as u32).leading_zeros()).min(7);
    let step = (magnitude >> (segment + 3)) & 0x0f;
    !((if sample < 0 { 0x80 } else { 0 }) | (segment as u8) << 4 | step as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speech;

    #[test]
    fn both_laws_are_those_of_the_standard() {
        assert_eq!((from_alaw(0xd5), from_alaw(0x55), from_alaw(0xaa), from_alaw(0x2a)), (8, -8, 32_256, -32_256));
        assert_eq!((from_mulaw(0xff), from_mulaw(0x80), from_mulaw(0x00)), (0, 32_124, -32_124));
        for byte in 0..=255_u8 {
            assert_eq!(from_mulaw(to_mulaw(from_mulaw(byte))), from_mulaw(byte), "{byte:#x}");
        }
    }

    #[test]
    fn a_recording_is_as_long_and_as_loud_in_every_format() {
        let loud = Format::Alaw.power(speech::AGENT_PARKING.alaw);
        for format in [Format::Alaw, Format::Mulaw, Format::Pcm] {
            let bytes = format.write(&speech::AGENT_PARKING);
            assert_eq!(bytes.len() as u64 / format.bytes_a_ms() as u64, speech::AGENT_PARKING.ms());
            assert!((format.power(&bytes) / loud - 1.0).abs() < 0.15, "{format:?}");
        }
    }
}
