//! The Compute simulator, driven by Google's own client for Rust and by plain HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "compute_simulator/client.rs"]
mod client;
#[path = "compute_simulator/deletions.rs"]
mod deletions;
#[path = "compute_simulator/groups.rs"]
mod groups;
#[path = "compute_simulator/hostility.rs"]
mod hostility;
#[path = "compute_simulator/machines.rs"]
mod machines;
#[path = "compute_simulator/metadata.rs"]
mod metadata;
