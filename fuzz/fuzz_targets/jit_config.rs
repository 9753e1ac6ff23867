//! The registration, as it comes from the forge through the operator.

#![no_main]

use libfuzzer_sys::fuzz_target;
use miglet_agent::jit;

fuzz_target!(|text: &str| {
    match jit::check(text) {
        Ok(()) => assert!(text.len() <= jit::LIMIT && !text.contains('\0')),
        // It is a secret, whatever is wrong with it.
        Err(error) => assert!(text.len() < 16 || !error.to_string().contains(text)),
    }
});
