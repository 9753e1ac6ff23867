//! The gRPC side that agents talk to: who they are, their sessions, the protocol.
//!
//! ```text
//!   agent ──TLS──> listener ──> service ──> identity  (token verified, instance listed, key bound)
//!                  caps         protocol       │
//!                                              v
//!                  vm controller <── wakes ── sessions ── commands ──> agent
//! ```
//!
//! What an agent says can end its own VM and nothing else. Its words are cut at this edge; its state only moves
//! forward; its place in the session table is guarded by a generation, so that a late close never removes a newer
//! session.

pub mod admission;
mod attestation;
mod binding;
mod convert;
pub mod diagnostics;
pub mod events;
mod identity;
mod keys;
mod listener;
mod peer;
mod rate;
pub mod refusals;
pub mod report;
mod server;
mod service;
pub mod sessions;
pub mod settings;
mod tls;

pub use server::{Backends, Caps, EventObserver, Gateway, GatewayConfig, GatewayError};
pub use tls::{TlsError, TlsFiles};
