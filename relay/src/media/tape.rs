//! Both directions of a call on one tape: the caller on the left track, the agent on the right, a byte each in turn.
//!
//! The agent's packets are the clock: one leaves every 20 ms, whether anybody speaks or not. What the caller said waits
//! here for its turn, so that a network that trembles does not tear it; what a clock of theirs brings too much is
//! dropped in the end.

use std::collections::VecDeque;

use super::FRAME_SAMPLES;

/// A piece is a second long: as much as a kill can take away.
const PIECE_BYTES: usize = 16_000;
/// The caller's sound is put on the tape when two frames of it are there, so that one that is late leaves no hole.
const BEGINS_WITH: usize = 2 * FRAME_SAMPLES;
/// No more of it waits than two seconds; a gateway may bring that much at once.
const MOST_WAITING: usize = 16_000;

/// The tape of one call.
#[derive(Debug)]
pub struct Tape {
    silence: u8,
    heard: VecDeque<u8>,
    flows: bool,
    piece: Vec<u8>,
}

impl Tape {
    /// A blank one; `silence` is the byte of the codec that means silence.
    pub fn new(silence: u8) -> Tape {
        Tape { silence, heard: VecDeque::new(), flows: false, piece: Vec::new() }
    }

    /// Sound of the caller, in its order.
    pub fn heard(&mut self, audio: &[u8]) {
        self.heard.extend(audio);
        let over = self.heard.len().saturating_sub(MOST_WAITING);
        self.heard.drain(..over);
    }

    /// Sound of the agent that leaves now: the tape moves on by as much.
    pub fn said(&mut self, audio: &[u8]) {
        self.flows = if self.flows { !self.heard.is_empty() } else { self.heard.len() >= BEGINS_WITH };
        for byte in audio {
            let heard = self.heard.pop_front_if(|_| self.flows).unwrap_or(self.silence);
            self.piece.extend([heard, *byte]);
        }
    }

    /// The clock stood still for so many samples.
    pub fn skipped(&mut self, samples: usize) {
        self.said(&vec![self.silence; samples.min(MOST_WAITING)]);
    }

    /// The next piece, once it is full.
    pub fn piece(&mut self) -> Option<Vec<u8>> {
        (self.piece.len() >= PIECE_BYTES).then(|| std::mem::take(&mut self.piece))
    }

    /// The last piece.
    pub fn finish(mut self) -> Vec<u8> {
        while !self.heard.is_empty() {
            self.flows = true;
            let rest = self.heard.len().min(FRAME_SAMPLES);
            self.said(&vec![self.silence; rest]);
        }
        self.piece
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The two tracks.
    fn tracks(tape: &[u8]) -> (Vec<u8>, Vec<u8>) {
        tape.chunks(2).map(|pair| (pair[0], pair[1])).unzip()
    }

    #[test]
    fn the_caller_is_on_the_left_and_the_agent_on_the_right() {
        let mut tape = Tape::new(0xd5);
        tape.heard(&[1; 320]);
        tape.said(&[2; 160]);
        tape.said(&[3; 160]);
        tape.said(&[4; 160]);
        let (left, right) = tracks(&tape.finish());
        assert_eq!((&left[..320], &left[320..]), (&[1; 320][..], &[0xd5; 160][..]));
        assert_eq!((right[0], right[160], right[320]), (2, 3, 4));
    }

    #[test]
    fn a_packet_that_is_late_by_one_leaves_no_hole() {
        let mut tape = Tape::new(0xd5);
        for n in 0..10_u8 {
            tape.heard(&[n; 160]);
            tape.said(&[0; 160]);
            if n == 5 {
                // The next one comes after its turn, together with the one behind it.
                tape.said(&[0; 160]);
            }
        }
        let (left, _) = tracks(&tape.finish());
        let heard: Vec<u8> = left.into_iter().filter(|byte| *byte != 0xd5).collect();
        assert_eq!(heard, (0..10_u8).flat_map(|n| [n; 160]).collect::<Vec<_>>());
    }

    #[test]
    fn pieces_are_a_second_long_and_time_that_was_left_out_is_silence() {
        let mut tape = Tape::new(0xff);
        for _ in 0..49 {
            tape.said(&[1; 160]);
        }
        assert_eq!(tape.piece(), None);
        tape.skipped(160);
        let piece = tape.piece().unwrap();
        assert_eq!((piece.len(), &piece[15_998..]), (16_000, &[0xff, 0xff][..]));
    }

    proptest! {
        #[test]
        fn the_agent_is_whole_and_the_caller_in_order(steps in proptest::collection::vec((0_usize..3, 0_usize..3), 0..80)) {
            let mut tape = Tape::new(0xd5);
            let (mut heard, mut said, mut out) = (Vec::new(), Vec::new(), Vec::new());
            for (n, (hears, says)) in steps.into_iter().enumerate() {
                for _ in 0..hears {
                    heard.extend([(n % 200) as u8; 160]);
                    tape.heard(&[(n % 200) as u8; 160]);
                }
                for _ in 0..says {
                    said.extend([(n % 100) as u8; 160]);
                    tape.said(&[(n % 100) as u8; 160]);
                }
                out.extend(tape.piece().unwrap_or_default());
            }
            out.extend(tape.finish());
            let (left, right) = tracks(&out);
            prop_assert_eq!(&right[..said.len()], &said[..]);
            let left: Vec<u8> = left.into_iter().filter(|byte| *byte != 0xd5).collect();
            if heard.len() <= MOST_WAITING {
                prop_assert_eq!(left, heard);
            } else {
                prop_assert!(left.len() <= heard.len() && left.is_sorted());
            }
        }
    }
}
