//! Keys, certificates and tokens of one control plane, in files of its folder.
//!
//! The API server has a certificate of an authority made for this one start: a client of this control plane can never
//! end up at another one that got the same port.

use std::{fmt, fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use uuid::Uuid;

use super::error::Error;

/// The user that tests act as: `system:masters`.
pub(super) const ADMIN: &str = "admin";
/// The user of kube-controller-manager.
pub(super) const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// What clients need; the rest stays in the files.
#[derive(Clone)]
pub(super) struct Credentials {
    /// The authority's certificate, PEM.
    pub(super) authority: String,
    /// Token of [`ADMIN`].
    pub(super) admin_token: String,
    /// Token of [`CONTROLLER_MANAGER`].
    pub(super) controller_manager_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Makes them all and writes the files that the components read.
    pub(super) fn create(folder: &Path) -> Result<Self, Error> {
        let issuer = authority()?;
        let server_key = KeyPair::generate()?;
        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc", "10.0.0.1"].map(String::from).to_vec();
        let server = CertificateParams::new(names)?.signed_by(&server_key, &issuer)?;
        let accounts = KeyPair::generate()?;
        let made = Self { authority: issuer.pem(), admin_token: token(), controller_manager_token: token() };
        for (name, content) in [
            ("ca.crt", made.authority.clone()),
            ("server.crt", server.pem()),
            ("server.key", server_key.serialize_pem()),
            ("accounts.key", accounts.serialize_pem()),
            ("accounts.pub", accounts.public_key_pem()),
            ("tokens.csv", made.tokens()),
        ] {
            fs::write(folder.join(name), content).map_err(Error::io(format!("write {name}")))?;
        }
        Ok(made)
    }

    /// Both are masters: kube-controller-manager's own role only suffices with one account per controller.
    fn tokens(&self) -> String {
        let Self { admin_token, controller_manager_token, .. } = self;
        format!(
            "{admin_token},{ADMIN},1,system:masters\n{controller_manager_token},{CONTROLLER_MANAGER},2,system:masters\n"
        )
    }
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "miglet test control plane");
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn token() -> String {
    Uuid::new_v4().simple().to_string()
}
