//! The spool after a crash, a full disk, or whatever a disk does to it.

use miglet_agent::spool::scan;

/// Whether it is a spool with a record.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let Some(found) = scan(bytes) else { return false };
    assert!(found.used <= bytes.len());
    assert!(found.records.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    let kept = found.records.iter().map(|record| record.payload.len()).sum::<usize>();
    assert!(kept <= found.used, "more than was there");
    // What was taken as whole is taken again when nothing follows it.
    let again = scan(&bytes[..found.used]).expect("it begins as before");
    assert_eq!(again.records.len(), found.records.len());
    !found.records.is_empty()
}
