//! Fuzzes `checks/hook_message.rs`.

#![no_main]

#[path = "../checks/hook_message.rs"]
mod hook_message;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    hook_message::check(bytes);
});
