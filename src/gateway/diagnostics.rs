//! What an agent sends when it is asked for diagnostics: put together piece by piece, bounded whatever it sends.

use std::collections::BTreeMap;

/// The most that is kept of one answer, in bytes: a ConfigMap takes 1 MiB.
pub const LIMIT: usize = 256 * 1024;
/// The most texts in one answer.
const TEXTS: usize = 16;

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The command it answers.
    pub command_id: String,
    /// Which text it goes on with.
    pub name: String,
    /// The piece.
    pub text: String,
    /// Nothing follows.
    pub last: bool,
    /// Which piece it is, from 0.
    pub sequence: u32,
}

/// An answer, as far as it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The command it answers.
    pub command_id: String,
    /// Texts by name.
    pub texts: BTreeMap<String, String>,
    /// It is whole.
    pub complete: bool,
    size: usize,
    next: u32,
}

impl Diagnostics {
    /// An answer to this command of which nothing has come.
    #[must_use]
    pub fn awaited(command_id: &str) -> Self {
        Self { command_id: command_id.to_owned(), ..Self::default() }
    }

    /// Takes a piece in. One that answers nothing that was asked, or comes after the end, or has no proper name, or is too
    /// much, is left out.
    pub fn take(&mut self, chunk: Chunk) {
        // After a gap it never becomes whole: it is asked for again.
        if chunk.command_id != self.command_id || self.complete || chunk.sequence != self.next {
            return;
        }
        self.next = self.next.saturating_add(1);
        self.complete = chunk.last;
        let fits = self.size.saturating_add(chunk.text.len()) <= LIMIT;
        let known = self.texts.contains_key(&chunk.name) || self.texts.len() < TEXTS;
        if !chunk.text.is_empty() && is_name(&chunk.name) && fits && known {
            self.size += chunk.text.len();
            let text = chunk.text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t'));
            self.texts.entry(chunk.name).or_default().extend(text);
        }
    }
}

/// What a key of a ConfigMap may be, and shorter.
fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    (1..=40).contains(&name.len()) && name.bytes().all(good) && name.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(sequence: u32, name: &str, text: &str) -> Chunk {
        Chunk { command_id: "c".into(), name: name.into(), text: text.into(), last: false, sequence }
    }

    #[test]
    fn pieces_become_texts_until_the_last_one() {
        let mut answer = Diagnostics::awaited("c");
        answer.take(chunk(0, "agent.log", "one\n"));
        answer.take(chunk(1, "agent.log", "t\u{1b}wo\t"));
        answer.take(Chunk { last: true, ..chunk(2, "", "") });
        answer.take(chunk(3, "agent.log", "late"));
        assert!(answer.complete);
        assert_eq!(answer.texts, BTreeMap::from([("agent.log".to_owned(), "one\ntwo\t".to_owned())]));
    }

    #[test]
    fn an_agent_that_sends_too_much_or_something_else_changes_nothing() {
        let mut answer = Diagnostics::awaited("c");
        for (sequence, name) in (0..).zip(["", "..", "../x", "A", &"n".repeat(41)]) {
            answer.take(chunk(sequence, name, "x"));
        }
        answer.take(Chunk { command_id: "other".into(), ..chunk(5, "a", "x") });
        answer.take(chunk(7, "a", "after a gap"));
        assert_eq!(answer.texts.len(), 0);
        for number in 0..100 {
            answer.take(chunk(5 + number, &format!("n{number}"), &"x".repeat(LIMIT / 10)));
        }
        assert!(answer.texts.len() <= TEXTS && answer.texts.values().map(String::len).sum::<usize>() <= LIMIT);
    }
}
