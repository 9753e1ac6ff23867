//! The simulated GitHub and the runner stand-in, together: what the rest of the tests rely on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

#[path = "github_simulator/api.rs"]
mod api;
#[path = "github_simulator/jobs.rs"]
mod jobs;
#[path = "github_simulator/rig.rs"]
mod rig;
#[path = "github_simulator/signals.rs"]
mod signals;
