//! HTTP GET for large things from public places: follows redirects, resumes, never waits for ever. A connection a
//! request: the agent fetches one file in its life.
//!
//! Trusted are the machine's own authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` override them), so a company's CA
//! needs no setting here, nor does a proxy. A redirect never leads from https to http.

use std::{fmt, future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::proxy::{Proxies, Proxy};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the answer's head, and between two pieces of its body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A body that comes slower than this, measured over so long, is given up: the next source may be better.
const SLOWEST: u64 = 50 * 1024;
const PACE_WINDOW: Duration = Duration::from_secs(60);
const REDIRECT_LIMIT: usize = 5;

/// A client for any number of hosts.
#[derive(Clone)]
pub struct Client {
    tls: TlsConnector,
    proxies: Proxies,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    pace: Pace,
    connection: JoinHandle<()>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Nothing could be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The machine's authorities make no TLS configuration.
    #[error("could not set up TLS")]
    Tls(#[from] rustls::Error),
    /// Not a URL this client knows.
    #[error("{0} is not an http or https URL with a host")]
    Url(String),
    /// No connection.
    #[error("could not connect to {host}")]
    Connect {
        /// Which host.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// The other side broke off, or does not speak HTTP.
    #[error("the exchange with {host} broke off")]
    Exchange {
        /// Which host.
        host: String,
        /// Why.
        source: hyper::Error,
    },
    /// It went quiet.
    #[error("{host} sent nothing for {} s", STALL_TIMEOUT.as_secs())]
    Stalled {
        /// Which host.
        host: String,
    },
    /// It drips.
    #[error("{host} sent less than {} KiB a second for {} s", SLOWEST / 1024, PACE_WINDOW.as_secs())]
    Slow {
        /// Which host.
        host: String,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {why}")]
    Redirect {
        /// Which host.
        host: String,
        /// Where, or how often.
        why: &'static str,
    },
}

impl Client {
    /// Trusts what this machine trusts.
    ///
    /// # Errors
    /// When no TLS can be set up.
    pub fn new() -> Result<Self, FetchError> {
        let mut roots = RootCertStore::empty();
        // Unreadable ones are missed by the handshake, which says so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), proxies: Proxies::from_environment() })
    }

    /// What is at this URL, from byte `from` on if the server can do that.
    ///
    /// # Errors
    /// When no answer comes, or too many redirects.
    pub async fn get(&self, url: &Uri, from: u64) -> Result<Answer, FetchError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECT_LIMIT {
            let answer = self.exchange(&url, from).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            url = next(&url, &answer.headers)?;
        }
        Err(FetchError::Redirect { host: host(&url), why: "too often" })
    }

    async fn exchange(&self, url: &Uri, from: u64) -> Result<Answer, FetchError> {
        let host = url.host().ok_or_else(|| FetchError::Url(url.to_string()))?.trim_matches(['[', ']']);
        let secure = url.scheme_str() == Some("https");
        let broken = |source| FetchError::Connect { host: host.to_owned(), source };
        if !secure {
            let proxy = self.proxies.of(false, host);
            let stream = match proxy {
                Some(proxy) => bounded(proxy.connect()).await,
                None => bounded(TcpStream::connect((host, url.port_u16().unwrap_or(80)))).await,
            };
            return ask(stream.map_err(broken)?, url, from, proxy).await;
        }
        let stream = bounded(self.proxies.connect(host, url.port_u16().unwrap_or(443))).await.map_err(broken)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| FetchError::Url(host.to_owned()))?;
        let stream = bounded(self.tls.connect(name, stream)).await.map_err(broken)?;
        ask(stream, url, from, None).await
    }
}

async fn bounded<T>(connect: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Uri,
    from: u64,
    proxy: Option<&Proxy>,
) -> Result<Answer, FetchError> {
    let broken = |source| FetchError::Exchange { host: host(url), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Its end shows in the answer's.
    let connection = tokio::spawn(async move { connection.await.unwrap_or_default() });
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    // A proxy is told the whole URL.
    let mut request = Request::get(if proxy.is_some() { url.to_string() } else { path.to_owned() })
        .header(header::HOST, url.authority().map_or("", |authority| authority.as_str()))
        .header(header::USER_AGENT, concat!("miglet/", env!("CARGO_PKG_VERSION")));
    if let Some(authorization) = proxy.and_then(Proxy::authorization) {
        request = request.header(header::PROXY_AUTHORIZATION, authorization);
    }
    if from > 0 {
        request = request.header(header::RANGE, format!("bytes={from}-"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| FetchError::Url(url.to_string()))?;
    let answered = timeout(STALL_TIMEOUT, sender.send_request(request)).await;
    let (head, body) = answered.map_err(|_| FetchError::Stalled { host: host(url) })?.map_err(broken)?.into_parts();
    let pace = Pace { since: Instant::now(), bytes: 0 };
    Ok(Answer { status: head.status, headers: head.headers, body, pace, connection })
}

/// How fast a body comes.
#[derive(Debug)]
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Whether it was fast enough up to this piece.
    fn keeps_up(&mut self, piece: usize, now: Instant) -> bool {
        self.bytes += piece as u64;
        let passed = now - self.since;
        if passed < PACE_WINDOW {
            return true;
        }
        let enough = self.bytes >= SLOWEST * passed.as_secs();
        *self = Self { since: now, bytes: 0 };
        enough
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// When the body breaks off, stalls or drips.
    pub async fn piece(&mut self, host: &str) -> Result<Option<Bytes>, FetchError> {
        loop {
            let frame = timeout(STALL_TIMEOUT, self.body.frame()).await;
            match frame.map_err(|_| FetchError::Stalled { host: host.to_owned() })? {
                None => return Ok(None),
                Some(Err(source)) => return Err(FetchError::Exchange { host: host.to_owned(), source }),
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let fast = self.pace.keeps_up(bytes.len(), Instant::now());
                    return if fast { Ok(Some(bytes)) } else { Err(FetchError::Slow { host: host.to_owned() }) };
                }
            }
        }
    }
}

/// The host of a URL, for messages: the rest may hold a signature.
#[must_use]
pub fn host(url: &Uri) -> String {
    url.host().unwrap_or_default().to_owned()
}

/// Where a redirect leads.
fn next(url: &Uri, headers: &HeaderMap) -> Result<Uri, FetchError> {
    let refused = |why| FetchError::Redirect { host: host(url), why };
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refused("without saying where"))?;
    let next = if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = url.clone().into_parts();
        parts.path_and_query = location.parse().ok();
        Uri::from_parts(parts).ok()
    } else {
        location.parse().ok()
    };
    let next: Uri = next.ok_or_else(|| refused("to something that is no URL"))?;
    match (url.scheme_str(), next.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(next),
        _ => Err(refused("to something that is not https")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Reads a body that comes in pieces of this size, one every 25 s; why it was given up, and when.
    async fn given_up(piece: usize) -> (Option<FetchError>, Duration) {
        let begun = Instant::now();
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", piece * 40);
            assert!(far.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0), "a request");
            far.write_all(head.as_bytes()).await.ok();
            loop {
                tokio::time::sleep(Duration::from_secs(25)).await;
                far.write_all(&vec![0; piece]).await.ok();
            }
        });
        let mut answer = ask(near, &"http://mirror/".parse().expect("url"), 0, None).await.expect("an answer");
        let why = loop {
            match answer.piece("mirror").await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        (why, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_drips_is_given_up_and_one_that_is_just_slow_is_not() {
        let (why, after) = given_up(1).await;
        assert!(matches!(why, Some(FetchError::Slow { .. })), "{why:?}");
        assert!(after < PACE_WINDOW + STALL_TIMEOUT, "{after:?}");
        let (why, after) = given_up(100 * 1024 * 25).await;
        assert!(why.is_none() && after >= Duration::from_secs(40 * 25), "{why:?} after {after:?}");
    }

    fn redirect(from: &str, to: &str) -> Result<String, String> {
        let headers = HeaderMap::from_iter([(header::LOCATION, to.parse().expect("header"))]);
        next(&from.parse().expect("url"), &headers).map(|uri| uri.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_redirect_may_be_relative_but_never_gives_up_tls() {
        assert_eq!(redirect("https://a/x?q=1", "/y?z=2").as_deref(), Ok("https://a/y?z=2"));
        assert_eq!(redirect("https://a/x", "https://b/y").as_deref(), Ok("https://b/y"));
        assert_eq!(redirect("http://a/x", "http://b/y").as_deref(), Ok("http://b/y"));
        for to in ["http://b/y", "ftp://b/y", "//b/y", "y"] {
            assert!(redirect("https://a/x", to).is_err(), "{to}");
        }
    }
}
