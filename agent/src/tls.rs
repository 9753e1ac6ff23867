//! TLS to the gateway: its certificate must lead to the CA from the settings and to nothing else; ours proves the
//! agent's key. The provider is passed explicitly, so many agents can live in one process of someone else's.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{key::AgentKey, proxy::Proxies, settings::Settings};

/// TCP and handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA or the key was refused.
    #[error("could not set up TLS with the configured CA and the agent's key")]
    Config(#[from] rustls::Error),
    /// The gateway's name cannot be in a certificate.
    #[error("the gateway's host {host:?} is no valid name")]
    Name {
        /// The name.
        host: String,
    },
}

/// Dials the gateway; the name is resolved anew each time.
#[derive(Clone)]
pub struct Dialer {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
    proxies: Proxies,
}

impl Dialer {
    /// A dialer for the gateway of these settings.
    ///
    /// # Errors
    /// When the CA or the host name is unusable.
    pub fn new(settings: &Settings, key: &AgentKey) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(settings.ca.as_bytes()).flatten());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![key.certificate()], key.private_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let host = settings.host.clone();
        let name = ServerName::try_from(host.clone()).map_err(|_| TlsError::Name { host: host.clone() })?;
        let proxies = Proxies::from_environment();
        Ok(Self { host, port: settings.port, name, tls: TlsConnector::from(Arc::new(config)), proxies })
    }

    /// A fresh connection.
    ///
    /// # Errors
    /// When the host cannot be resolved or reached, or is not who it should be.
    pub async fn dial(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let connect = async {
            let tcp = self.proxies.connect(&self.host, self.port).await?;
            tcp.set_nodelay(true)?;
            self.tls.connect(self.name, tcp).await
        };
        let stream = timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(TokioIo::new(stream))
    }
}
