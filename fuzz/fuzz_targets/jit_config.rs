//! Fuzzes `checks/jit_config.rs`.

#![no_main]

#[path = "../checks/jit_config.rs"]
mod jit_config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    jit_config::check(text);
});
