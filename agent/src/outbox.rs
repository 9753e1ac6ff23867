//! Events between the driver, the disk and the session.
//!
//! ```text
//!  driver --events--> recorder (spool, one write after the other) --> pending --> session --> operator
//!                                                                        '<--------- acks ------'
//! ```
//!
//! Writes are made on a thread of their own: a disk under a job's load may take long over one, and the agent must go on.
//! An event is pending from its write until its ack. Their number has a bound (`events.rs`), so the queues need none.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use miglet_proto::v1;
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::{
    error::in_full,
    events::{Told, is_final},
    spool::{self, Spool, SpoolError},
};

/// Events on their way without an ack at once.
const WINDOW: usize = 32;

/// What waits for its ack.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    events: VecDeque<v1::Event>,
    recorded: u64,
    acked: u64,
    trouble: String,
}

impl Pending {
    /// What can be sent behind the event of this number.
    #[must_use]
    pub fn behind(&self, sent: u64) -> Vec<v1::Event> {
        let under_way = self.events.iter().filter(|event| event.sequence <= sent).count();
        let next = self.events.iter().filter(|event| event.sequence > sent);
        next.take(WINDOW.saturating_sub(under_way)).cloned().collect()
    }

    fn acked(&mut self, sequence: u64) -> bool {
        let before = self.events.len();
        self.events.retain(|event| event.sequence > sequence);
        self.acked = self.acked.max(sequence);
        before != self.events.len()
    }

    fn recorded(&mut self, event: v1::Event, trouble: Option<String>) {
        self.recorded = event.sequence;
        self.events.push_back(event);
        if let Some(trouble) = trouble {
            tracing::warn!(trouble, "event spool");
            self.trouble = trouble;
        }
    }
}

/// Takes events in and gives them out until they are acked; clones share them.
#[derive(Clone, Debug)]
pub struct Outbox {
    new: mpsc::UnboundedSender<v1::Event>,
    pending: watch::Sender<Pending>,
}

impl Outbox {
    /// Opens the spool; also what was told in this boot, and the task that writes.
    pub async fn open(path: PathBuf, boot_id: String, size: u64) -> (Self, Told, JoinHandle<()>) {
        let opened = spawn_blocking(move || spool::open(&path, &boot_id, size)).await.unwrap_or_default();
        let events: VecDeque<_> =
            opened.records.iter().filter_map(|kept| decode(kept.sequence, &kept.payload)).collect();
        let told = Told::of(events.iter());
        let trouble = opened.trouble.unwrap_or_default();
        let pending = Pending { events, recorded: told.last(), acked: 0, trouble };
        let (new, events) = mpsc::unbounded_channel();
        let outbox = Self { new, pending: watch::Sender::new(pending) };
        let recorder = tokio::spawn(record(opened.spool, events, outbox.pending.clone()));
        (outbox, told, recorder)
    }

    /// Takes an event in, to be written and sent.
    pub fn put(&self, event: v1::Event) {
        // Closed only when the agent ends.
        self.new.send(event).ok();
    }

    /// What waits, and what will.
    #[must_use]
    pub fn pending(&self) -> watch::Receiver<Pending> {
        self.pending.subscribe()
    }

    /// Why events are not (all) on the disk; empty while they are.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.pending.borrow().trouble.clone()
    }

    /// The operator has dealt with everything up to this number.
    pub fn acked(&self, sequence: u64) {
        self.pending.send_if_modified(|pending| pending.acked(sequence));
    }

    /// Waits until the event of this number was written, but not for ever.
    pub async fn until_recorded(&self, sequence: u64, patience: Duration) {
        self.until(patience, |pending| pending.recorded >= sequence).await;
    }

    /// Waits until the event of this number was acked, but not for ever; whether it was.
    pub async fn until_acked(&self, sequence: u64, patience: Duration) -> bool {
        self.until(patience, |pending| pending.acked >= sequence).await
    }

    async fn until(&self, patience: Duration, holds: impl FnMut(&Pending) -> bool) -> bool {
        let mut pending = self.pending.subscribe();
        timeout(patience, pending.wait_for(holds)).await.is_ok()
    }
}

/// Damage inside a sound record is a mistake of ours, or an older agent's: no reason to lose the others.
fn decode(sequence: u64, payload: &[u8]) -> Option<v1::Event> {
    let event = v1::Event::decode(payload).inspect_err(|error| tracing::warn!(%error, sequence, "unreadable event"));
    event.ok().map(|event| v1::Event { sequence, ..event })
}

async fn record(
    mut spool: Option<Spool>,
    mut events: mpsc::UnboundedReceiver<v1::Event>,
    pending: watch::Sender<Pending>,
) {
    while let Some(event) = events.recv().await {
        let trouble;
        (spool, trouble) = write(spool, event.clone()).await;
        pending.send_modify(|pending| pending.recorded(event, trouble));
    }
}

/// Writes an event, if there is a spool. One that has failed is given up.
async fn write(spool: Option<Spool>, event: v1::Event) -> (Option<Spool>, Option<String>) {
    let Some(mut spool) = spool else { return (None, None) };
    let written = spawn_blocking(move || {
        let written = spool.append(event.sequence, &event.encode_to_vec(), is_final(event.kind()));
        (spool, written)
    });
    match written.await {
        Ok((spool, Ok(()))) => (Some(spool), None),
        Ok((spool, Err(error @ (SpoolError::Full | SpoolError::TooLong(_))))) => (Some(spool), Some(in_full(&error))),
        Ok((_, Err(error))) => (None, Some(format!("{}: events are kept in memory only from now on", in_full(&error)))),
        // The agent ends.
        Err(_) => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use miglet_proto::v1::EventKind;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn event(sequence: u64) -> v1::Event {
        v1::Event { sequence, kind: EventKind::JobCompleted.into(), ..v1::Event::default() }
    }

    fn numbers(events: &[v1::Event]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    async fn open(dir: &tempfile::TempDir) -> (Outbox, Told) {
        let (outbox, told, _) = Outbox::open(dir.path().join("events.spool"), "boot".into(), 64 * 1024).await;
        (outbox, told)
    }

    #[tokio::test]
    async fn what_was_recorded_is_pending_until_it_is_acked() {
        let dir = tempfile::tempdir().expect("dir");
        let (outbox, _) = open(&dir).await;
        for sequence in [3, 4, 7] {
            outbox.put(event(sequence));
        }
        outbox.until_recorded(7, PATIENCE).await;
        assert_eq!(numbers(&outbox.pending().borrow().behind(0)), [3, 4, 7]);
        assert_eq!(numbers(&outbox.pending().borrow().behind(3)), [4, 7]);
        outbox.acked(4);
        assert_eq!(numbers(&outbox.pending().borrow().behind(0)), [7]);
        assert!(!outbox.until_acked(7, Duration::from_millis(1)).await);
        outbox.acked(7);
        assert!(outbox.until_acked(7, PATIENCE).await);
        drop(outbox);
        let (again, told) = open(&dir).await;
        assert_eq!(numbers(&again.pending().borrow().behind(0)), [3, 4, 7], "a new agent does not know of acks");
        assert_eq!(told.last(), 7);
    }

    #[test]
    fn only_a_window_of_events_is_under_way() {
        let mut pending = Pending { events: (1..=100).map(event).collect(), ..Pending::default() };
        let first = pending.behind(0);
        assert_eq!((first.len(), pending.behind(32).len()), (WINDOW, 0));
        pending.acked(10);
        assert_eq!(numbers(&pending.behind(32)), (33..=42).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_spool_full_of_errors_still_has_room_for_a_result() {
        let dir = tempfile::tempdir().expect("dir");
        let (outbox, _) = open(&dir).await;
        let of = |sequence, kind: EventKind| {
            let detail = "x".repeat(500);
            v1::Event { sequence, kind: kind.into(), detail, ..v1::Event::default() }
        };
        for sequence in 1..=200 {
            outbox.put(of(sequence, EventKind::Error));
        }
        outbox.put(of(201, EventKind::JobStarted));
        outbox.put(of(202, EventKind::JobCompleted));
        outbox.until_recorded(202, PATIENCE).await;
        assert!(outbox.trouble().contains("full"), "{}", outbox.trouble());
        drop(outbox);
        let (again, _) = open(&dir).await;
        let kinds: Vec<_> = again.pending().borrow().events.iter().map(v1::Event::kind).collect();
        assert_eq!(kinds.last(), Some(&EventKind::JobCompleted));
        assert!(!kinds.contains(&EventKind::JobStarted), "there was no room for a transition");
    }

    #[tokio::test]
    async fn without_a_disk_events_wait_in_memory_and_that_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("events.new")).expect("in the way");
        let (outbox, _) = open(&dir).await;
        assert!(outbox.trouble().contains("in memory only"), "{}", outbox.trouble());
        outbox.put(event(1));
        outbox.until_recorded(1, PATIENCE).await;
        assert_eq!(numbers(&outbox.pending().borrow().behind(0)), [1]);
    }
}
