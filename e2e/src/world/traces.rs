//! What a world looks back at: everything that was ever made outside, and what is left of it.

use std::collections::BTreeMap;

use k8s_openapi::api::{coordination::v1::Lease, discovery::v1::EndpointSlice};
use kube::Api;

use miglet_operator::crd::Phase;

use super::{Patience, Trouble, World, service::SERVICE};

impl World {
    /// Waits until there are exactly this many of everything: idle RunnerVMs, instances, registrations. Returns the
    /// RunnerVMs' names.
    ///
    /// # Errors
    /// When it never was so: with the operators' logs.
    pub async fn settled(&self, count: usize) -> Result<Vec<String>, Trouble> {
        let good = |seen: &Result<Everywhere, kube::Error>| seen.as_ref().is_ok_and(|seen| seen.settled(count));
        let settled = Patience::default().until("the size, everywhere", || self.everywhere(), good).await;
        Ok(settled.map_err(|error| format!("{error}\n{}", self.operator_logs()))??.idle)
    }

    /// How many there are of everything, now.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn everywhere(&self) -> Result<Everywhere, kube::Error> {
        Ok(Everywhere {
            idle: self.in_phase(Phase::Idle).await?,
            vms: self.vms().await?.len(),
            instances: self.compute.all_instances().len(),
            registrations: self.github.runners().len(),
        })
    }

    /// What all running operators have logged.
    #[must_use]
    pub fn operator_logs(&self) -> String {
        self.operators.iter().map(|operator| format!("{}:\n{}\n", operator.pod(), operator.log())).collect()
    }

    /// Checks that nothing was ever made twice: one instance for a name, one used registration for a VM, and no runner
    /// name given out again.
    ///
    /// # Errors
    /// What was made twice.
    pub fn check_nothing_twice(&self) -> Result<(), Trouble> {
        let registered = self.github.registered();
        let vm_of = |name: &str| name.rsplit_once('-').map_or_else(String::new, |(vm, _)| vm.to_owned());
        let used = registered.iter().filter(|r| r.used).map(|r| vm_of(&r.name));
        let twice = |what: &str, names: &mut dyn Iterator<Item = String>| {
            let mut counts = BTreeMap::<String, usize>::new();
            names.for_each(|name| *counts.entry(name).or_default() += 1);
            let found: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 1).collect();
            if found.is_empty() { Ok(()) } else { Err(format!("{what}: {found:?}")) }
        };
        twice("instances made twice", &mut self.compute.created_names().into_iter())?;
        twice("runner names given out twice", &mut registered.iter().map(|r| r.name.clone()))?;
        twice("VMs with two used registrations", &mut { used })?;
        Ok(())
    }

    /// Checks that nothing is left: no instance, no registration, no RunnerVM.
    ///
    /// # Errors
    /// What is left.
    pub async fn check_nothing_left(&self) -> Result<(), Trouble> {
        let (instances, runners, vms) = (self.compute.all_instances(), self.github.runners(), self.vms().await?);
        if instances.is_empty() && runners.is_empty() && vms.is_empty() {
            return Ok(());
        }
        Err(format!("left: instances {instances:?}, registrations {runners:?}, {} RunnerVMs", vms.len()).into())
    }

    /// Who holds the Lease: the pod's name, a dash, and what tells its starts apart.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn lease_holder(&self) -> Result<Option<String>, kube::Error> {
        let lease = Api::<Lease>::namespaced(self.client.clone(), &self.system).get_opt("miglet-operator").await?;
        Ok(lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity))
    }

    /// Where the gateway's EndpointSlice sends agents.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn endpoints(&self) -> Result<Vec<String>, kube::Error> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &self.system);
        let endpoints = api.get_opt(SERVICE).await?.and_then(|slice| slice.endpoints).unwrap_or_default();
        Ok(endpoints.into_iter().flat_map(|endpoint| endpoint.addresses).collect())
    }
}

/// How many there are of everything.
#[derive(Clone, Debug)]
pub struct Everywhere {
    /// Names of idle RunnerVMs.
    pub idle: Vec<String>,
    vms: usize,
    instances: usize,
    registrations: usize,
}

impl Everywhere {
    /// Whether there are this many of each, all idle.
    #[must_use]
    pub fn settled(&self, count: usize) -> bool {
        [self.idle.len(), self.vms, self.instances, self.registrations] == [count; 4]
    }
}
