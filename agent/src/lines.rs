//! Splits a byte stream into lines within a fixed amount of memory.
//!
//! A line longer than the limit is given cut, once; its remainder is discarded up to the next newline. So neither a
//! gigabyte without a newline nor any number of lines makes the reader grow or stop reading.

/// A line splitter with a fixed limit.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    limit: usize,
    discarding: bool,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), limit, discarding: false }
    }

    /// Takes the next bytes of the stream and gives each line that is now complete, without its newline.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            let (text, ends) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            self.take(text, &mut each);
            if ends {
                self.end(&mut each);
            }
        }
    }

    /// The stream has ended: what is left is a line too.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if !self.buffer.is_empty() {
            self.end(&mut each);
        }
    }

    fn take(&mut self, text: &[u8], each: &mut impl FnMut(&[u8])) {
        if self.discarding {
            return;
        }
        let room = self.limit - self.buffer.len();
        self.buffer.extend(text.iter().take(room));
        if text.len() > room {
            each(&self.buffer);
            self.buffer.clear();
            self.discarding = true;
        }
    }

    fn end(&mut self, each: &mut impl FnMut(&[u8])) {
        if !self.discarding {
            each(self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer));
        }
        self.buffer.clear();
        self.discarding = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]], limit: usize) -> Vec<Vec<u8>> {
        let (mut lines, mut out) = (Lines::new(limit), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, |line| out.push(line.to_vec()));
        }
        lines.finish(|line| out.push(line.to_vec()));
        out
    }

    #[test]
    fn a_long_line_is_given_cut_and_once() {
        assert_eq!(split(&[b"abcdefgh", b"ijk\nnext\n"], 4), [b"abcd".to_vec(), b"next".to_vec()]);
    }

    proptest! {
        #[test]
        fn chunking_never_changes_the_lines_and_memory_stays_bounded(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            cut in 1usize..50,
            limit in 1usize..40,
        ) {
            let whole = split(&[&bytes], limit);
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(&split(&chunks, limit), &whole);
            prop_assert!(whole.iter().all(|line| line.len() <= limit && !line.contains(&b'\n')));
            let mut lines = Lines::new(limit);
            lines.feed(&bytes, |_| {});
            prop_assert!(lines.buffer.len() <= limit);
        }
    }
}
