//! Google's word for which instance is calling: the identity token, verified in full.
//!
//! Order matters: nothing in a token is believed before its signature is. What is wrong with a token that Google did
//! sign can be told on the RunnerVM it names; anything else is only counted.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;

use super::{
    keys::{Keys, KeysError},
    refusals::Refusal,
};
use crate::compute::InstanceId;

const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];
const LEEWAY: SignedDuration = SignedDuration::from_secs(30);

/// An instance, as Google vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmIdentity {
    /// Project id.
    pub project_id: String,
    /// Zone.
    pub zone: String,
    /// Numeric id.
    pub instance_id: InstanceId,
    /// Name.
    pub instance_name: String,
    /// When it was created.
    pub created: Timestamp,
    /// Its service account.
    pub email: String,
}

/// A token that was not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unverified {
    /// It is wrong; `signed` is what Google signed, if it did.
    #[error("{reason}")]
    Refused { reason: Refusal, signed: Option<Box<VmIdentity>> },
    /// It could not be checked.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl From<Refusal> for Unverified {
    fn from(reason: Refusal) -> Self {
        Self::Refused { reason, signed: None }
    }
}

/// Verifies tokens for this operator.
#[derive(Debug)]
pub(super) struct Verifier {
    audience: String,
    keys: Keys,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    iat: i64,
    exp: i64,
    #[serde(default)]
    email: String,
    google: Option<Google>,
}

#[derive(Deserialize)]
struct Google {
    compute_engine: Option<ComputeEngine>,
}

#[derive(Deserialize)]
struct ComputeEngine {
    project_id: String,
    zone: String,
    instance_id: String,
    instance_name: String,
    instance_creation_timestamp: i64,
}

impl Verifier {
    pub(super) fn new(audience: String, keys: Keys) -> Self {
        Self { audience, keys }
    }

    /// Who a token speaks for, if it was made for the holder of this key.
    pub(super) async fn verify(&self, token: &str, thumbprint: &str, now: Timestamp) -> Result<VmIdentity, Unverified> {
        let id = key_id(token)?;
        let key = self.keys.key(&id).await?.ok_or(Refusal::UnknownKey)?;
        let claims = signed_claims(token, &key)?;
        let identity = claims.identity();
        match checked(&claims, &format!("{}/{thumbprint}", self.audience), now) {
            Ok(()) => Ok(identity.ok_or(Refusal::NoInstanceClaims)?),
            Err(reason) => Err(Unverified::Refused { reason, signed: identity.map(Box::new) }),
        }
    }
}

/// The id of the key a token says it is signed with. Read here because algorithms such as `none` are a refusal of
/// their own, not a parse error.
fn key_id(token: &str) -> Result<String, Refusal> {
    let (header, _) = token.split_once('.').ok_or(Refusal::MalformedToken)?;
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Refusal::MalformedToken)?;
    let header: Header = serde_json::from_slice(&header).map_err(|_| Refusal::MalformedToken)?;
    if header.alg != "RS256" {
        return Err(Refusal::WrongAlgorithm);
    }
    header.kid.ok_or(Refusal::UnknownKey)
}

/// What Google signed. The claims are checked by [`checked`], with our clock.
fn signed_claims(token: &str, key: &Arc<DecodingKey>) -> Result<Claims, Refusal> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    match jsonwebtoken::decode::<Claims>(token, key, &validation) {
        Ok(data) => Ok(data.claims),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => Err(Refusal::BadSignature),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidAlgorithm) => Err(Refusal::WrongAlgorithm),
        Err(_) => Err(Refusal::MalformedToken),
    }
}

fn checked(claims: &Claims, audience: &str, now: Timestamp) -> Result<(), Refusal> {
    let second = |unix| Timestamp::from_second(unix).map_err(|_| Refusal::MalformedToken);
    let (issued, expires) = (second(claims.iat)?, second(claims.exp)?);
    if !ISSUERS.contains(&claims.iss.as_str()) {
        return Err(Refusal::WrongIssuer);
    }
    if claims.aud != audience {
        return Err(Refusal::WrongAudience);
    }
    if now.duration_since(expires) > LEEWAY {
        return Err(Refusal::Expired);
    }
    if issued.duration_since(now) > LEEWAY {
        return Err(Refusal::NotYetValid);
    }
    Ok(())
}

impl Claims {
    fn identity(&self) -> Option<VmIdentity> {
        let engine = self.google.as_ref()?.compute_engine.as_ref()?;
        Some(VmIdentity {
            project_id: engine.project_id.clone(),
            zone: engine.zone.clone(),
            instance_id: InstanceId(engine.instance_id.parse().ok()?),
            instance_name: engine.instance_name.clone(),
            created: Timestamp::from_second(engine.instance_creation_timestamp).ok()?,
            email: self.email.clone(),
        })
    }
}
