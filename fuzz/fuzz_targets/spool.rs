//! The spool after a crash, a full disk, or whatever a disk does to it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use miglet_agent::spool::scan;

fuzz_target!(|bytes: &[u8]| {
    let Some(scan) = scan(bytes) else { return };
    assert!(scan.used <= bytes.len());
    assert!(scan.records.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    let kept = scan.records.iter().map(|record| record.payload.len()).sum::<usize>();
    assert!(kept <= scan.used, "more than was there");
    // What was taken as whole is taken again when nothing follows it.
    let again = miglet_agent::spool::scan(&bytes[..scan.used]).expect("it begins as before");
    assert_eq!(again.records.len(), scan.records.len());
});
