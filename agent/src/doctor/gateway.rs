//! The way to the operator.

use std::{io, time::Duration};

use tokio::{net::lookup_host, time::timeout};

use super::Finding;
use crate::{error::in_full, key::AgentKey, settings::Settings, tls::Dialer};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the gateway's name leads anywhere.
pub(super) async fn name(settings: &Settings) -> Finding {
    const ADVICE: &str = "correct the endpoint, or the DNS servers of the network: `resolvectl query NAME`";
    let found = timeout(TIMEOUT, lookup_host((settings.host.as_str(), settings.port))).await;
    match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(addresses) => {
            let addresses: Vec<_> = addresses.map(|address| address.ip().to_string()).collect();
            Finding::ok("dns", format!("{} is {}", settings.host, addresses.join(", ")))
        }
        Err(error) => Finding::failure("dns", format!("{}: {}", settings.host, in_full(&error)), ADVICE),
    }
}

/// Whether the gateway answers and is who it should be. With a key made for this: the agent's own is none of ours.
pub(super) async fn tls(settings: &Settings) -> Finding {
    let gateway = format!("{}:{}", settings.host, settings.port);
    let dialer = match AgentKey::ephemeral().map(|key| Dialer::new(settings, &key)) {
        Ok(Ok(dialer)) => dialer,
        Ok(Err(error)) => return Finding::failure("tls", in_full(&error), "correct the endpoint and the CA"),
        Err(error) => return Finding::failure("tls", in_full(&error), "report this: no key can be made here"),
    };
    match dialer.dial().await {
        Ok(_) => Finding::ok("tls", format!("{gateway} is the operator's gateway")),
        Err(error) => Finding::failure("tls", format!("{gateway}: {}", in_full(&error)), advice(error.kind())),
    }
}

fn advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        // What rustls refuses.
        io::ErrorKind::InvalidData => {
            "compare the CA in the settings, and the names and dates in the gateway's certificate"
        }
        io::ErrorKind::ConnectionRefused => "check that the operator runs and the endpoint's port is its gateway's",
        _ => {
            "open the gateway's port for this network (or see to the proxy in /etc/miglet/environment), and check that the operator runs"
        }
    }
}
