//! Instance identity tokens: RS256 JWTs with Google's full set of claims, their published keys, and forgeries.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rand::Rng;
use serde_json::{Value, json};

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No RSA key.
    #[error("cannot generate an RSA key: {0}")]
    Key(#[from] aws_lc_rs::error::Unspecified),
    /// No signature.
    #[error("cannot sign an identity token")]
    Sign(#[from] jsonwebtoken::errors::Error),
    /// No such instance.
    #[error("there is no instance {0} with a service account")]
    NoInstance(String),
}

/// Who signs a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// The current key, as published.
    Google,
    /// A key nobody published, under the published key's id.
    Stranger,
    /// A key nobody published, under an id nobody published.
    UnknownKey,
    /// HS256 with the published modulus as the secret: the classic confusion of algorithms.
    Hmac,
    /// Nobody: `alg` is `none`.
    Nobody,
}

struct Key {
    id: String,
    private: EncodingKey,
    modulus: String,
    exponent: String,
}

impl Key {
    fn generate() -> Result<Self, IdentityError> {
        let pair = KeyPair::generate(KeySize::Rsa2048)?;
        let private: Pkcs8V1Der<'_> = pair.as_der()?;
        let public = pair.public_key();
        Ok(Self {
            id: format!("{:040x}", rand::rng().random::<u128>()),
            private: EncodingKey::from_rsa_pem(pem(private.as_ref()).as_bytes())?,
            modulus: URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
            exponent: URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
        })
    }
}

/// PKCS#8 as PEM: only from PEM does the JWT library unwrap it to the RSA key inside.
fn pem(der: &[u8]) -> String {
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
}

/// Signs identity tokens and publishes the keys.
pub(crate) struct Identity {
    keys: Mutex<Vec<Key>>,
}

impl Identity {
    pub(crate) fn new() -> Result<Self, IdentityError> {
        Ok(Self { keys: Mutex::new(vec![Key::generate()?]) })
    }

    /// Signs with a new key from now on; the old one stays published.
    pub(crate) fn roll_over(&self) -> Result<(), IdentityError> {
        let key = Key::generate()?;
        self.keys().push(key);
        Ok(())
    }

    /// The published keys.
    pub(crate) fn jwks(&self) -> Value {
        let keys = self.keys();
        let keys = keys.iter().map(
            |key| json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": key.id, "n": key.modulus, "e": key.exponent}),
        );
        json!({"keys": keys.collect::<Vec<_>>()})
    }

    pub(crate) fn sign(&self, claims: &Value, by: SignedBy) -> Result<String, IdentityError> {
        let stranger = match by {
            SignedBy::Stranger | SignedBy::UnknownKey => Some(Key::generate()?),
            _ => None,
        };
        let keys = self.keys();
        let Some(genuine) = keys.last() else { return Err(aws_lc_rs::error::Unspecified.into()) };
        let signer = stranger.as_ref().unwrap_or(genuine);
        let algorithm = if by == SignedBy::Hmac { Algorithm::HS256 } else { Algorithm::RS256 };
        let mut header = Header::new(algorithm);
        header.kid = Some(if by == SignedBy::UnknownKey { signer.id.clone() } else { genuine.id.clone() });
        match by {
            SignedBy::Nobody => Ok(unsigned(claims)),
            SignedBy::Hmac => {
                let secret = EncodingKey::from_secret(genuine.modulus.as_bytes());
                Ok(jsonwebtoken::encode(&header, claims, &secret)?)
            }
            _ => Ok(jsonwebtoken::encode(&header, claims, &signer.private)?),
        }
    }

    fn keys(&self) -> MutexGuard<'_, Vec<Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unsigned(claims: &Value) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims.to_string()))
}
