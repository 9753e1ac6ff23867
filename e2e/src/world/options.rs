//! What a world can differ in.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{GROUP, Intervals, ZONE};
use crate::{
    compute::{Delays, GroupSpec, Machines},
    control_plane::ControlPlane,
    github::GithubOptions,
};

/// What a world is made of.
pub struct WorldOptions {
    /// Namespaces of the pools and of the operator; new ones when absent.
    pub namespaces: Option<(String, String)>,
    /// Intervals of the operator.
    pub intervals: Intervals,
    /// How long the cloud takes.
    pub delays: Delays,
    /// GitHub's times.
    pub github: GithubOptions,
    /// Machines; local processes with the real agent when absent.
    pub machines: Option<Arc<dyn Machines>>,
    /// Whether requests and responses are checked against the published descriptions.
    pub checked: bool,
    /// Whether the operator runs from the start.
    pub operator: bool,
    /// Settings of the first group that differ from harmless ones.
    pub group: GroupSpec,
    /// Further environment of the agents.
    pub agent_environment: BTreeMap<String, String>,
    /// Which control plane, and how much of it the operator watches.
    pub plane: Plane,
}

/// Which control plane a world is in.
#[derive(Clone, Copy, Default)]
pub enum Plane {
    /// The one all worlds of this process share; the operator watches the world's namespace.
    #[default]
    Shared,
    /// One of its own; the operator watches every namespace.
    Own,
    /// Somebody's cluster; the operator watches the world's namespace.
    Given(&'static ControlPlane),
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            namespaces: None,
            intervals: Intervals::default(),
            delays: Delays::default(),
            github: GithubOptions {
                poll: Duration::from_secs(1),
                lost_after: Duration::from_secs(3),
                ..GithubOptions::default()
            },
            machines: None,
            checked: true,
            operator: true,
            group: GroupSpec::zonal(GROUP, ZONE),
            agent_environment: BTreeMap::new(),
            plane: Plane::Shared,
        }
    }
}
