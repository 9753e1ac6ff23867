//! The Miglet operator: keeps RunnerPools of single-job GitHub Actions runners alive on Google Cloud VMs.
//!
//! ```text
//!                RunnerPool ──> pool ──> RunnerVM ──> vm ──> compute (Google)
//!                                                     │ └──> forge   (GitHub)
//!                agent on each VM <──> gateway <──────┘
//! ```
//!
//! `pool` keeps the number of RunnerVM objects; `vm` walks each one through its life; `gateway` talks to the agents.
//! Both controllers have the same rooms: `observe -> plan -> apply -> status`, and `plan` is pure. Kubernetes is the
//! only database: kill the operator at any instant and nothing is lost. `run` puts it together.

pub mod backoff;
pub mod clock;
pub mod compute;
pub mod config;
pub mod crd;
pub mod endpoints;
pub mod events;
pub mod forge;
pub mod gateway;
pub mod health;
pub mod kubernetes;
pub mod leadership;
pub mod metrics;
pub mod pool;
pub mod run;
pub mod telemetry;
pub mod vm;
pub mod wakes;
pub mod watch;
