//! The way out through a proxy, as everybody else takes it: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`, each in lower case
//! first. For the gateway and for the runner's sources. The metadata server is never reached through one: the proxy
//! would ask its own.

use std::{fmt, io, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;

/// The proxies of this process.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    exempt: Vec<String>,
}

/// One proxy.
#[derive(Clone)]
pub struct Proxy {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

/// Without the password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Proxies {
    /// As the environment says.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    fn new(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            let value = get(name).or_else(|| get(&name.to_uppercase()));
            value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let proxy = |name: &str| {
            let text = get(name)?;
            let proxy = Proxy::parse(&text);
            if proxy.is_none() {
                tracing::warn!(variable = name, "not used: only http://host:port is known as a proxy");
            }
            proxy
        };
        let exempt = get("no_proxy").unwrap_or_default();
        let exempt =
            exempt.split([',', ' ']).map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty());
        Self { https: proxy("https_proxy"), http: proxy("http_proxy"), exempt: exempt.collect() }
    }

    /// The proxy on the way to this host, if there is one.
    #[must_use]
    pub fn of(&self, secure: bool, host: &str) -> Option<&Proxy> {
        let proxy = if secure { self.https.as_ref() } else { self.http.as_ref() };
        proxy.filter(|_| !self.is_exempt(host))
    }

    /// This machine itself always is.
    fn is_exempt(&self, host: &str) -> bool {
        let host = host.to_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let itself = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        itself || self.exempt.iter().any(|entry| matches(entry, &host, address))
    }

    /// A connection to this host that TLS can begin on.
    ///
    /// # Errors
    /// When host or proxy cannot be reached, or the proxy refuses.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        match self.of(true, host) {
            Some(proxy) => proxy.tunnel(host, port).await,
            None => TcpStream::connect((host, port)).await,
        }
    }
}

/// `*`, an address, a network, a name, or a name with all below it, with or without a dot in front.
fn matches(entry: &str, host: &str, address: Option<IpAddr>) -> bool {
    let network = entry.split_once('/').and_then(|(base, bits)| Some((base.parse().ok()?, bits.parse().ok()?)));
    match (network, address) {
        (Some((base, bits)), Some(address)) => contains(base, bits, address),
        _ => {
            let name = entry.trim_start_matches("*.").trim_start_matches('.');
            let below = host.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'));
            entry == "*" || (below && !name.is_empty())
        }
    }
}

fn contains(base: IpAddr, bits: u32, address: IpAddr) -> bool {
    // As many bits as are to be equal from the left.
    let equal = match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => (base.to_bits() ^ address.to_bits()).leading_zeros(),
        (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits() ^ address.to_bits()).leading_zeros(),
        _ => return false,
    };
    equal >= bits
}

impl Proxy {
    fn parse(text: &str) -> Option<Self> {
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = text.parse().ok().filter(|uri: &Uri| uri.scheme_str() == Some("http"))?;
        let authority = uri.authority()?;
        let authorization = authority.as_str().rsplit_once('@').and_then(|(user, _)| {
            let mut value = HeaderValue::from_str(&format!(
                "Basic {}",
                STANDARD.encode(percent_decode_str(user).collect::<Vec<_>>())
            ))
            .ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Some(Self { host, port: authority.port_u16().unwrap_or(80), authorization })
    }

    /// A connection to the proxy itself, for a request with a whole URL in it.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let connected = TcpStream::connect((self.host.as_str(), self.port)).await;
        connected.map_err(|error| io::Error::new(error.kind(), format!("the proxy {self:?}: {error}")))
    }

    /// What the proxy wants to know of us.
    #[must_use]
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    async fn tunnel(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let refused = |why: String| io::Error::other(format!("the proxy {self:?} gives no way to {host}: {why}"));
        let broken = |error: hyper::Error| refused(error.to_string());
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(broken)?;
        let connection = tokio::spawn(connection.with_upgrades());
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = Request::builder().method(Method::CONNECT).uri(&target).header(header::HOST, &target);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| refused(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if !response.status().is_success() {
            connection.abort();
            return Err(refused(response.status().to_string()));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| refused("no connection".to_owned()))?;
        // In TLS the client speaks first: bytes that are here already are no server's.
        if parts.read_buf.is_empty() { Ok(parts.io.into_inner()) } else { Err(refused("it speaks first".to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::new(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    fn way(proxies: &Proxies, secure: bool, host: &str) -> Option<String> {
        proxies.of(secure, host).map(|proxy| format!("{proxy:?}"))
    }

    #[test]
    fn the_environment_names_a_proxy_for_each_scheme_lower_case_first() {
        let proxies = proxies(&[
            ("https_proxy", "http://small:1"),
            ("HTTPS_PROXY", "http://large:2"),
            ("HTTP_PROXY", "plain:3128"),
        ]);
        assert_eq!(way(&proxies, true, "github.com").as_deref(), Some("small:1"));
        assert_eq!(way(&proxies, false, "github.com").as_deref(), Some("plain:3128"));
        assert_eq!(way(&Proxies::default(), true, "github.com"), None);
    }

    #[test]
    fn what_no_proxy_names_and_the_machine_itself_are_reached_directly() {
        let exempt = "acme.test, .lower.test,*.star.test,10.0.0.0/8,192.168.1.7,2001:db8::/32";
        let proxies = proxies(&[("https_proxy", "http://proxy:1"), ("no_proxy", exempt)]);
        let direct = [
            "acme.test",
            "deep.ACME.test",
            "x.lower.test",
            "x.star.test",
            "10.255.0.1",
            "192.168.1.7",
            "2001:db8:9::1",
            "localhost",
            "127.0.0.1",
            "::1",
        ];
        for host in direct {
            assert_eq!(way(&proxies, true, host), None, "{host}");
        }
        for host in ["notacme.test", "acme.test.evil", "11.0.0.1", "192.168.1.70", "2001:db9::1", "github.com"] {
            assert!(way(&proxies, true, host).is_some(), "{host}");
        }
        let everything = [("https_proxy", "http://proxy:1"), ("no_proxy", "*")];
        assert_eq!(way(&super::tests::proxies(&everything), true, "github.com"), None);
    }

    #[test]
    fn a_password_is_decoded_and_never_shown() {
        let proxy = Proxy::parse("http://ci:p%40ss@proxy:8080/").expect("a proxy");
        assert_eq!(format!("{proxy:?} {:?}", proxy.authorization), "proxy:8080 Some(Sensitive)");
        let expected = format!("Basic {}", STANDARD.encode("ci:p@ss"));
        assert_eq!(proxy.authorization.expect("some").as_bytes(), expected.as_bytes());
        assert!(Proxy::parse("socks5://proxy:1").is_none() && Proxy::parse("https://proxy:1").is_none());
    }

    /// A proxy that gives this answer, then whatever comes through the tunnel back.
    async fn proxy(answer: &'static str) -> (Proxies, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            stream.write_all(answer.as_bytes()).await.expect("answered");
            let mut echo = [0; 4];
            if stream.read_exact(&mut echo).await.is_ok() {
                stream.write_all(&echo).await.expect("echoed");
            }
            String::from_utf8(head).expect("text").to_lowercase()
        });
        (proxies(&[("https_proxy", &format!("http://a:b@{address}"))]), serving)
    }

    #[tokio::test]
    async fn a_tunnel_leads_to_the_host_that_was_asked_for() {
        let (proxies, serving) = proxy("HTTP/1.1 200 Connection established\r\n\r\n").await;
        let mut stream = proxies.connect("gateway.test", 8443).await.expect("a tunnel");
        stream.write_all(b"ping").await.expect("sent");
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.expect("echoed");
        assert_eq!(&echo, b"ping");
        let head = serving.await.expect("served");
        assert!(head.starts_with("connect gateway.test:8443 http/1.1\r\n"), "{head}");
        assert!(head.contains("proxy-authorization: basic ytpi"), "{head}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_without_its_password() {
        let (proxies, _serving) =
            proxy("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        let error = proxies.connect("gateway.test", 8443).await.expect_err("refused").to_string();
        assert!(error.contains("407") && error.contains("gateway.test") && !error.contains("a:b"), "{error}");
    }
}
