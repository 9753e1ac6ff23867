//! The JIT config, judged before anything is started with it: base64 of a JSON object of files, each base64 of JSON.
//!
//! A registration that was cut or changed on its way would cost the machine its one runner either way. Here it does so
//! with a sentence that says what is wrong; the listener says "An error occurred" and ends with 1.
//!
//! Only what the listener cannot do without is asked for: the forge may add files tomorrow. Errors carry no source,
//! because those of parsers quote what they read, and this is a secret.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// The kernel passes a variable of the environment only below 128 KiB (`MAX_ARG_STRLEN`), its name included.
pub const LIMIT: usize = 120 * 1024;

/// Without these the listener says that it is not configured.
const NEEDED: [&str; 2] = [".runner", ".credentials"];

/// Why a JIT config starts no runner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JitError {
    /// It cannot be handed to the listener.
    #[error("the JIT config has {0} bytes, more than fit into a variable of the environment ({LIMIT})")]
    TooLong(usize),
    /// The outer encoding.
    #[error("the JIT config is not valid base64: it was cut or changed on its way")]
    Encoding,
    /// What is in it.
    #[error("the JIT config is not a JSON object of files: it was cut or changed on its way")]
    Shape,
    /// A file that must be there.
    #[error("the JIT config has no file {0}")]
    Missing(&'static str),
    /// A file that is something else.
    #[error("the JIT config's file {0} is not base64 of a JSON object")]
    File(&'static str),
}

/// Whether the listener can make a configuration from this.
///
/// # Errors
/// When it cannot; nothing of the content is in the error.
pub fn check(encoded: &str) -> Result<(), JitError> {
    if encoded.len() > LIMIT {
        return Err(JitError::TooLong(encoded.len()));
    }
    let decoded = STANDARD.decode(encoded.trim()).map_err(|_| JitError::Encoding)?;
    let files: BTreeMap<String, String> = serde_json::from_slice(&decoded).map_err(|_| JitError::Shape)?;
    for name in NEEDED {
        let content = files.get(name).ok_or(JitError::Missing(name))?;
        if !is_settings(content) {
            return Err(JitError::File(name));
        }
    }
    Ok(())
}

/// As .NET writes it: perhaps with a byte order mark.
fn is_settings(content: &str) -> bool {
    let Ok(text) = STANDARD.decode(content) else { return false };
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
    matches!(serde_json::from_slice(text), Ok(Value::Object(_)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn config(files: &Value) -> String {
        STANDARD.encode(files.to_string())
    }

    fn honest() -> String {
        let file = |content: Value| STANDARD.encode(content.to_string());
        config(&json!({
            ".runner": file(json!({"AgentId": "30", "AgentName": "vm-1", "Ephemeral": "True"})),
            ".credentials": file(json!({"Scheme": "OAuth", "Data": {"ClientId": "c", "RequireFipsCryptography": "True"}})),
            ".credentials_rsaparams": file(json!({"d": "5ecret+/", "exponent": "AQAB"})),
        }))
    }

    #[test]
    fn an_honest_config_passes_with_more_files_or_a_byte_order_mark_too() {
        assert_eq!(check(&honest()), Ok(()));
        assert_eq!(check(&format!("{}\n", honest())), Ok(()));
        let marked = STANDARD.encode("\u{feff}{}");
        assert_eq!(check(&config(&json!({".runner": marked, ".credentials": marked, ".new": "?"}))), Ok(()));
        // .NET writes a plus sign as an escape.
        let escaped = r#"{".runner":"e30\u003D",".credentials":"e30="}"#;
        assert_eq!(check(&STANDARD.encode(escaped)), Ok(()));
    }

    #[test]
    fn each_fault_is_named() {
        let good = STANDARD.encode("{}");
        for (text, error) in [
            (String::new(), JitError::Shape),
            ("%%%".to_owned(), JitError::Encoding),
            (STANDARD.encode("not json"), JitError::Shape),
            (config(&json!(["a"])), JitError::Shape),
            (config(&json!({".runner": 7})), JitError::Shape),
            (config(&json!({".credentials": good})), JitError::Missing(".runner")),
            (config(&json!({".runner": good})), JitError::Missing(".credentials")),
            (config(&json!({".runner": "%", ".credentials": good})), JitError::File(".runner")),
            (config(&json!({".runner": good, ".credentials": STANDARD.encode("[]")})), JitError::File(".credentials")),
            ("A".repeat(LIMIT + 1), JitError::TooLong(LIMIT + 1)),
        ] {
            assert_eq!(check(&text), Err(error));
        }
    }

    proptest! {
        #[test]
        fn a_config_cut_anywhere_is_refused(at in any::<prop::sample::Index>()) {
            let whole = honest();
            prop_assert!(check(&whole[..at.index(whole.len())]).is_err());
        }

        #[test]
        fn any_text_is_survived_and_no_error_repeats_it(text in "[ -~]{0,200}", encode: bool) {
            let text = if encode { STANDARD.encode(&text) } else { text };
            if let Err(error) = check(&text) {
                prop_assert!(text.len() < 8 || !error.to_string().contains(&text));
            }
        }

        #[test]
        fn a_secret_in_the_wrong_place_is_not_repeated(secret in "[A-Za-z0-9]{8,40}") {
            for files in [json!({ ".runner": { "d": secret } }), json!({ ".runner": secret }), json!(secret)] {
                let error = check(&config(&files)).expect_err("refused");
                let told = format!("{error} {error:?}");
                prop_assert!(!told.contains(&secret));
            }
        }
    }
}
