//! Whole lists out of pages that may change while they are read: pure.
//!
//! A runner that vanishes between two pages moves another one across the border, unseen. So a list counts only when every
//! page named the same total and that many different entries came.

use std::collections::BTreeMap;

/// Entries of a page GitHub returns at most.
pub(super) const PER_PAGE: usize = 100;

/// What is known after a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Another page is needed.
    More,
    /// The list is whole.
    Whole,
    /// The list changed while it was read: from the start.
    Torn,
}

/// A list that is being read.
#[derive(Debug)]
pub(super) struct Pages<T> {
    total: Option<usize>,
    entries: BTreeMap<i64, T>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { total: None, entries: BTreeMap::new() }
    }
}

impl<T> Pages<T> {
    /// Adds a page.
    pub(super) fn add(&mut self, total: usize, page: Vec<(i64, T)>) -> Progress {
        let length = page.len();
        self.entries.extend(page);
        if *self.total.get_or_insert(total) != total {
            return Progress::Torn;
        }
        match (self.entries.len() == total, length < PER_PAGE) {
            (true, _) => Progress::Whole,
            (false, true) => Progress::Torn,
            (false, false) => Progress::More,
        }
    }

    /// The entries.
    pub(super) fn into_entries(self) -> Vec<T> {
        self.entries.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: std::ops::Range<i64>) -> Vec<(i64, i64)> {
        ids.map(|id| (id, id)).collect()
    }

    #[test]
    fn pages_are_read_until_the_total_is_reached() {
        let mut pages = Pages::default();
        assert_eq!(pages.add(150, ids(0..100)), Progress::More);
        assert_eq!(pages.add(150, ids(100..150)), Progress::Whole);
        assert_eq!(pages.into_entries().len(), 150);
        assert_eq!(Pages::<i64>::default().add(0, ids(0..0)), Progress::Whole);
    }

    #[test]
    fn a_list_that_changed_under_the_reader_is_torn_and_never_shorter() {
        let mut pages = Pages::default();
        pages.add(150, ids(0..100));
        assert_eq!(pages.add(149, ids(101..150)), Progress::Torn, "the total changed");
        let mut pages = Pages::default();
        pages.add(150, ids(0..100));
        assert_eq!(pages.add(150, ids(101..150)), Progress::Torn, "one entry slipped through");
    }
}
