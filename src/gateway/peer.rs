//! One connection: who is at its other end, and how long it may stay without a session.
//!
//! ```text
//!   accepted ── holds a place among the unknown ──> session open ── place given back, no deadline
//!      │ deadline                                       │ last session ended
//!      v                                                v
//!    closed  <───────────────── deadline ────────── a moment, for the last words
//! ```

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::refusals::{Refusal, Refusals};

/// A connection whose session ended may still send its last words.
const LINGER: Duration = Duration::from_secs(1);
/// Streams a connection may open in its whole life. An agent dials anew for each session; who opens stream after stream
/// makes us verify token after token.
const STREAMS_PER_LIFE: usize = 8;

/// Counts connections that have not proved who they are, all together and by address.
#[derive(Clone, Debug)]
pub(super) struct Unknown {
    total: usize,
    per_address: usize,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One place among the unknown; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    unknown: Unknown,
    address: IpAddr,
}

impl Unknown {
    pub(super) fn new(total: usize, per_address: usize) -> Self {
        Self { total, per_address, by_address: Arc::default() }
    }

    /// A place, unless all are taken.
    pub(super) fn place(&self, address: IpAddr) -> Option<Place> {
        let mut taken = lock(&self.by_address);
        let full = taken.values().sum::<usize>() >= self.total;
        let own = taken.entry(address).or_default();
        if full || *own >= self.per_address {
            taken.retain(|_, count| *count > 0);
            return None;
        }
        *own += 1;
        Some(Place { unknown: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.unknown.by_address);
        if let Some(count) = taken.get_mut(&self.address) {
            *count = count.saturating_sub(1);
        }
        taken.retain(|_, count| *count > 0);
    }
}

/// Who is at the other end of a connection: the holder of this key.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) thumbprint: Arc<str>,
    refusals: Refusals,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    deadline: Option<Instant>,
    streams: usize,
    sessions: usize,
    place: Option<Place>,
    waker: Option<Waker>,
}

/// A session of this peer is open as long as this lives.
#[derive(Debug)]
pub(super) struct Open(Peer);

impl Peer {
    pub(super) fn new(thumbprint: String, place: Place, deadline: Instant, refusals: Refusals) -> Self {
        let state = State { deadline: Some(deadline), streams: 0, sessions: 0, place: Some(place), waker: None };
        Self { thumbprint: thumbprint.into(), refusals, state: Arc::new(Mutex::new(state)) }
    }

    /// Counts one more stream; false when there were too many.
    pub(super) fn may_open_stream(&self) -> bool {
        let mut state = lock(&self.state);
        state.streams += 1;
        let within = state.streams <= STREAMS_PER_LIFE;
        drop(state);
        if !within {
            self.refusals.count(Refusal::TooManySessions);
        }
        within
    }

    /// A session was opened: the connection may stay.
    pub(super) fn opened(&self) -> Open {
        let mut state = lock(&self.state);
        state.sessions += 1;
        state.deadline = None;
        state.place = None;
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.sessions = state.sessions.saturating_sub(1);
        if state.sessions == 0 {
            state.deadline = Some(Instant::now() + LINGER);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }
}

/// A connection that ends itself at its peer's deadline.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn new(stream: TlsStream<TcpStream>, peer: Peer) -> Self {
        Self { stream, peer, timer: Box::pin(tokio::time::sleep_until(Instant::now())) }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (deadline, unknown) = {
            let mut state = lock(&self.peer.state);
            state.waker = Some(cx.waker().clone());
            (state.deadline, state.place.is_some())
        };
        let Some(deadline) = deadline else { return Poll::Pending };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        if unknown {
            self.peer.refusals.count(Refusal::TooSlow);
        }
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "no session in time"))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A handler that still runs holds the peer: the place must not wait for it.
        lock(&self.peer.state).place = None;
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_deadline(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let unknown = Unknown::new(3, 2);
        let (greedy, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let held: Vec<_> = (0..5).filter_map(|_| unknown.place(greedy)).collect();
        assert_eq!(held.len(), 2);
        let others: Vec<_> = (0..5).filter_map(|_| unknown.place(other)).collect();
        assert_eq!(others.len(), 1, "the total holds too");
        drop(held);
        assert!(unknown.place(greedy).is_some(), "places come back");
    }
}
