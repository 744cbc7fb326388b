//! How a journal lies on disk: records one after another, each with length, sequence number and checksum.
//!
//! ```text
//! length u32 | sequence u64 | crc32 u32 | payload      all little-endian; the checksum covers the rest
//! ```
//!
//! A process that is killed leaves at most one torn record, and that at the end. Reading stops at the first record that
//! is not whole; what stands before it is the journal.

/// A record is at most so long: what is longer was never written by us.
pub const MOST_BYTES: usize = 256 * 1024;
const HEAD: usize = 16;

/// What was read of a journal.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Payloads with their sequence numbers, which begin at 1 and have no gap.
    pub records: Vec<(u64, &'a [u8])>,
    /// Where the first record that is not whole begins: the length that the file should have.
    pub sound_bytes: usize,
}

/// Why something cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a journal record of {0} bytes is longer than the {MOST_BYTES} that are ever read back")]
pub struct TooLong(usize);

/// Appends a record to `out`.
pub fn write(out: &mut Vec<u8>, sequence: u64, payload: &[u8]) -> Result<(), TooLong> {
    let length = u32::try_from(payload.len()).map_err(|_| TooLong(payload.len()))?;
    if payload.len() > MOST_BYTES {
        return Err(TooLong(payload.len()));
    }
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&checksum(length, sequence, payload).to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Reads a whole file.
pub fn scan(file: &[u8]) -> Scan<'_> {
    let mut records = Vec::new();
    let mut rest = file;
    let mut expected = 1;
    while let Some((payload, after)) = next(rest, expected) {
        records.push((expected, payload));
        rest = after;
        expected += 1;
    }
    Scan { records, sound_bytes: file.len() - rest.len() }
}

fn next(bytes: &[u8], expected: u64) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let [l0, l1, l2, l3, s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3] = *head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let sequence = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let sound = sequence == expected
        && payload.len() <= MOST_BYTES
        && checksum(length, sequence, payload) == u32::from_le_bytes([c0, c1, c2, c3]);
    sound.then_some((payload, rest))
}

fn checksum(length: u32, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for (n, payload) in payloads.iter().enumerate() {
            write(&mut file, n as u64 + 1, payload).unwrap();
        }
        file
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12)
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_written() {
        let mut out = Vec::new();
        assert_eq!(write(&mut out, 1, &vec![0; MOST_BYTES + 1]), Err(TooLong(MOST_BYTES + 1)));
        assert!(out.is_empty() && write(&mut out, 1, &vec![0; MOST_BYTES]).is_ok());
    }

    #[test]
    fn a_record_that_is_whole_but_out_of_turn_ends_the_journal() {
        let mut out = file(&[b"a".to_vec()]);
        let sound = out.len();
        write(&mut out, 3, b"c").unwrap();
        assert_eq!(scan(&out), Scan { records: vec![(1, b"a")], sound_bytes: sound });
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(payloads in payloads()) {
            let file = file(&payloads);
            let scan = scan(&file);
            prop_assert_eq!(scan.sound_bytes, file.len());
            let read: Vec<Vec<u8>> = scan.records.iter().map(|(_, payload)| payload.to_vec()).collect();
            prop_assert_eq!(read, payloads);
        }

        #[test]
        fn a_torn_file_gives_the_records_before_the_tear(payloads in payloads(), tear in 0_usize..700, junk in proptest::collection::vec(any::<u8>(), 0..30)) {
            let whole = file(&payloads);
            let kept = tear.min(whole.len());
            // What a disk may hold where nothing was written: anything.
            let torn: Vec<u8> = whole[..kept].iter().copied().chain(junk).collect();
            let found = scan(&torn);
            let before = (0..=payloads.len()).rev().find(|n| file(&payloads[..*n]).len() <= kept).unwrap();
            prop_assert!(found.records.len() >= before);
            for ((sequence, payload), (n, written)) in found.records.iter().zip(payloads.iter().enumerate()) {
                prop_assert_eq!((*sequence, payload.to_vec()), (n as u64 + 1, written.clone()));
            }
            prop_assert!(found.records.len() <= payloads.len());
        }

        #[test]
        fn a_flipped_bit_never_gives_another_record(payloads in payloads(), at in 0_usize..700, bit in 0_u8..8) {
            let mut file = file(&payloads);
            prop_assume!(!file.is_empty());
            let at = at % file.len();
            file[at] ^= 1 << bit;
            let found = scan(&file);
            prop_assert!(found.sound_bytes <= at, "the damaged record and all after it are left out");
            for ((_, payload), written) in found.records.iter().zip(&payloads) {
                prop_assert_eq!(*payload, &written[..]);
            }
        }
    }
}
