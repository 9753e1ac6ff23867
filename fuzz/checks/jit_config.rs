//! The registration, as it comes from the forge through the operator.

use miglet_agent::jit;

/// Whether it is one.
pub(crate) fn check(text: &str) -> bool {
    match jit::check(text) {
        Ok(()) => {
            assert!(text.len() <= jit::LIMIT && !text.contains('\0'));
            true
        }
        Err(error) => {
            // It is a secret, whatever is wrong with it.
            assert!(text.len() < 16 || !error.to_string().contains(text));
            false
        }
    }
}
