//! What an instance boots as: the port between the simulated cloud and whatever plays the machine.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use async_trait::async_trait;

/// An instance that has just been switched on.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Instance name.
    pub name: String,
    /// Numeric instance id.
    pub id: u64,
    /// Zone.
    pub zone: String,
    /// Project id.
    pub project: String,
    /// Group it belongs to.
    pub group: String,
    /// Its own metadata server.
    pub metadata_host: SocketAddr,
    /// Its metadata attributes.
    pub attributes: BTreeMap<String, String>,
}

/// Boots machines.
#[async_trait]
pub trait Machines: Send + Sync {
    /// Boots one. A machine that cannot boot is one that never does anything.
    async fn boot(&self, vm: Boot) -> Box<dyn Machine>;

    /// Cuts the power of every machine, at once and for good: nothing boots after this.
    fn power_off_all(&self) {}

    /// The address by which a machine reaches what listens on this host's loopback.
    fn host(&self) -> &'static str {
        "127.0.0.1"
    }
}

/// A machine that was booted; dropping it cuts its power.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Presses the power button: software may react, or not.
    async fn soft_off(&mut self) {}

    /// Cuts the power and waits until everything on it is dead.
    async fn power_off(&mut self);

    /// Returns when the machine switched itself off. Cancel-safe.
    async fn exited(&mut self);

    /// Where its serial console is recorded.
    fn console(&self) -> Option<PathBuf> {
        None
    }
}

/// Nothing boots: an instance only becomes RUNNING.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMachines;

#[async_trait]
impl Machines for NoMachines {
    async fn boot(&self, _vm: Boot) -> Box<dyn Machine> {
        Box::new(Inert)
    }
}

/// A machine on which nothing ever happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inert;

#[async_trait]
impl Machine for Inert {
    async fn power_off(&mut self) {}

    async fn exited(&mut self) {
        std::future::pending().await
    }
}
