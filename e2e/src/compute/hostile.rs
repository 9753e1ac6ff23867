//! Everything that can be made to go wrong, and events that no client causes.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::Value;

use super::{
    Cloud, Inner,
    identity::{IdentityError, SignedBy},
    state::{Command, Rate},
};
use crate::faults::Faults;

/// There is no such group or instance.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the simulated project has no {0}")]
pub struct Missing(pub String);

impl Cloud {
    /// Whether a zone is out of capacity.
    pub fn stockout(&self, zone: &str, out: bool) {
        let mut world = self.inner.world();
        if out {
            world.hostile.stockouts.insert(zone.to_owned());
        } else {
            world.hostile.stockouts.remove(zone);
        }
    }

    /// How many vCPUs a region may have; any number when absent.
    pub fn cpu_quota(&self, region: &str, limit: Option<u32>) {
        let mut world = self.inner.world();
        match limit {
            Some(limit) => world.hostile.cpu_quotas.insert(region.to_owned(), limit),
            None => world.hostile.cpu_quotas.remove(region),
        };
    }

    /// `listManagedInstances` shows what was true this long ago.
    pub fn stale_lists(&self, lag: Duration) {
        self.inner.world().hostile.lag = lag;
    }

    /// The next instances that boot never start anything.
    pub fn hung_boots(&self, count: u32) {
        self.inner.world().hostile.hung_boots = count;
    }

    /// Identity tokens are issued this many seconds ahead (or behind, when negative).
    pub fn clock_skew(&self, seconds: i64) {
        self.inner.skew.store(seconds, Ordering::Relaxed);
    }

    /// At most this many calls per window of wall-clock time (Google's is a minute), then 403.
    pub fn rate_limit(&self, limit: Option<(u32, Duration)>) {
        let rate = limit.map(|(calls, window)| Rate { calls, window, current: 0, used: 0 });
        self.inner.world().hostile.rate = rate;
    }

    /// Answers carry fields that nobody has heard of.
    pub fn unknown_fields(&self, on: bool) {
        self.inner.world().hostile.unknown_fields = on;
    }

    /// Merges this into an instance's list entry, e.g. `{"instanceStatus": "HIBERNATING"}`; null ends it.
    pub fn distort(&self, instance: &str, patch: Value) {
        let mut world = self.inner.world();
        if patch.is_null() {
            world.hostile.distortions.remove(instance);
        } else {
            world.hostile.distortions.insert(instance.to_owned(), patch);
        }
    }

    /// `listManagedInstances` answers in pages of this size, whatever was asked.
    pub fn forced_pages(&self, size: Option<usize>) {
        self.inner.world().hostile.page = size;
    }

    /// Whether an operation's `wait` returns at once, done or not.
    pub fn early_waits(&self, on: bool) {
        self.inner.world().hostile.early_waits = on;
    }

    /// Google takes the instance back: notice, grace, power-off.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn preempt(&self, instance: &str) -> Result<(), Missing> {
        self.inner.tell(instance, Command::Preempt)
    }

    /// The power fails.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn power_off(&self, instance: &str) -> Result<(), Missing> {
        self.inner.tell(instance, Command::PowerOff)
    }

    /// Somebody deletes the instance, not through its group.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn delete_elsewhere(&self, instance: &str) -> Result<(), Missing> {
        self.inner.tell(instance, Command::DeleteElsewhere)
    }

    /// The group makes the instance again: same name, new id, as a repair does.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn recreate_under_same_name(&self, instance: &str) -> Result<(), Missing> {
        self.inner.tell(instance, Command::Recreate)
    }

    /// Somebody else makes an instance in the group.
    ///
    /// # Errors
    /// When there is no such group, or its template is gone.
    pub fn create_foreign(&self, group: &str, instance: &str) -> Result<(), Missing> {
        {
            let mut world = self.inner.world();
            let key = world.group_named(group).ok_or_else(|| Missing(format!("group {group}")))?;
            let retries = self.inner.options.create_retries;
            world.add_vm(&key, instance, retries).map_err(|_error| Missing(format!("template for group {group}")))?;
        }
        self.inner.start_unborn();
        Ok(())
    }

    /// Sets a metadata attribute of a running instance.
    ///
    /// # Errors
    /// When there is no such running instance.
    pub fn set_attribute(&self, instance: &str, key: &str, value: &str) -> Result<(), Missing> {
        let world = self.inner.world();
        let metadata = world.vm(instance).and_then(|vm| vm.metadata.as_ref());
        let (metadata, _) = metadata.ok_or_else(|| Missing(format!("running instance {instance}")))?;
        metadata.set_attribute(key, value);
        Ok(())
    }

    /// What goes wrong with every instance's metadata server.
    #[must_use]
    pub fn metadata_faults(&self) -> &Faults {
        &self.inner.metadata_faults
    }

    /// The claims of a genuine full-format identity token, to be bent.
    ///
    /// # Errors
    /// When there is no such running instance, or it has no service account.
    pub fn identity_claims(&self, instance: &str, audience: &str) -> Result<Value, IdentityError> {
        let world = self.inner.world();
        let metadata = world.vm(instance).and_then(|vm| vm.metadata.as_ref());
        let claims = metadata.and_then(|(metadata, _)| metadata.claims(audience, true));
        claims.ok_or_else(|| IdentityError::NoInstance(instance.to_owned()))
    }

    /// Signs claims, genuinely or not.
    ///
    /// # Errors
    /// When signing fails.
    pub fn mint_identity_token(&self, claims: &Value, by: SignedBy) -> Result<String, IdentityError> {
        self.inner.identity.sign(claims, by)
    }

    /// New tokens are signed by a new key; the old one stays published.
    ///
    /// # Errors
    /// When no key can be generated.
    pub fn roll_identity_key(&self) -> Result<(), IdentityError> {
        self.inner.identity.roll_over()
    }
}

impl Inner {
    fn tell(&self, instance: &str, command: Command) -> Result<(), Missing> {
        let world = self.world();
        let vm = world.vm(instance).ok_or_else(|| Missing(format!("instance {instance}")))?;
        vm.tell(command);
        Ok(())
    }

    /// Whether this boot hangs; counts it.
    pub(crate) fn take_hung_boot(&self) -> bool {
        let mut world = self.world();
        let hangs = world.hostile.hung_boots > 0;
        world.hostile.hung_boots = world.hostile.hung_boots.saturating_sub(1);
        hangs
    }
}
