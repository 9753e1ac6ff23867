//! What anyone on the machine may write into the hook socket.

#![no_main]

use libfuzzer_sys::fuzz_target;
use miglet_agent::{
    hook::{MESSAGE_LIMIT, Message},
    runner::TEXT_LIMIT,
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::parse(bytes) else { return };
    assert!(bytes.len() <= MESSAGE_LIMIT);
    for text in [&message.job.repository, &message.job.workflow, &message.job.key] {
        assert!(text.len() <= TEXT_LIMIT && !text.chars().any(char::is_control), "{text:?}");
    }
    let again = serde_json::to_vec(&message).expect("a message is JSON");
    assert!(again.len() > MESSAGE_LIMIT || Message::parse(&again).is_ok_and(|same| same == message));
});
