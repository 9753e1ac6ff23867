//! What a Secret holds: pure. The key names are those of actions-runner-controller, so its users change nothing.

use aws_lc_rs::digest;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use secrecy::SecretString;

use crate::forge::github::Credential;

const APP_ID: &str = "github_app_id";
const INSTALLATION_ID: &str = "github_app_installation_id";
const PRIVATE_KEY: &str = "github_app_private_key";
const TOKEN: &str = "github_token";

/// SHA-256 of a Secret's contents.
pub(super) type Digest = [u8; digest::SHA256_OUTPUT_LEN];

/// A credential and the hash of what it was read from.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) digest: Digest,
    pub(super) credential: Credential,
}

/// Reads a Secret; the error says what is wrong without quoting it. An App wins over a token: it can do less.
pub(super) fn contents(secret: &Secret) -> Result<Contents, &'static str> {
    let value = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(text).filter(|v| v != &Ok(""));
    let app = [APP_ID, INSTALLATION_ID, PRIVATE_KEY].map(value);
    let credential = match (app, value(TOKEN)) {
        ([Some(id), Some(installation), Some(key)], _) => Credential::App {
            id: number(id, "github_app_id is not a number")?,
            installation: number(installation, "github_app_installation_id is not a number")?,
            private_key: SecretString::from(pem(key?)),
        },
        ([None, None, None], Some(token)) => Credential::Token(token_of(token?)?),
        ([None, None, None], None) => {
            return Err("it has neither github_app_id, github_app_installation_id and github_app_private_key, \
                        nor github_token");
        }
        ([None, ..], _) => return Err("github_app_id is missing"),
        ([_, None, _], _) => return Err("github_app_installation_id is missing"),
        ([_, _, None], _) => return Err("github_app_private_key is missing"),
    };
    Ok(Contents { digest: hash(secret), credential })
}

fn text(value: &ByteString) -> Result<&str, &'static str> {
    std::str::from_utf8(&value.0).map(str::trim).map_err(|_| "a value is not text")
}

fn number(value: Result<&str, &'static str>, wrong: &'static str) -> Result<u64, &'static str> {
    value?.parse().map_err(|_| wrong)
}

/// A key that went through an environment variable often has its line breaks written out.
fn pem(key: &str) -> String {
    if key.contains('\n') { key.to_owned() } else { key.replace("\\n", "\n") }
}

fn token_of(token: &str) -> Result<SecretString, &'static str> {
    let fits = token.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| SecretString::from(token)).ok_or("github_token contains spaces or other characters no token has")
}

fn hash(secret: &Secret) -> Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    for (key, value) in secret.data.iter().flatten().filter(|(key, _)| is_ours(key)) {
        // Lengths keep two neighbours from reading as another pair.
        for part in [key.as_bytes(), value.0.as_slice()] {
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
    }
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

fn is_ours(key: &str) -> bool {
    [APP_ID, INSTALLATION_ID, PRIVATE_KEY, TOKEN].contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> Secret {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    fn wrong(pairs: &[(&str, &str)]) -> &'static str {
        contents(&secret(pairs)).err().unwrap()
    }

    #[test]
    fn an_app_and_a_token_are_read_and_never_printed() {
        let app = contents(&secret(&[
            ("github_app_id", "12\n"),
            ("github_app_installation_id", "34"),
            ("github_app_private_key", "-----BEGIN\\nhush\\n-----END"),
        ]))
        .unwrap();
        assert!(matches!(app.credential, Credential::App { id: 12, installation: 34, .. }));
        assert!(!format!("{app:?}").contains("hush"));
        let token = contents(&secret(&[("github_token", " hush \n")])).unwrap();
        assert!(matches!(token.credential, Credential::Token(_)));
        assert!(!format!("{token:?}").contains("hush"));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(wrong(&[]).contains("neither"));
        assert!(wrong(&[("github_token", "")]).contains("neither"));
        assert!(wrong(&[("github_app_id", "1")]).contains("installation"));
        assert!(wrong(&[("github_app_private_key", "k")]).contains("github_app_id"));
        let all = [("github_app_id", "one"), ("github_app_installation_id", "2"), ("github_app_private_key", "k")];
        assert!(wrong(&all).contains("not a number"));
        assert!(wrong(&[("github_token", "a b")]).contains("spaces"));
    }

    #[test]
    fn only_a_changed_credential_changes_the_hash() {
        let digest = |pairs: &[(&str, &str)]| contents(&secret(pairs)).unwrap().digest;
        let token = digest(&[("github_token", "a")]);
        assert_eq!(token, digest(&[("github_token", "a"), ("comment", "x")]));
        assert_ne!(token, digest(&[("github_token", "b")]));
    }
}
