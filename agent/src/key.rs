//! The agent's own key: made before the first hello, kept in the root-only state directory so that a restarted agent is
//! the same agent. The hash of its public key is the identity the operator binds this VM to; the certificate around it
//! says nothing and is made anew each time.

use std::{io, path::Path};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::durable;

/// The key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system said no.
    #[error("could not {action} the agent's key {path}")]
    Io {
        /// read or write.
        action: &'static str,
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The cryptography said no.
    #[error("could not make the agent's key or certificate")]
    Crypto(#[from] rcgen::Error),
}

/// The key and its self-signed certificate.
pub struct AgentKey {
    pair: KeyPair,
    certificate: CertificateDer<'static>,
}

impl std::fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentKey").field("thumbprint", &self.thumbprint()).finish_non_exhaustive()
    }
}

impl AgentKey {
    /// The key in this file; made and written when there is none. A damaged file is replaced: the operator will refuse
    /// the new key on a bound VM, which is the safe end.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let failed = |action| move |source| KeyError::Io { action, path: path.display().to_string(), source };
        let saved = durable::read(path).map_err(failed("read"))?.and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = match saved.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
            Some(pair) => pair,
            None => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                durable::write(path, pair.serialize_pem().as_bytes()).map_err(failed("write"))?;
                pair
            }
        };
        Self::certify(pair)
    }

    /// A key that is kept nowhere, for trying out.
    ///
    /// # Errors
    /// When none can be made.
    pub fn ephemeral() -> Result<Self, KeyError> {
        Self::certify(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
    }

    fn certify(pair: KeyPair) -> Result<Self, KeyError> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "miglet-agent");
        let certificate = params.self_signed(&pair)?.der().clone();
        Ok(Self { pair, certificate })
    }

    /// base64url, without padding, of SHA-256 over the DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &self.pair.subject_public_key_info()))
    }

    /// The certificate to show.
    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// The key to prove it with.
    #[must_use]
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_restarted_agent_has_the_same_key_and_nobody_else_can_read_it() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("agent.key");
        let first = AgentKey::load_or_create(&path).expect("made").thumbprint();
        assert_eq!(AgentKey::load_or_create(&path).expect("loaded").thumbprint(), first);
        assert_eq!(first.len(), 43);
        assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("agent.key");
        std::fs::write(&path, "-----BEGIN").expect("damage");
        let made = AgentKey::load_or_create(&path).expect("made").thumbprint();
        assert_eq!(AgentKey::load_or_create(&path).expect("loaded").thumbprint(), made);
    }
}
