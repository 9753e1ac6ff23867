//! Who is asking: Apps with verified JWTs, their installation tokens, personal tokens.
//!
//! JWTs are verified as GitHub does: RS256 with the App's own key, `iss` the App id, `iat` not in the future, `exp` in
//! the future and at most ten minutes ahead, all by this server's clock.

use std::collections::HashMap;

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use uuid::Uuid;

use super::refusal::Refusal;

/// Longest life of an App JWT, in seconds.
const LONGEST: i64 = 600;
/// Life of an installation token, in seconds.
const TOKEN_LIFE: i64 = 3600;
/// In PKCS#8 a 2048-bit RSA key has this much in front of the PKCS#1 structure GitHub hands out.
const PKCS8_PREFIX: usize = 26;

/// What the owner of a GitHub App holds.
#[derive(Clone, Debug)]
pub struct AppCredentials {
    /// App id.
    pub app_id: u64,
    /// The App's installation.
    pub installation_id: u64,
    /// Private key of this simulation, `BEGIN RSA PRIVATE KEY` as GitHub hands it out.
    pub private_key_pem: String,
}

/// A private key that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("could not make an RSA key for a GitHub App")]
pub struct KeyError;

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// An App, by JWT.
    App(u64),
    /// An installation token.
    Installation { id: u64, account: Option<String> },
    /// A personal access token.
    Token(u64),
}

impl Credential {
    /// What rate limits are counted by.
    pub(crate) fn who(&self) -> String {
        match self {
            Self::App(id) => format!("app ID {id}"),
            Self::Installation { id, .. } => format!("installation ID {id}"),
            Self::Token(id) => format!("user ID {id}"),
        }
    }
}

#[derive(Debug)]
struct App {
    public_key: Vec<u8>,
    installation: u64,
    account: Option<String>,
    revoked: bool,
}

#[derive(Debug)]
struct Grant {
    credential: Credential,
    expires: i64,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: serde_json::Value,
    iat: i64,
    exp: i64,
}

/// All credentials in force.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    apps: HashMap<u64, App>,
    grants: HashMap<String, Grant>,
    users: u64,
}

impl Credentials {
    /// A new App, installed on one account or on all.
    pub(crate) fn add_app(&mut self, account: Option<String>) -> Result<AppCredentials, KeyError> {
        let key = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError)?;
        let private: Pkcs8V1Der<'_> = key.as_der().map_err(|_| KeyError)?;
        let pkcs1 = private.as_ref().get(PKCS8_PREFIX..).ok_or(KeyError)?;
        let app_id = 100_001 + u64::try_from(self.apps.len()).unwrap_or_default();
        let installation = 50_000_000 + app_id;
        let public_key = key.public_key().as_ref().to_vec();
        self.apps.insert(app_id, App { public_key, installation, account, revoked: false });
        Ok(AppCredentials { app_id, installation_id: installation, private_key_pem: pem(pkcs1) })
    }

    /// A personal access token that does not expire.
    pub(crate) fn add_token(&mut self) -> String {
        let token = format!("ghp_{}", Uuid::new_v4().simple());
        self.users += 1;
        self.grants.insert(token.clone(), Grant { credential: Credential::Token(self.users), expires: i64::MAX });
        token
    }

    /// A token for an installation, asked for by its App; with the time it expires.
    pub(crate) fn mint(&mut self, app: u64, installation: u64, now: i64) -> Result<(String, i64), Refusal> {
        let app = self.apps.get(&app).filter(|a| a.installation == installation && !a.revoked);
        let app = app.ok_or_else(Refusal::not_found)?;
        let credential = Credential::Installation { id: installation, account: app.account.clone() };
        let token = format!("ghs_{}", Uuid::new_v4().simple());
        let expires = now + TOKEN_LIFE;
        self.grants.insert(token.clone(), Grant { credential, expires });
        Ok((token, expires))
    }

    /// Suspends an installation, or takes it back: its tokens are refused, new ones are not minted.
    pub(crate) fn revoke(&mut self, installation: u64, revoked: bool) {
        self.apps.values_mut().filter(|a| a.installation == installation).for_each(|a| a.revoked = revoked);
        self.grants.retain(|_, g| !matches!(&g.credential, Credential::Installation { id, .. } if *id == installation));
    }

    /// Every installation token ends now.
    pub(crate) fn expire_tokens(&mut self) {
        self.grants.retain(|_, g| !matches!(g.credential, Credential::Installation { .. }));
    }

    /// A personal token is refused from now on.
    pub(crate) fn revoke_token(&mut self, token: &str) {
        self.grants.remove(token);
    }

    /// Who sends these headers.
    pub(crate) fn identify(&self, headers: &HeaderMap, now: i64) -> Result<Credential, Refusal> {
        let value = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let value = value.ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, "Requires authentication"))?;
        let (scheme, secret) = value.split_once(' ').ok_or_else(Refusal::bad_credentials)?;
        if !scheme.eq_ignore_ascii_case("bearer") && !scheme.eq_ignore_ascii_case("token") {
            return Err(Refusal::bad_credentials());
        }
        if secret.split('.').count() == 3 {
            return self.verify(secret, now);
        }
        let grant = self.grants.get(secret).filter(|g| g.expires > now);
        grant.map(|g| g.credential.clone()).ok_or_else(Refusal::bad_credentials)
    }

    fn verify(&self, jwt: &str, now: i64) -> Result<Credential, Refusal> {
        let undecodable = || Refusal::new(StatusCode::UNAUTHORIZED, "A JSON web token could not be decoded");
        let claims: Claims = jsonwebtoken::dangerous::insecure_decode(jwt).map_err(|_| undecodable())?.claims;
        let issuer = claims.iss.as_u64().or_else(|| claims.iss.as_str().and_then(|s| s.parse().ok()));
        let id = issuer.ok_or_else(undecodable)?;
        let app = self.apps.get(&id).ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "Integration not found"))?;
        let mut rules = Validation::new(Algorithm::RS256);
        // Times are judged by the simulator's own clock below.
        rules.validate_exp = false;
        rules.required_spec_claims.clear();
        jsonwebtoken::decode::<Claims>(jwt, &DecodingKey::from_rsa_der(&app.public_key), &rules)
            .map_err(|_| undecodable())?;
        times(&claims, now).map_err(|text| Refusal::new(StatusCode::UNAUTHORIZED, text))?;
        Ok(Credential::App(id))
    }
}

fn times(claims: &Claims, now: i64) -> Result<(), &'static str> {
    if claims.iat > now {
        return Err("'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued");
    }
    if claims.exp <= now {
        return Err("'Expiration time' claim ('exp') must be a numeric value representing the future time at which \
                    the assertion expires");
    }
    if claims.exp > now + LONGEST {
        return Err("'Expiration time' claim ('exp') is too far in the future");
    }
    Ok(())
}

fn pem(pkcs1: &[u8]) -> String {
    let text = STANDARD.encode(pkcs1);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n", lines.join("\n"))
}
