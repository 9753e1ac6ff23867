//! The agent from its package on real Debian VMs: what only a whole machine can show.
//!
//! Every VM is emulated: one boots in half a minute, and waits here are minutes where others are seconds. Two at most
//! run at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "real_vm/hostile.rs"]
mod hostile;
#[path = "real_vm/life.rs"]
mod life;
#[path = "real_vm/scene.rs"]
mod scene;
#[path = "real_vm/stock.rs"]
mod stock;
