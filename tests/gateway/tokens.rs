//! Google's signing key, and tokens right and wrong.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};

pub(crate) const AUDIENCE: &str = "https://gateway.test/ci";

/// A signing key with its id.
pub(crate) struct Signer {
    pub(crate) id: String,
    pub(crate) key: EncodingKey,
    pub(crate) algorithm: Algorithm,
}

impl Signer {
    pub(crate) fn rsa(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self { id: id.into(), key, algorithm: Algorithm::RS256 }
    }

    pub(crate) fn ec(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self { id: id.into(), key, algorithm: Algorithm::ES256 }
    }

    pub(crate) fn hmac(id: &str, secret: &[u8]) -> Self {
        Self { id: id.into(), key: EncodingKey::from_secret(secret), algorithm: Algorithm::HS256 }
    }

    pub(crate) fn jwk(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.clone());
        jwk
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.clone()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

/// A token nobody signed.
pub(crate) fn unsigned(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(&json!({"alg": "none", "kid": "google-1"})), part(claims))
}

/// What Google says of an instance, at `now`.
pub(crate) fn claims(vm: &str, instance_id: u64, thumbprint: &str, now: i64) -> Value {
    json!({
        "iss": "https://accounts.google.com",
        "aud": format!("{AUDIENCE}/{thumbprint}"),
        "sub": "1", "email": "runner@acme-ci.iam.gserviceaccount.com", "email_verified": true,
        "iat": now, "exp": now + 3600,
        "google": {"compute_engine": {
            "project_id": "acme-ci", "project_number": 7, "zone": "us-central1-a",
            "instance_id": instance_id.to_string(), "instance_name": vm,
            "instance_creation_timestamp": now - 20,
        }},
    })
}
