//! TLS as agents see it: our certificate from files, and theirs made by themselves.
//!
//! - Any client certificate is accepted: its key is the identity, and TLS proves that the peer holds that key. So the
//!   handshake's signature is verified and nothing else; a client without a certificate is turned away.
//! - No session is resumed: a resumed one shows an old certificate without proving the key again.
//! - The files are read again every few seconds (they are a Secret's, which changes under us); what cannot be used
//!   leaves the old certificate in place, with one warning.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Where the gateway's certificate is.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// PEM file: the certificate and what leads to its root.
    pub certificate: PathBuf,
    /// PEM file: its private key.
    pub key: PathBuf,
    /// How often the files are read again.
    pub reload_period: Duration,
}

/// The gateway's certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("parsing {}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The certificate and its key do not work together.
    #[error("using the certificate and its key")]
    Pair(#[from] rustls::Error),
}

/// Our certificate, as the files say it now.
#[derive(Debug)]
pub(super) struct Certificates {
    files: TlsFiles,
    current: RwLock<Arc<CertifiedKey>>,
}

#[derive(PartialEq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificates {
    /// Reads the files for the first time, and again until `shutdown`.
    pub(super) async fn watched(files: TlsFiles, shutdown: CancellationToken) -> Result<Arc<Self>, TlsError> {
        let contents = read(&files).await?;
        let current = RwLock::new(Arc::new(parse(&files, &contents)?));
        let certificates = Arc::new(Self { files, current });
        let watched = Arc::clone(&certificates);
        tokio::spawn(async move { shutdown.run_until_cancelled(watched.watch(contents)).await });
        Ok(certificates)
    }

    async fn watch(&self, mut seen: Contents) {
        loop {
            tokio::time::sleep(self.files.reload_period).await;
            let Ok(contents) = read(&self.files).await else { continue };
            if contents == seen {
                continue;
            }
            match parse(&self.files, &contents) {
                Ok(pair) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
                    info!("serving a new certificate");
                }
                Err(error) => warn!(%error, "keeping the old certificate: the new one cannot be used"),
            }
            seen = contents;
        }
    }
}

async fn read(files: &TlsFiles) -> Result<Contents, TlsError> {
    let read =
        |path: PathBuf| async move { tokio::fs::read(&path).await.map_err(|source| TlsError::Read { path, source }) };
    Ok(Contents { certificate: read(files.certificate.clone()).await?, key: read(files.key.clone()).await? })
}

fn parse(files: &TlsFiles, contents: &Contents) -> Result<CertifiedKey, TlsError> {
    let bad = |path: &PathBuf| {
        let path = path.clone();
        |source| TlsError::Parse { path, source }
    };
    let chain = CertificateDer::pem_slice_iter(&contents.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(bad(&files.certificate))?;
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(bad(&files.key))?;
    Ok(CertifiedKey::from_der(chain, key, &provider::default_provider())?)
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Accepts agents' connections with this certificate.
pub(super) fn acceptor(certificates: Arc<Certificates>) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(provider::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Possession(provider)))
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// SHA-256 of a certificate's public key (its SubjectPublicKeyInfo), base64url without padding; `None` for what is no
/// certificate.
pub(super) fn thumbprint(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, parsed.public_key().raw)))
}

/// Takes any certificate, and makes the peer prove that it holds its key.
#[derive(Debug)]
struct Possession(Arc<CryptoProvider>);

impl ClientCertVerifier for Possession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        thumbprint(end_entity).ok_or(rustls::CertificateError::BadEncoding)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
