//! The protocol between the operator and its agents, compiled once for both sides from
//! `proto/miglet/agent/v1/agent.proto`.

mod codec;

use std::fmt;

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

impl fmt::Debug for v1::RegisterRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterRunner").field("runner_name", &self.runner_name).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("boot_id", &self.boot_id)
            .field("agent_version", &self.agent_version)
            .field("protocol_minor", &self.protocol_minor)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn nothing_that_is_printed_of_a_message_is_a_secret() {
        let hello = v1::Hello { identity_token: "s3cret".into(), boot_id: "b".into(), ..v1::Hello::default() };
        let register = v1::RegisterRunner { runner_name: "r".into(), encoded_jit_config: "s3cret".into() };
        let command = v1::Command { id: "1".into(), command: Some(v1::command::Command::RegisterRunner(register)) };
        let printed = format!("{hello:?} {command:?} {command:#?}");
        assert!(!printed.contains("s3cret") && printed.contains("runner_name: \"r\""), "{printed}");
    }
}
