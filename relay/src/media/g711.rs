//! G.711, both laws: 8 bits a sample, 8000 samples a second.
//!
//! Decoding is a table; encoding is worked out, because it is needed only where a sample was made here (concealment,
//! comfort noise, a model that speaks PCM).

/// Which of the two laws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Law {
    /// Europe, Africa and most of the rest.
    A,
    /// North America and Japan.
    Mu,
}

impl Law {
    /// The byte that means silence.
    pub const fn silence(self) -> u8 {
        match self {
            Law::A => 0xd5,
            Law::Mu => 0xff,
        }
    }

    /// The static RTP payload type (RFC 3551 §6).
    pub const fn payload_type(self) -> u8 {
        match self {
            Law::A => super::rtp::PCMA,
            Law::Mu => super::rtp::PCMU,
        }
    }

    /// One sample, as 16-bit PCM.
    pub fn decode(self, byte: u8) -> i16 {
        let table = match self {
            Law::A => &A_LAW,
            Law::Mu => &MU_LAW,
        };
        table.get(usize::from(byte)).copied().unwrap_or_default()
    }

    /// The same sound in another law.
    pub fn convert(self, to: Law, sound: &[u8]) -> Vec<u8> {
        sound.iter().map(|byte| if self == to { *byte } else { to.encode(self.decode(*byte)) }).collect()
    }

    /// One sample of 16-bit PCM: the byte in whose interval it lies.
    pub fn encode(self, sample: i16) -> u8 {
        match self {
            Law::A => encode_a(sample),
            Law::Mu => encode_mu(sample),
        }
    }
}

static A_LAW: [i16; 256] = table(Law::A);
static MU_LAW: [i16; 256] = table(Law::Mu);

#[allow(clippy::indexing_slicing, reason = "worked out by the compiler, which refuses an index out of range")]
const fn table(law: Law) -> [i16; 256] {
    let mut values = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        values[byte] = match law {
            Law::A => decode_a(byte as u8),
            Law::Mu => decode_mu(byte as u8),
        };
        byte += 1;
    }
    values
}

const fn decode_a(byte: u8) -> i16 {
    let bits = byte ^ 0x55;
    let mantissa = ((bits & 0x0f) as i16) << 4;
    let magnitude = match (bits >> 4) & 0x07 {
        0 => mantissa + 8,
        segment => (mantissa + 0x108) << (segment - 1),
    };
    if bits & 0x80 != 0 { magnitude } else { -magnitude }
}

const fn decode_mu(byte: u8) -> i16 {
    let bits = !byte;
    let exponent = (bits >> 4) & 0x07;
    let magnitude = (((((bits & 0x0f) as i16) << 3) + 132) << exponent) - 132;
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

fn encode_a(sample: i16) -> u8 {
    // One's complement, so that -1 and 0 stand on either side of the middle as the law wants it.
    let (sign, magnitude) = if sample < 0 { (0x00, !sample) } else { (0x80, sample) };
    let steps = (magnitude as u16) >> 4;
    let bits = match steps {
        0..=15 => steps,
        _ => {
            let exponent = 12 - steps.leading_zeros() as u16;
            (exponent << 4) | ((steps >> (exponent - 1)) & 0x0f)
        }
    };
    (bits as u8 | sign) ^ 0x55
}

fn encode_mu(sample: i16) -> u8 {
    const CLIP: u16 = 32635;
    let magnitude = sample.unsigned_abs().min(CLIP) + 132;
    let exponent = 8 - magnitude.leading_zeros() as u16;
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    let sign = if sample < 0 { 0x80 } else { 0x00 };
    !(sign | (exponent << 4) as u8 | mantissa as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two expansions as ITU-T G.191 writes them (`alaw_expand`, `ulaw_expand`).
    fn reference(law: Law, byte: u8) -> i32 {
        match law {
            Law::A => {
                let bits = i32::from((byte ^ 0x55) & 0x7f);
                let exponent = bits >> 4;
                let mut mantissa = bits & 0x0f;
                if exponent > 0 {
                    mantissa += 16;
                }
                mantissa = (mantissa << 4) + 8;
                if exponent > 1 {
                    mantissa <<= exponent - 1;
                }
                if byte > 127 { mantissa } else { -mantissa }
            }
            Law::Mu => {
                let sign = if byte < 0x80 { -1 } else { 1 };
                let exponent = i32::from(!byte >> 4) & 7;
                let step = 4 << (exponent + 1);
                sign * ((0x80 << exponent) + step * (i32::from(!byte) & 15) + step / 2 - 4 * 33)
            }
        }
    }

    #[test]
    fn sound_in_the_other_law_is_as_loud_and_as_long() {
        for (from, to) in [(Law::A, Law::Mu), (Law::Mu, Law::A)] {
            let all: Vec<u8> = (0..=255).collect();
            let converted = from.convert(to, &all);
            assert_eq!(converted.len(), all.len());
            for (byte, other) in all.iter().zip(converted) {
                let (before, after) = (i32::from(from.decode(*byte)), i32::from(to.decode(other)));
                assert!((before - after).abs() <= 8 + before.abs() / 16, "{from:?} {byte:#x}: {before} and {after}");
            }
            assert_eq!(from.convert(from, &all), all);
        }
    }

    #[test]
    fn every_byte_decodes_as_the_reference_says() {
        for law in [Law::A, Law::Mu] {
            for byte in 0..=255 {
                assert_eq!(i32::from(law.decode(byte)), reference(law, byte), "{law:?} {byte:#x}");
            }
        }
    }

    /// The two compressions as ITU-T G.191 writes them (`alaw_compress`, `ulaw_compress`).
    fn reference_of(law: Law, sample: i16) -> u8 {
        let ones_complement = i32::from(if sample < 0 { !sample } else { sample });
        let bits = match law {
            Law::A => {
                let mut bits = ones_complement >> 4;
                if bits > 15 {
                    let mut exponent = 1;
                    while bits > 16 + 15 {
                        bits >>= 1;
                        exponent += 1;
                    }
                    bits = bits - 16 + (exponent << 4);
                }
                (bits | if sample >= 0 { 0x80 } else { 0 }) ^ 0x55
            }
            Law::Mu => {
                let absolute = ((ones_complement >> 2) + 33).min(0x1fff);
                let (mut segment, mut rest) = (1, absolute >> 6);
                while rest != 0 {
                    segment += 1;
                    rest >>= 1;
                }
                let low = 0x0f - ((absolute >> segment) & 0x0f);
                ((8 - segment) << 4) | low | if sample >= 0 { 0x80 } else { 0 }
            }
        };
        bits as u8
    }

    #[test]
    fn every_sample_encodes_as_the_reference_says() {
        for sample in i16::MIN..=i16::MAX {
            assert_eq!(Law::A.encode(sample), reference_of(Law::A, sample), "A-law of {sample}");
            // For mu-law the reference takes the one's complement of what is negative, which moves the decision values
            // by one; nearly everybody in the field has them symmetric.
            let (sign, magnitude) = if sample < 0 { (0x80, sample.saturating_neg()) } else { (0, sample) };
            assert_eq!(Law::Mu.encode(sample), reference_of(Law::Mu, magnitude) ^ sign, "mu-law of {sample}");
        }
    }

    #[test]
    fn known_samples_have_their_known_bytes() {
        for (sample, mu, a) in [
            (0, 0xff, 0xd5),
            (100, 0xf2, 0xd3),
            (-100, 0x72, 0x53),
            (1000, 0xce, 0xfa),
            (8000, 0xa0, 0x8a),
            (32767, 0x80, 0xaa),
            (-32768, 0x00, 0x2a),
        ] {
            assert_eq!((Law::Mu.encode(sample), Law::A.encode(sample)), (mu, a), "{sample}");
        }
        assert_eq!([0x00, 0x7f, 0x80, 0xff].map(|byte| Law::Mu.decode(byte)), [-32124, 0, 32124, 0]);
        assert_eq!(Law::A.decode(0x55), -8);
    }

    #[test]
    fn decoding_and_encoding_again_gives_the_same_byte() {
        for byte in 0..=255 {
            assert_eq!(Law::A.encode(Law::A.decode(byte)), byte);
            // Mu-law has two zeros; the positive one is written.
            assert_eq!(Law::Mu.encode(Law::Mu.decode(byte)), if byte == 0x7f { 0xff } else { byte });
        }
    }
}
