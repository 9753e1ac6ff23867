//! The gateway over real TLS: a simulated Google that signs tokens, an API server of one object, agents that behave and
//! agents that do not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod agent;
mod attestation;
mod events;
mod hostile;
mod kube_server;
mod sessions;
mod tokens;
mod world;
