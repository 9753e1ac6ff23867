//! Spools in a directory of their own, and what may be found there.

use std::os::unix::fs::PermissionsExt;

use super::*;

const SMALL: u64 = 64 * 1024;

fn payloads(opened: &Opened) -> Vec<&[u8]> {
    opened.records.iter().map(|record| &*record.payload).collect()
}

/// A directory with a spool of the boot `one` in which these were written.
fn with(payloads: &[&[u8]]) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("data/events.spool");
    let mut spool = open(&path, "one", SMALL).spool.expect("a spool");
    for (payload, sequence) in payloads.iter().zip(5..) {
        spool.append(sequence, payload, false).expect("room");
    }
    (dir, path)
}

#[test]
fn the_next_agent_reads_what_was_written_and_goes_on_behind_it() {
    let (_dir, path) = with(&[b"a", b"b"]);
    let mut opened = open(&path, "one", SMALL);
    assert_eq!((payloads(&opened), opened.trouble.clone()), (vec![&b"a"[..], b"b"], None));
    opened.spool.as_mut().expect("a spool").append(9, b"c", false).expect("room");
    let again = open(&path, "one", SMALL);
    assert_eq!(again.records.iter().map(|r| r.sequence).collect::<Vec<_>>(), [5, 6, 9]);
    let file = std::fs::metadata(&path).expect("a file");
    assert_eq!((file.len(), file.permissions().mode() & 0o777), (SMALL, 0o600), "allocated, and root's alone");
}

#[test]
fn another_boots_records_are_kept_for_reading_and_never_told() {
    let (_dir, path) = with(&[b"a"]);
    let opened = open(&path, "two", SMALL);
    assert_eq!((opened.records.len(), opened.trouble), (0, None));
    let kept = std::fs::read(path.with_extension("previous")).expect("set aside");
    assert_eq!(scan(&kept).map(|scan| scan.records.len()), Some(1));
    assert!(open(&path, "two", SMALL).spool.is_some());
}

#[test]
fn a_torn_end_is_cut_and_written_over() {
    let (_dir, path) = with(&[b"a", &[7; 500]]);
    let bytes = std::fs::read(&path).expect("read");
    let end = scan(&bytes).expect("a spool").used;
    let mut torn = bytes.clone();
    torn[end - 200..].fill(0);
    std::fs::write(&path, &torn).expect("torn");
    let mut opened = open(&path, "one", SMALL);
    assert_eq!((payloads(&opened), opened.trouble.clone()), (vec![&b"a"[..]], None), "it was never said to be written");
    opened.spool.as_mut().expect("a spool").append(6, b"c", false).expect("room");
    let again = open(&path, "one", SMALL);
    assert_eq!(
        (payloads(&again), again.trouble.clone()),
        (vec![&b"a"[..], b"c"], None),
        "nothing of the torn one is left"
    );
    assert_eq!(std::fs::metadata(&path).expect("a file").len(), SMALL);
}

#[test]
fn damage_ends_what_is_read_and_is_told() {
    let (_dir, path) = with(&[b"first", b"second", b"third"]);
    let mut bytes = std::fs::read(&path).expect("read");
    let at = bytes.windows(6).position(|window| window == b"second").expect("there");
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).expect("damaged");
    let mut opened = open(&path, "one", SMALL);
    assert_eq!(payloads(&opened), [b"first"]);
    assert!(opened.trouble.as_ref().is_some_and(|trouble| trouble.contains("damaged at byte")), "{opened:?}");
    opened.spool.as_mut().expect("a spool").append(9, b"fourth", true).expect("room");
    let again = open(&path, "one", SMALL);
    assert_eq!((payloads(&again), again.trouble.clone()), (vec![&b"first"[..], b"fourth"], None));
}

#[test]
fn a_file_that_is_no_spool_is_set_aside_and_told() {
    for found in [&b"garbage"[..], b"mgspool1", &[0xff; 100_000]] {
        let (_dir, path) = with(&[]);
        std::fs::write(&path, found).expect("written");
        let opened = open(&path, "one", SMALL);
        assert!(opened.spool.is_some() && opened.trouble.is_some_and(|trouble| trouble.contains("unreadable")));
        assert_eq!(std::fs::read(path.with_extension("previous")).expect("set aside"), found);
    }
}

#[test]
fn transitions_leave_room_for_what_must_be_told_last() {
    let (_dir, path) = with(&[]);
    let mut spool = open(&path, "one", SMALL).spool.expect("a spool");
    let written = (1..).take_while(|n| spool.append(*n, &[1; 100], false).is_ok()).count();
    assert!(written > 400, "{written}");
    let last = (1000..).take_while(|n| spool.append(*n, &[1; 100], true).is_ok()).count();
    assert!(last >= 34, "a sixteenth is {last} records");
    assert!(matches!(spool.append(5000, &[1; 100], true), Err(SpoolError::Full)));
    let read = open(&path, "one", SMALL);
    assert_eq!((read.records.len(), read.trouble), (written + last, None), "to the last byte");
}

#[test]
fn what_cannot_be_allocated_or_opened_is_told_and_leaves_memory() {
    let dir = tempfile::tempdir().expect("dir");
    // A disk without room, or one that nobody may write to.
    let refused = |path: &Path, why: &str| {
        let opened = open(path, "one", SMALL);
        let trouble = opened.trouble.expect("told");
        assert!(opened.spool.is_none() && trouble.contains(why) && trouble.contains("memory only"), "{trouble}");
    };
    std::os::unix::fs::symlink("/dev/full", dir.path().join("full.new")).expect("link");
    refused(&dir.path().join("full.spool"), "allocate");
    std::fs::write(dir.path().join("file"), "").expect("file");
    refused(&dir.path().join("file/events.spool"), "make a directory for");
    std::fs::create_dir(dir.path().join("events.spool")).expect("dir");
    std::fs::create_dir(dir.path().join("events.new")).expect("dir");
    refused(&dir.path().join("events.spool"), "create");
}

#[test]
fn a_failed_write_is_an_error_and_harms_nothing_before_it() {
    let (_dir, path) = with(&[b"a"]);
    let mut spool = open(&path, "one", SMALL).spool.expect("a spool");
    spool.file = File::open(&path).expect("for reading only");
    assert!(matches!(spool.append(9, b"b", true), Err(SpoolError::Io { action: "write to", .. })));
    assert_eq!(payloads(&open(&path, "one", SMALL)), [b"a"]);
}

#[test]
fn an_event_that_is_too_long_is_refused() {
    let (_dir, path) = with(&[]);
    let mut spool = open(&path, "one", SMALL).spool.expect("a spool");
    let long = vec![1; PAYLOAD_LIMIT + 1];
    assert!(matches!(spool.append(9, &long, true), Err(SpoolError::TooLong(_))));
}

#[test]
fn where_a_file_system_cannot_allocate_zeros_take_the_room() {
    let file = tempfile::tempfile().expect("file");
    file.set_len(10).expect("length");
    zeros(&file, SMALL + 1).expect("written");
    assert_eq!(file.metadata().expect("there").len(), SMALL + 1);
}
