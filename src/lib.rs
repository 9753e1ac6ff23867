//! The Miglet operator: keeps RunnerPools of single-job GitHub Actions runners alive on Google Cloud VMs.

pub mod clock;
pub mod compute;
pub mod config;
pub mod crd;
pub mod endpoints;
pub mod forge;
pub mod gateway;
pub mod health;
pub mod leadership;
pub mod metrics;
pub mod telemetry;
pub mod wakes;
