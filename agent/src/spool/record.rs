//! The spool's bytes: what is written, and what can be read back of anything at all. Pure.
//!
//! ```text
//!  "mgspool1" | record, sequence 0: the boot id | record | record | ... | zeros to the end
//!   record = length u32 | crc32 u32 | sequence u64 | payload      (little endian; the checksum covers all but itself)
//! ```
//!
//! Each record reaches the disk before the next is begun, so a write that was cut short can only be the last: it is
//! followed by nothing. Anything else that does not check out is damage, and whatever follows it cannot be trusted to
//! begin where it seems to.
//!
//! CRC-32 of the gzip kind, not Castagnoli: it is in the agent already, for the runner's archive, and finds the same
//! errors in records of this size.

/// The first bytes of every spool.
pub(super) const MAGIC: &[u8; 8] = b"mgspool1";
/// Length, checksum, sequence.
const HEAD: usize = 16;
/// Longest payload: ten times what the longest job and the longest words take.
pub const PAYLOAD_LIMIT: usize = 16 * 1024;

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Grows from record to record.
    pub sequence: u64,
    /// What was written.
    pub payload: &'a [u8],
}

/// How the readable part ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing follows.
    Clean,
    /// A last record that was not written to its end.
    Torn,
    /// Something that was not written so.
    Corrupt,
}

/// All that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// The boot this spool is of.
    pub boot_id: &'a [u8],
    /// The records, in order.
    pub records: Vec<Record<'a>>,
    /// Where the next record goes.
    pub used: usize,
    /// What comes there now.
    pub end: End,
}

/// Reads a spool; `None` when not even its beginning is one.
#[must_use]
pub fn scan(bytes: &[u8]) -> Option<Scan<'_>> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let (boot, size) = parse(rest).filter(|(record, _)| record.sequence == 0)?;
    let (mut used, mut last, mut records) = (MAGIC.len() + size, 0, Vec::new());
    rest = rest.get(size..)?;
    while let Some((record, size)) = parse(rest).filter(|(record, _)| record.sequence > last) {
        last = record.sequence;
        used += size;
        rest = rest.get(size..).unwrap_or_default();
        records.push(record);
    }
    Some(Scan { boot_id: boot.payload, records, used, end: end(rest) })
}

/// A record as it is written.
#[must_use]
pub(super) fn encode(sequence: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let sequence = sequence.to_le_bytes();
    let checksum = checksum(length, sequence, payload).to_le_bytes();
    [&length[..], &checksum[..], &sequence[..], payload].concat()
}

/// The record these bytes begin with, and its size with its head.
fn parse(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let payload = rest.get(..payload_length(*length)?)?;
    let sound = checksum(*length, *sequence, payload) == u32::from_le_bytes(*expected);
    let record = Record { sequence: u64::from_le_bytes(*sequence), payload };
    sound.then_some((record, HEAD + payload.len()))
}

fn payload_length(bytes: [u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes)).ok().filter(|length| (1..=PAYLOAD_LIMIT).contains(length))
}

fn checksum(length: [u8; 4], sequence: [u8; 8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [&length[..], &sequence[..], payload] {
        hasher.update(part);
    }
    hasher.finalize()
}

/// What bytes are that do not begin with a record.
fn end(rest: &[u8]) -> End {
    let Some(last) = rest.iter().rposition(|byte| *byte != 0) else { return End::Clean };
    let claimed = rest.first_chunk::<4>().map_or(0, |bytes| payload_length(*bytes).unwrap_or(0));
    if last < HEAD + claimed { End::Torn } else { End::Corrupt }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A spool of these payloads, numbered 1, 2, ..., and where each record ends.
    fn spool(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = [&MAGIC[..], &encode(0, b"boot")].concat();
        let mut ends = vec![bytes.len()];
        for (payload, sequence) in payloads.iter().zip(1..) {
            bytes.extend(encode(sequence, payload));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..8)
    }

    fn is_prefix(scan: &Scan<'_>, payloads: &[Vec<u8>]) -> bool {
        scan.records.len() <= payloads.len()
            && scan.records.iter().zip(payloads).zip(1..).all(|((r, p), n)| r.payload == p && r.sequence == n)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(payloads in payloads(), zeros in 0usize..5000) {
            let (mut bytes, ends) = spool(&payloads);
            bytes.resize(bytes.len() + zeros, 0);
            let scan = scan(&bytes).expect("a spool");
            prop_assert!(is_prefix(&scan, &payloads));
            prop_assert_eq!((scan.records.len(), scan.boot_id), (payloads.len(), &b"boot"[..]));
            prop_assert_eq!((Some(&scan.used), scan.end), (ends.last(), End::Clean));
        }

        #[test]
        fn a_write_cut_short_at_any_byte_leaves_the_whole_records(
            payloads in payloads(), cut in any::<proptest::sample::Index>(), zeros in 0usize..500,
        ) {
            let (mut bytes, ends) = spool(&payloads);
            let cut = ends[0] + cut.index(bytes.len() - ends[0]);
            bytes.truncate(cut);
            bytes.resize(cut + zeros, 0);
            let scan = scan(&bytes).expect("a spool");
            prop_assert!(is_prefix(&scan, &payloads));
            // A payload may itself end in zeros: then a cut record can be whole.
            prop_assert!(scan.records.len() >= ends.iter().filter(|end| **end <= cut).count() - 1);
            prop_assert_ne!(scan.end, End::Corrupt);
        }

        #[test]
        fn a_flipped_bit_never_makes_a_wrong_record(
            payloads in payloads(), at in any::<proptest::sample::Index>(), bit in 0u8..8,
        ) {
            let (mut bytes, ends) = spool(&payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let Some(scan) = scan(&bytes) else { return Ok(()) };
            let before = ends.iter().filter(|end| **end <= at).count().saturating_sub(1);
            prop_assert!(is_prefix(&scan, &payloads) && scan.records.len() == before && scan.end != End::Clean);
        }

        #[test]
        fn any_bytes_are_survived(bytes in any::<Vec<u8>>(), magic in any::<bool>()) {
            let bytes = if magic { [&MAGIC[..], &encode(0, b"boot"), &bytes].concat() } else { bytes };
            if let Some(scan) = scan(&bytes) {
                prop_assert!(scan.used <= bytes.len());
            }
        }
    }

    #[test]
    fn damage_in_the_middle_is_told_from_a_torn_end() {
        let payloads = [vec![7; 40], vec![8; 40], vec![9; 40]];
        let (mut bytes, ends) = spool(&payloads);
        bytes[ends[1] + HEAD] ^= 1;
        let scan = scan(&bytes).expect("a spool");
        assert_eq!((scan.records.len(), scan.used, scan.end), (1, ends[1], End::Corrupt));
    }

    #[test]
    fn a_sequence_that_does_not_grow_is_damage() {
        let (mut bytes, _) = spool(&[vec![1], vec![2]]);
        bytes.extend(encode(2, &[3]));
        assert_eq!(scan(&bytes).map(|scan| (scan.records.len(), scan.end)), Some((2, End::Torn)));
        bytes.extend(encode(3, &[4]));
        assert_eq!(scan(&bytes).map(|scan| (scan.records.len(), scan.end)), Some((2, End::Corrupt)));
    }
}
