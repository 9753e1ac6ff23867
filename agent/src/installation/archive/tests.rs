//! Honest archives and others.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

const ALLOWANCE: u64 = 1024 * 1024;

/// One entry; the name goes into the header unchecked.
fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o4755);
    let fields = header.as_ustar_mut().expect("ustar");
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [header.as_bytes().as_slice(), content, &padding].concat()
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(tar).expect("gzip");
    encoder.finish().expect("gzip")
}

/// Unpacks these entries one directory below a directory that must stay otherwise empty.
fn unpacked(entries: &[Vec<u8>]) -> (tempfile::TempDir, Result<(), ArchiveError>) {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::create_dir(dir.path().join("root")).expect("root");
    let end = vec![0; 1024];
    let tar = [entries.concat(), end].concat();
    let done = unpack_stream(gzip(&tar).as_slice(), &dir.path().join("root"), ALLOWANCE);
    (dir, done)
}

fn outside(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir.path()).expect("list").count() - 1
}

#[test]
fn a_runner_comes_out_as_it_was_put_in() {
    let (dir, done) = unpacked(&[
        entry(EntryType::Directory, "./", "", b""),
        entry(EntryType::Regular, "./bin/Runner.Listener", "", b"#!/bin/sh\n"),
        entry(EntryType::Regular, "externals/lib/node_modules/npm/bin/npm-cli.js", "", b"npm"),
        entry(EntryType::Symlink, "externals/bin/npm", "../lib/node_modules/npm/bin/npm-cli.js", b""),
        entry(EntryType::Link, "bin/again", "bin/Runner.Listener", b""),
    ]);
    done.expect("unpacked");
    let root = dir.path().join("root");
    assert_eq!(std::fs::read(root.join("externals/bin/npm")).expect("through the link"), b"npm");
    assert_eq!(std::fs::read(root.join("bin/again")).expect("hard link"), b"#!/bin/sh\n");
    let mode = root.join("bin/Runner.Listener").metadata().expect("file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "executable, but never setuid");
}

#[test]
fn long_names_of_both_kinds_are_understood() {
    let (gnu, pax) = (format!("{}/gnu", "a".repeat(150)), format!("{}/pax", "b".repeat(150)));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header.clone(), &gnu, b"1".as_slice()).expect("entry");
    builder.append_pax_extensions([("path", pax.as_bytes())]).expect("entry");
    builder.append_data(&mut header, "short", b"2".as_slice()).expect("entry");
    let (dir, done) = unpacked(&[builder.into_inner().expect("tar")]);
    done.expect("unpacked");
    for (name, content) in [(gnu, "1"), (pax, "2")] {
        assert_eq!(std::fs::read_to_string(dir.path().join("root").join(name)).expect("file"), content);
    }
}

#[test]
fn nothing_is_written_outside() {
    let link = |name, target| entry(EntryType::Symlink, name, target, b"");
    let file = |name| entry(EntryType::Regular, name, "", b"evil");
    for (entries, why) in [
        (vec![file("/tmp/evil")], "absolute"),
        (vec![file("../evil")], "leads out"),
        (vec![file("bin/../../evil")], "leads out"),
        (vec![link("out", "/etc")], "absolute"),
        (vec![link("out", "..")], "links out"),
        (vec![link("bin/out", "../../evil")], "links out"),
        // Seen as text, bin/up/.. is bin; for the kernel it is the parent of the root.
        (vec![link("bin/up", ".."), link("out", "bin/up/../evil")], "links out"),
        (vec![link("bin", "externals"), file("bin/evil")], "no directory"),
        (vec![file("a"), file("a/evil")], "no directory"),
        (vec![entry(EntryType::Link, "passwd", "/etc/passwd", b"")], "absolute"),
        (vec![entry(EntryType::Link, "passwd", "../evil", b"")], "leads out"),
        (vec![link("a", "b"), entry(EntryType::Link, "c", "a", b"")], "no file of this archive"),
        (vec![entry(EntryType::Char, "null", "", b"")], "neither file"),
        (vec![entry(EntryType::Fifo, "pipe", "", b"")], "neither file"),
        (vec![file(".")], "no name"),
    ] {
        let (dir, done) = unpacked(&entries);
        let error = done.expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(outside(&dir), 0, "{why}");
    }
}

#[test]
fn a_file_is_never_written_twice_or_through_a_link() {
    let file = |name| entry(EntryType::Regular, name, "", b"x");
    for entries in [vec![file("a"), file("a")], vec![entry(EntryType::Symlink, "a", "b", b""), file("a")]] {
        assert!(matches!(unpacked(&entries).1, Err(ArchiveError::Write { .. })));
    }
}

#[test]
fn a_bomb_ends_at_its_allowance_whatever_it_is_made_of() {
    let zeros = vec![0; 2 * ALLOWANCE as usize];
    for kind in [EntryType::Regular, EntryType::XGlobalHeader] {
        let (_dir, done) = unpacked(&[entry(kind, "bomb", "", &zeros), entry(EntryType::Regular, "a", "", b"")]);
        assert!(matches!(done, Err(ArchiveError::TooLarge(ALLOWANCE))), "{kind:?}: {done:?}");
    }
    for kind in [EntryType::GNULongName, EntryType::XHeader] {
        let (_dir, done) = unpacked(&[entry(kind, "bomb", "", &zeros)]);
        assert!(matches!(done, Err(ArchiveError::Refused { .. })), "{kind:?}: {done:?}");
    }
}

#[test]
fn a_torn_archive_is_an_error() {
    let whole = gzip(&entry(EntryType::Regular, "a", "", &[7; 5000]));
    let dir = tempfile::tempdir().expect("dir");
    assert!(unpack_stream(&whole[..whole.len() / 2], dir.path(), ALLOWANCE).is_err());
    assert!(matches!(unpack_stream(b"not gzip".as_slice(), dir.path(), ALLOWANCE), Err(ArchiveError::Read(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_survived_and_stay_inside(bytes in proptest::collection::vec(any::<u8>(), 0..2000), zip: bool) {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("root")).expect("root");
        let bytes = if zip { gzip(&bytes) } else { bytes };
        unpack_stream(bytes.as_slice(), &dir.path().join("root"), ALLOWANCE).ok();
        prop_assert_eq!(outside(&dir), 0);
    }

    #[test]
    fn whatever_names_and_links_there_are_all_stays_inside(
        entries in proptest::collection::vec(("(\\.\\.|[ab/.]){1,8}", "(\\.\\.|[ab/.]){1,8}", 0..4u8), 1..8),
    ) {
        let kinds = [EntryType::Regular, EntryType::Symlink, EntryType::Link, EntryType::Directory];
        let entries: Vec<_> = entries.iter().map(|(name, link, kind)| entry(kinds[usize::from(*kind)], name, link, b"")).collect();
        let (dir, _) = unpacked(&entries);
        prop_assert_eq!(outside(&dir), 0);
        let root = dir.path().join("root").canonicalize().expect("root");
        let mut directories = vec![root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).expect("list") {
                let entry = entry.expect("entry");
                // A link that leads anywhere at all leads inside.
                if let Ok(real) = entry.path().canonicalize() {
                    prop_assert!(real.starts_with(&root), "{:?} leads to {real:?}", entry.path());
                }
                if entry.file_type().expect("type").is_dir() {
                    directories.push(entry.path());
                }
            }
        }
    }
}
