//! Names that others rely on: API group, labels, annotations, finalizers, field managers, and the names of VMs.

use aws_lc_rs::digest;

/// API group and prefix of every label and annotation.
pub const GROUP: &str = "miglet.dev";
/// Label of a RunnerVM: the name of its pool. Also what the pool's selector selects by.
pub const POOL_LABEL: &str = "miglet.dev/pool";
/// Finalizer of RunnerPools: the fleet is taken down before the pool goes.
pub const POOL_FINALIZER: &str = "miglet.dev/pool";
/// Finalizer of RunnerVMs: registration and instance are gone before the object goes.
pub const VM_FINALIZER: &str = "miglet.dev/instance";
/// Annotation on a RunnerVM: do not wait for the job, clean up now. Its value is free text, shown as the reason.
pub const TERMINATE_NOW: &str = "miglet.dev/terminate-now";
/// Annotation on a RunnerVM: what its agent logs while the annotation is there.
pub const LOG_LEVEL: &str = "miglet.dev/log-level";
/// Annotation on a RunnerVM: collect diagnostics once for each value, into the ConfigMap `<vm>-diagnostics-<value>`.
pub const COLLECT_DIAGNOSTICS: &str = "miglet.dev/collect-diagnostics";
/// Field manager of the pool controller.
pub const POOL_MANAGER: &str = "miglet-operator/pool";
/// Field manager of the VM controller.
pub const VM_MANAGER: &str = "miglet-operator/vm";
/// Field manager of the gateway.
pub const GATEWAY_MANAGER: &str = "miglet-operator/gateway";
/// Name events are reported under.
pub const REPORTER: &str = "miglet.dev/operator";

/// Letters of generated name parts: no vowels and no look-alikes, so that no words and no doubts appear.
const ALPHABET: &[u8; 26] = b"bcdfghjkmnpqrstvwxz2345679";
const POOL_PART: usize = 40;
const HASH_PART: usize = 6;

/// What every name of a pool's VMs, instances and runners starts with: `<pool, at most 40>-<6 of hash(uid)>-`.
///
/// The hash proves ownership where one group or organisation is shared by namespaces or clusters.
#[must_use]
pub fn vm_prefix(pool: &str, pool_uid: &str) -> String {
    let cut: String = pool.chars().take(POOL_PART).collect();
    format!("{}-{}-", cut.trim_end_matches('-'), pool_hash(pool_uid))
}

/// The name of a VM, its instance and (with an attempt behind it) its runner: RFC 1035, at most 63, never reused.
#[must_use]
pub fn vm_name(pool: &str, pool_uid: &str, random: u64) -> String {
    format!("{}{}", vm_prefix(pool, pool_uid), letters(random.to_be_bytes()))
}

/// The name under which attempt `attempt` of a VM registers: fresh for every request to GitHub.
#[must_use]
pub fn runner_name(vm: &str, attempt: i32) -> String {
    format!("{vm}-{attempt}")
}

fn pool_hash(pool_uid: &str) -> String {
    let digest = digest::digest(&digest::SHA256, pool_uid.as_bytes());
    let mut bytes = [0_u8; HASH_PART];
    bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    letters(bytes)
}

fn letters<const N: usize>(bytes: [u8; N]) -> String {
    bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(*byte) % ALPHABET.len())).map(|b| char::from(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_name_is_a_valid_instance_name_however_long_the_pools_is() {
        let name = vm_name(&format!("{}-x", "a".repeat(39)), "3d1c3f0e-uid", u64::MAX);
        assert!(name.len() <= 63 - 3, "{name} leaves no room for a runner's attempt");
        assert!(name.starts_with(&vm_prefix(&format!("{}-x", "a".repeat(39)), "3d1c3f0e-uid")));
        assert!(!name.contains("--"), "{name}");
    }

    #[test]
    fn two_pools_of_one_name_own_different_names() {
        assert_ne!(vm_prefix("linux", "uid-a"), vm_prefix("linux", "uid-b"));
    }
}
