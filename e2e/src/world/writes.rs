//! What the operator changed, in Kubernetes, at Google and at GitHub; and kubectl as a user of the world types it.

use super::{Trouble, World};
use crate::control_plane::AuditEntry;

impl World {
    /// Everything the operators asked the API server to change so far. The Lease is apart: it is renewed for ever.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn writes(&self) -> Result<Vec<AuditEntry>, Trouble> {
        let operator = format!("system:serviceaccount:{}:miglet-operator", self.system);
        let ours = |call: &AuditEntry| call.user == operator && call.is_write() && call.resource != "leases";
        Ok(self.plane.audit()?.into_iter().filter(ours).collect())
    }

    /// Calls so far that asked Google to change something: `METHOD path`.
    #[must_use]
    pub fn compute_changes(&self) -> Vec<String> {
        let calls = self.compute.server().traffic.all();
        // Listing a group's members is a POST.
        let changes = calls.iter().filter(|call| {
            call.method != "GET" && call.path.contains("/compute/v1/") && !call.path.contains("/listManagedInstances")
        });
        changes.map(|call| format!("{} {}", call.method, call.path)).collect()
    }

    /// Calls so far that asked GitHub to change something: `METHOD path`. What runners say to it is theirs.
    #[must_use]
    pub fn github_changes(&self) -> Vec<String> {
        let calls = self.github.server().traffic.all();
        let ours = |path: &str| !path.starts_with("/_runner/") && !path.starts_with("/_fake/");
        let changes = calls.iter().filter(|call| call.method != "GET" && ours(&call.path));
        changes.map(|call| format!("{} {}", call.method, call.path)).collect()
    }

    /// Runs kubectl in the pools' namespace and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String, Trouble> {
        Ok(self.plane.kubectl(&[args, &["--namespace", &self.namespace]].concat()).await?)
    }
}
