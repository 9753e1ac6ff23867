//! Errors as people read them.

use std::{error::Error, fmt::Write};

use crate::runner::clean;

/// An error with its causes, in one line. A cause that the text before it ends with is not told twice.
#[must_use]
pub fn in_full(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(source) = cause {
        let said = source.to_string();
        if !text.ends_with(&said) {
            // Writing to a String cannot fail.
            write!(text, ": {said}").ok();
        }
        cause = source.source();
    }
    clean(&text, 1024)
}
