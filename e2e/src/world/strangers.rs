//! A world seen by those who want more than is theirs: tokens, sessions, and what the operator counts of it.

use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tonic::Status;

use super::{Trouble, World};
use crate::{
    compute::{IdentityError, SignedBy},
    stranger::{Stranger, Voice},
};

impl World {
    /// The claims of a genuine identity token of this instance, made for this stranger's key.
    ///
    /// # Errors
    /// When there is no such running instance.
    pub fn claims(&self, instance: &str, stranger: &Stranger) -> Result<Value, IdentityError> {
        self.compute.identity_claims(instance, &audience(stranger))
    }

    /// A genuine identity token of this instance, made for this stranger's key: any process on the VM can have one.
    ///
    /// # Errors
    /// When there is no such running instance.
    pub fn token(&self, instance: &str, stranger: &Stranger) -> Result<String, IdentityError> {
        self.compute.mint_identity_token(&self.claims(instance, stranger)?, SignedBy::Google)
    }

    /// A stranger calls in with this token.
    ///
    /// # Errors
    /// The status it is turned away with.
    pub async fn meet(&self, stranger: &Stranger, token: &str) -> Result<Voice, Status> {
        stranger.open(self.gateway(), self.ca(), stranger.hello(token)).await
    }

    /// How many agents the operator has refused for this reason.
    ///
    /// # Errors
    /// When its metrics cannot be read.
    pub async fn refused(&self, reason: &str) -> Result<u64, Trouble> {
        let series = format!("miglet_attestation_refused_total{{reason=\"{reason}\"}}");
        self.figure(&series).await
    }

    /// How many agents the operator has refused for any reason.
    ///
    /// # Errors
    /// When its metrics cannot be read.
    pub async fn refused_at_all(&self) -> Result<u64, Trouble> {
        self.figure("miglet_attestation_refused_total{").await
    }

    /// How many registrations GitHub was asked for.
    #[must_use]
    pub fn registrations(&self) -> usize {
        self.github.server().traffic.count(|e| e.method == "POST" && e.path.contains("generate-jitconfig"))
    }

    /// The sum of the first operator's series that begin like this.
    ///
    /// # Errors
    /// When its metrics cannot be read.
    pub async fn figure(&self, series: &str) -> Result<u64, Trouble> {
        let address = self.operators.first().ok_or("there is no operator")?.metrics();
        let http = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
        let answer = http.get(format!("http://{address}/metrics").parse()?).await?;
        let text = String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?;
        let values = text.lines().filter(|line| line.starts_with(series)).filter_map(|line| line.rsplit_once(' '));
        Ok(values.map(|(_, value)| value.parse::<u64>()).sum::<Result<u64, _>>()?)
    }
}

/// The audience of an honest agent's token.
fn audience(stranger: &Stranger) -> String {
    format!("miglet-test/{}", stranger.thumbprint())
}
