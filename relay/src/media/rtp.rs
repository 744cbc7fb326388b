//! RTP packets (RFC 3550 §5.1) and the long sequence number of a stream (§A.1).

/// Payload type of mu-law (RFC 3551 §6).
pub const PCMU: u8 = 0;
/// Payload type of A-law (RFC 3551 §6).
pub const PCMA: u8 = 8;
/// Payload type of comfort noise (RFC 3389).
pub const COMFORT_NOISE: u8 = 13;

/// A packet that was read, borrowed from the datagram it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The first packet after silence, or the first of a telephone event.
    pub marker: bool,
    /// Which codec, by the numbers of the session description; 0 to 127.
    pub payload_type: u8,
    /// One more with every packet.
    pub sequence_number: u16,
    /// Sampling instant of the first sample, in ticks of the payload's clock.
    pub timestamp: u32,
    /// Who sends.
    pub ssrc: u32,
    /// What is left when header, extension and padding are taken off. May be empty.
    pub payload: &'a [u8],
}

/// Why a datagram is not RTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RtpError {
    /// The datagram ends inside the header, the extension or the padding.
    #[error("RTP packet is cut short: its header speaks of more bytes than there are")]
    Short,
    /// Not version 2.
    #[error("RTP version {0}, only 2 is in use: not RTP, or damaged")]
    Version(u8),
}

impl<'a> Packet<'a> {
    /// Reads one datagram.
    pub fn parse(datagram: &'a [u8]) -> Result<Packet<'a>, RtpError> {
        let (header, rest) = datagram.split_first_chunk::<12>().ok_or(RtpError::Short)?;
        let [flags, kind, s0, s1, t0, t1, t2, t3, i0, i1, i2, i3] = *header;
        if flags >> 6 != 2 {
            return Err(RtpError::Version(flags >> 6));
        }
        let mut payload = rest.get(usize::from(flags & 0x0f) * 4..).ok_or(RtpError::Short)?;
        if flags & 0x10 != 0 {
            let ([_, _, words_high, words_low], after) = payload.split_first_chunk::<4>().ok_or(RtpError::Short)?;
            let words = usize::from(u16::from_be_bytes([*words_high, *words_low]));
            payload = after.get(words * 4..).ok_or(RtpError::Short)?;
        }
        if flags & 0x20 != 0 {
            let padding = usize::from(*payload.last().ok_or(RtpError::Short)?);
            // The count includes itself, so that zero cannot be.
            let kept = payload.len().checked_sub(padding).filter(|_| padding > 0).ok_or(RtpError::Short)?;
            payload = payload.get(..kept).ok_or(RtpError::Short)?;
        }
        Ok(Packet {
            marker: kind & 0x80 != 0,
            payload_type: kind & 0x7f,
            sequence_number: u16::from_be_bytes([s0, s1]),
            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: u32::from_be_bytes([i0, i1, i2, i3]),
            payload,
        })
    }

    /// The datagram: no contributing sources, no extension, no padding.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(12 + self.payload.len());
        datagram.push(0x80);
        datagram.push(u8::from(self.marker) << 7 | self.payload_type & 0x7f);
        datagram.extend_from_slice(&self.sequence_number.to_be_bytes());
        datagram.extend_from_slice(&self.timestamp.to_be_bytes());
        datagram.extend_from_slice(&self.ssrc.to_be_bytes());
        datagram.extend_from_slice(self.payload);
        datagram
    }
}

/// Whether a datagram on a port that carries both is RTCP: its packet types lie where no payload type may (RFC 5761 §4).
pub fn is_rtcp(datagram: &[u8]) -> bool {
    datagram.get(1).is_some_and(|kind| (192..=223).contains(kind))
}

/// More than this many packets ahead is not loss but a stream that began anew (RFC 3550 §A.1).
const MAX_DROPOUT: u16 = 3000;
/// More than this many behind is not reordering but a stream that began anew.
const MAX_MISORDER: u16 = 100;

/// Gives the packets of one stream numbers that never wrap.
#[derive(Debug, Default)]
pub struct SequenceNumbers {
    highest: Option<u64>,
    /// Where a stream that jumped would go on; it is believed when the next packet does.
    suspect: Option<u16>,
}

/// What a sequence number says about its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// Its number on the long line.
    At(u64),
    /// As `At`, but the stream began anew: nothing before it is connected to it.
    Restarted(u64),
    /// A jump too wide to believe yet: to be dropped.
    Suspect,
}

impl SequenceNumbers {
    /// Where packet `number` stands. The first one of a stream stands at 65536 and a bit, so that an earlier one fits.
    pub fn place(&mut self, number: u16) -> Placed {
        let Some(highest) = self.highest else {
            let first = u64::from(number) + 0x1_0000;
            self.highest = Some(first);
            return Placed::At(first);
        };
        let ahead = number.wrapping_sub(highest as u16);
        let behind = (highest as u16).wrapping_sub(number);
        if ahead < MAX_DROPOUT {
            self.suspect = None;
            let at = highest + u64::from(ahead);
            self.highest = Some(at);
            Placed::At(at)
        } else if behind <= MAX_MISORDER {
            self.suspect = None;
            Placed::At(highest.saturating_sub(u64::from(behind)))
        } else if self.suspect == Some(number) {
            self.suspect = None;
            let at = (highest | 0xffff) + 0x1_0001 + u64::from(number);
            self.highest = Some(at);
            Placed::Restarted(at)
        } else {
            self.suspect = Some(number.wrapping_add(1));
            Placed::Suspect
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_with_sources_extension_and_padding_keeps_only_its_payload() {
        let mut datagram = vec![0xb2, 0x88, 0x12, 0x34, 0, 0, 0, 160, 0xde, 0xad, 0xbe, 0xef];
        datagram.extend([0; 8]); // two contributing sources
        datagram.extend([0xbe, 0xde, 0, 1, 1, 2, 3, 4]); // one word of extension
        datagram.extend([7, 8, 9, 0, 0, 3]); // three bytes, three of padding
        let packet = Packet::parse(&datagram).unwrap();
        assert_eq!(
            packet,
            Packet {
                marker: true,
                payload_type: 8,
                sequence_number: 0x1234,
                timestamp: 160,
                ssrc: 0xdead_beef,
                payload: &[7, 8, 9]
            }
        );
    }

    #[test]
    fn a_header_that_promises_more_than_there_is_is_refused() {
        let sound =
            Packet { marker: false, payload_type: 0, sequence_number: 1, timestamp: 2, ssrc: 3, payload: &[9, 9, 200] }
                .to_bytes();
        assert!(Packet::parse(&sound).is_ok());
        assert_eq!(Packet::parse(&sound[..11]), Err(RtpError::Short));
        for (at, flags) in [(0, 0x8f), (0, 0x90), (0, 0xa0)] {
            let mut broken = sound.clone();
            broken[at] = flags;
            assert_eq!(Packet::parse(&broken), Err(RtpError::Short), "flags {flags:#x}");
        }
        let mut other = sound.clone();
        other[0] = 0x40;
        assert_eq!(Packet::parse(&other), Err(RtpError::Version(1)));
        let mut padded_with_nothing = sound;
        padded_with_nothing[0] = 0xa0;
        *padded_with_nothing.last_mut().unwrap() = 0;
        assert_eq!(Packet::parse(&padded_with_nothing), Err(RtpError::Short));
    }

    #[test]
    fn numbers_run_on_through_the_wrap_and_back_over_it() {
        let mut numbers = SequenceNumbers::default();
        assert_eq!(numbers.place(65534), Placed::At(0x1_fffe));
        assert_eq!(numbers.place(1), Placed::At(0x2_0001));
        assert_eq!(numbers.place(65535), Placed::At(0x1_ffff));
        assert_eq!(numbers.place(2), Placed::At(0x2_0002));
    }

    #[test]
    fn a_jump_is_believed_when_the_next_packet_follows_it() {
        let mut numbers = SequenceNumbers::default();
        numbers.place(10);
        assert_eq!(numbers.place(40_000), Placed::Suspect);
        assert_eq!(numbers.place(11), Placed::At(0x1_000b), "a single stray packet changes nothing");
        assert_eq!(numbers.place(40_000), Placed::Suspect);
        assert!(matches!(numbers.place(40_001), Placed::Restarted(at) if at > 0x1_000b && at as u16 == 40_001));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(marker: bool, payload_type in 0_u8..128, sequence_number: u16, timestamp: u32,
                                         ssrc: u32, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let packet = Packet { marker, payload_type, sequence_number, timestamp, ssrc, payload: &payload };
            let datagram = packet.to_bytes();
            prop_assert_eq!(Packet::parse(&datagram), Ok(packet));
        }

        #[test]
        fn any_datagram_is_read_or_refused(datagram in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(packet) = Packet::parse(&datagram) {
                prop_assert!(packet.payload.len() + 12 <= datagram.len());
            }
        }

        #[test]
        fn a_placed_number_ends_in_the_number_that_came(numbers in proptest::collection::vec(any::<u16>(), 1..200)) {
            let mut line = SequenceNumbers::default();
            for number in numbers {
                if let Placed::At(at) | Placed::Restarted(at) = line.place(number) {
                    prop_assert_eq!(at as u16, number);
                }
            }
        }
    }
}
