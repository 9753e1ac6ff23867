//! What anyone on the machine may write into the hook socket.

use miglet_agent::{
    hook::{MESSAGE_LIMIT, Message},
    runner::TEXT_LIMIT,
};

/// Whether it is a message.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let Ok(message) = Message::parse(bytes) else { return false };
    assert!(bytes.len() <= MESSAGE_LIMIT);
    for text in [&message.job.repository, &message.job.workflow, &message.job.key] {
        assert!(text.len() <= TEXT_LIMIT && !text.chars().any(char::is_control), "{text:?}");
    }
    let again = serde_json::to_vec(&message).expect("a message is JSON");
    assert!(again.len() > MESSAGE_LIMIT || Message::parse(&again).is_ok_and(|same| same == message));
    true
}
