//! The head of a WAV file with G.711 on two tracks, as the recordings are: the bytes of the call, untouched.

use super::g711::Law;

/// How long the head is; sound follows at once.
pub const HEAD_BYTES: usize = 58;
/// Bytes of a second: two tracks of 8000.
pub const BYTES_PER_SECOND: u32 = 16_000;

/// The head of a file with `sound_bytes` of sound ("Multimedia Programming Interface and Data Specifications 1.0",
/// RIFF WAVE; formats 6 and 7 of RFC 2361 for A-law and mu-law). What is not PCM needs a `fact` chunk.
pub fn head(law: Law, sound_bytes: u32) -> Vec<u8> {
    let format: u16 = match law {
        Law::A => 6,
        Law::Mu => 7,
    };
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(b"RIFF");
    head.extend_from_slice(&sound_bytes.saturating_add(HEAD_BYTES as u32 - 8).to_le_bytes());
    head.extend_from_slice(b"WAVEfmt ");
    head.extend_from_slice(&18_u32.to_le_bytes());
    head.extend_from_slice(&format.to_le_bytes());
    head.extend_from_slice(&2_u16.to_le_bytes());
    head.extend_from_slice(&8000_u32.to_le_bytes());
    head.extend_from_slice(&BYTES_PER_SECOND.to_le_bytes());
    head.extend_from_slice(&2_u16.to_le_bytes());
    head.extend_from_slice(&8_u16.to_le_bytes());
    head.extend_from_slice(&0_u16.to_le_bytes());
    head.extend_from_slice(b"fact");
    head.extend_from_slice(&4_u32.to_le_bytes());
    head.extend_from_slice(&(sound_bytes / 2).to_le_bytes());
    head.extend_from_slice(b"data");
    head.extend_from_slice(&sound_bytes.to_le_bytes());
    head
}

/// The law of a file by its head; none if the head is not one of ours.
pub fn law_of(head: &[u8]) -> Option<Law> {
    [Law::A, Law::Mu].into_iter().find(|law| {
        // All but the three lengths.
        let ours = self::head(*law, 0);
        [0..4, 8..42, 42..46, 50..54].into_iter().all(|range| head.get(range.clone()) == ours.get(range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(head: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(head[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn every_field_stands_where_a_reader_looks_for_it() {
        for (law, format) in [(Law::A, 6), (Law::Mu, 7)] {
            let head = head(law, 32_000);
            assert_eq!(head.len(), HEAD_BYTES);
            assert_eq!(
                (&head[..4], &head[8..16], &head[38..42], &head[50..54]),
                (&b"RIFF"[..], &b"WAVEfmt "[..], &b"fact"[..], &b"data"[..])
            );
            assert_eq!((number(&head, 4), number(&head, 54), number(&head, 46)), (32_050, 32_000, 16_000));
            assert_eq!(
                (u16::from_le_bytes([head[20], head[21]]), head[22], number(&head, 24), head[32], head[34]),
                (format, 2, 8000, 2, 8)
            );
            assert_eq!(law_of(&head), Some(law));
        }
    }

    #[test]
    fn what_is_no_head_of_ours_has_no_law() {
        assert_eq!((law_of(b""), law_of(&[0; HEAD_BYTES]), law_of(&head(Law::A, 0)[..40])), (None, None, None));
        let mut other = head(Law::A, 0);
        other[20] = 1;
        assert_eq!(law_of(&other), None);
    }
}
