//! The protocol between the operator and its agents, compiled once for both sides from
//! `proto/miglet/agent/v1/agent.proto`.

/// The minor version of `miglet.agent.v1` in this tree. An operator accepts agents one older and one newer.
pub const PROTOCOL_MINOR: u32 = 1;

/// Types and services of `miglet.agent.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    rustdoc::all,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "generated: the documentation is in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("miglet.agent.v1");
}
