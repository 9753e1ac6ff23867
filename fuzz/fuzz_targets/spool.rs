//! Fuzzes `checks/spool.rs`.

#![no_main]

#[path = "../checks/spool.rs"]
mod spool;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    spool::check(bytes);
});
