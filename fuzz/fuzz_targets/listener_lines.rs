//! Fuzzes `checks/listener_lines.rs`.

#![no_main]

#[path = "../checks/listener_lines.rs"]
mod listener_lines;

libfuzzer_sys::fuzz_target!(|pieces: Vec<&[u8]>| {
    listener_lines::check(&pieces);
});
