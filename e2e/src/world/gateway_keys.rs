//! A certificate authority and the gateway's certificate, made for one world.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Where the gateway's files are, and the CA the agents trust.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: String,
}

/// Makes them in `folder`.
pub(crate) fn make(folder: &Path) -> io::Result<Keys> {
    let failed = |error: rcgen::Error| io::Error::other(error.to_string());
    let authority_key = KeyPair::generate().map_err(failed)?;
    let mut authority = CertificateParams::new(Vec::new()).map_err(failed)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).map_err(failed)?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().map_err(failed)?;
    // Loopback, and loopback as VMs reach it.
    let names = ["127.0.0.1", "localhost", crate::vm::HOST].map(str::to_owned);
    let certificate = CertificateParams::new(names).map_err(failed)?.signed_by(&key, &issuer).map_err(failed)?;
    let keys =
        Keys { certificate: folder.join("tls.crt"), key: folder.join("tls.key"), ca: authority_certificate.pem() };
    fs::write(&keys.certificate, certificate.pem())?;
    fs::write(&keys.key, key.serialize_pem())?;
    Ok(keys)
}
