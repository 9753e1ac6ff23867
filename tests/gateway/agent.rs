//! An agent as far as the gateway can tell.

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper_util::rt::TokioIo;
use miglet_proto::{
    PROTOCOL_MINOR,
    v1::{
        AgentMessage, Hello, OperatorMessage, Report, Welcome, agent_message, agent_service_client::AgentServiceClient,
        operator_message,
    },
};
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::aws_lc_rs as provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};
use tokio::{net::TcpSocket, sync::mpsc, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    tokens,
    world::{World, now},
};

pub(crate) const WAIT: Duration = Duration::from_secs(10);

/// A key of an agent's own.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    pub(crate) thumbprint: String,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["agent".to_owned()]).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&made.signing_key);
        let thumbprint = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &spki));
        Self {
            certificate: made.cert.der().clone(),
            key: PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()),
            thumbprint,
        }
    }

    /// Shows another's certificate and signs with its own key.
    pub(crate) fn impersonating(victim: &Self) -> Self {
        Self { certificate: victim.certificate.clone(), thumbprint: victim.thumbprint.clone(), ..Self::new() }
    }
}

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A TLS connection from an address of loopback; `None` shows no certificate.
pub(crate) async fn dial(
    world: &World,
    identity: Option<&Identity>,
    from: &str,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.certificate.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(provider::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from(identity.key.clone_key());
            let key = provider.key_provider.load_private_key(key).unwrap();
            let shown = CertifiedKey::new(vec![identity.certificate.clone()], key);
            builder.with_client_cert_resolver(Arc::new(Shown(Arc::new(shown))))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpSocket::new_v4()?;
    socket.bind((from.parse::<IpAddr>().unwrap(), 0).into())?;
    let stream = socket.connect(world.address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("gateway.test").unwrap(), stream).await
}

/// A client over one such connection.
pub(crate) async fn channel(world: &World, identity: &Identity, from: &str) -> Result<Channel, String> {
    let stream = dial(world, Some(identity), from).await.map_err(|error| error.to_string())?;
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("one connection only"));
        async move { stream }
    });
    let endpoint = Endpoint::from_static("http://gateway.test");
    endpoint.connect_with_connector(connector).await.map_err(|error| format!("{error:?}"))
}

/// An open stream.
pub(crate) struct Agent {
    pub(crate) outgoing: mpsc::Sender<AgentMessage>,
    pub(crate) incoming: Streaming<OperatorMessage>,
    pub(crate) welcome: Welcome,
}

pub(crate) fn hello(token: String) -> Hello {
    Hello {
        identity_token: token,
        boot_id: "boot-1".into(),
        agent_version: "0.1.0".into(),
        protocol_minor: PROTOCOL_MINOR,
        report: Some(Report::default()),
    }
}

impl Agent {
    /// Says hello over a new connection.
    pub(crate) async fn open(world: &World, identity: &Identity, hello: Hello) -> Result<Self, Status> {
        Self::open_from(world, identity, hello, "127.0.0.1").await
    }

    pub(crate) async fn open_from(
        world: &World,
        identity: &Identity,
        hello: Hello,
        from: &str,
    ) -> Result<Self, Status> {
        let channel = channel(world, identity, from).await.map_err(Status::unknown)?;
        let (outgoing, messages) = mpsc::channel(64);
        let mut client = AgentServiceClient::new(channel);
        let mut incoming = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let hello = AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
        // The stream may have ended already: what it ended with is read below.
        drop(outgoing.send(hello).await);
        let first = timeout(WAIT, incoming.message()).await.expect("an answer")?.expect("a message");
        let Some(operator_message::Message::Welcome(welcome)) = first.message else { panic!("no welcome: {first:?}") };
        Ok(Self { outgoing, incoming, welcome })
    }

    /// The agent of `vm`, with everything in order.
    pub(crate) async fn of(world: &World, identity: &Identity, vm: &str, id: u64) -> Result<Self, Status> {
        let token = world.google.sign(&tokens::claims(vm, id, &identity.thumbprint, now()));
        Self::open(world, identity, hello(token)).await
    }

    pub(crate) async fn report(&self, report: Report) {
        let message = AgentMessage { message: Some(agent_message::Message::Report(report)) };
        // The stream may have ended: the test looks at its end.
        drop(self.outgoing.send(message).await);
    }

    /// The status the stream ends with.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match timeout(WAIT, self.incoming.message()).await.expect("the stream never ended") {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}
