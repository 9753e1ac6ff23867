//! What scenarios wait for and hold on to, in the words a user would choose.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use kube::ResourceExt;
use miglet_operator::crd::{Phase, RunnerPool, RunnerVm};

use super::{LABELS, Patience, REPOSITORY, Trouble, World};
use crate::github::{Job, JobId, JobState};

/// A job that runs until it is let go.
#[derive(Debug)]
pub struct Held {
    /// At GitHub.
    pub id: JobId,
    /// The RunnerVM that runs it.
    pub vm: String,
    gate: PathBuf,
}

impl World {
    /// A job of the worlds' repository with these shell steps.
    #[must_use]
    pub fn job(steps: &str) -> Job {
        Job {
            repository: REPOSITORY.into(),
            workflow: "CI".into(),
            name: "build".into(),
            labels: LABELS.map(str::to_owned).to_vec(),
            steps: steps.into(),
            ..Job::default()
        }
    }

    /// Names of a pool's RunnerVMs in this phase that nobody wants gone.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn of_pool(&self, pool: &str, phase: Phase) -> Result<BTreeSet<String>, kube::Error> {
        let here = |vm: &RunnerVm| {
            vm.spec.pool.name == pool
                && vm.metadata.deletion_timestamp.is_none()
                && vm.status.as_ref().is_some_and(|status| status.phase == phase)
        };
        Ok(self.vms().await?.iter().filter(|vm| here(vm)).map(ResourceExt::name_any).collect())
    }

    /// Waits until a pool has exactly this many idle RunnerVMs, and returns their names.
    ///
    /// # Errors
    /// When it never had.
    pub async fn idle(&self, pool: &str, count: usize) -> Result<BTreeSet<String>, Trouble> {
        let what = format!("{count} idle runners of {pool}");
        let look = || self.of_pool(pool, Phase::Idle);
        Ok(Patience::default().until(&what, look, |idle| idle.as_ref().is_ok_and(|idle| idle.len() == count)).await??)
    }

    /// Waits until a condition of a pool has this status and reason, and returns its message.
    ///
    /// # Errors
    /// When it never had.
    pub async fn condition_is(&self, pool: &str, kind: &str, status: &str, reason: &str) -> Result<String, Trouble> {
        let what = format!("{kind}={status} ({reason}) of {pool}");
        let it_is = |found: &Result<Option<(String, String, String)>, kube::Error>| {
            found.as_ref().is_ok_and(|c| c.as_ref().is_some_and(|(s, r, _)| s == status && r == reason))
        };
        let found = Patience::default().until(&what, || self.condition(pool, kind), it_is).await??;
        Ok(found.map(|(_, _, message)| message).unwrap_or_default())
    }

    /// Waits for an event that contains all of these words.
    ///
    /// # Errors
    /// When there never was one.
    pub async fn event(&self, words: &[&str]) -> Result<String, Trouble> {
        let fits = |event: &&String| words.iter().all(|word| event.contains(word));
        let events = Patience::default()
            .until(
                &format!("an event with {words:?}"),
                || self.events(),
                |events| events.as_ref().is_ok_and(|events| events.iter().any(|event| fits(&event))),
            )
            .await??;
        Ok(events.iter().find(fits).cloned().unwrap_or_default())
    }

    /// Starts a job that runs until [`Self::let_go`], and waits until its RunnerVM shows it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn hold_job(&self) -> Result<Held, Trouble> {
        let gate = self.folder.path().join(format!("gate-{:08x}", rand::random::<u32>()));
        let steps = format!("while [ ! -e {} ]; do sleep 0.1; done; echo finished", gate.display());
        let id = self.github.queue_job(Self::job(&steps));
        let runner = async || self.github.job(id).and_then(|job| job.runner_name).unwrap_or_default();
        let runner = Patience::default().until("a runner for the job", runner, |name| !name.is_empty()).await?;
        let vm = runner.rsplit_once('-').map(|(vm, _)| vm.to_owned()).unwrap_or_default();
        let busy = |seen: &Result<Vec<String>, kube::Error>| seen.as_ref().is_ok_and(|busy| busy.contains(&vm));
        Patience::default().until("its VM to be busy", || self.in_phase(Phase::Busy), busy).await??;
        Ok(Held { id, vm, gate })
    }

    /// Lets a held job end, and waits for it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn let_go(&self, held: &Held) -> Result<JobState, Trouble> {
        std::fs::write(&held.gate, "")?;
        Ok(self.github.wait_job(held.id, Patience::default().0).await?)
    }

    /// Waits until a RunnerVM is gone.
    ///
    /// # Errors
    /// When it stays.
    pub async fn vm_gone(&self, name: &str) -> Result<(), Trouble> {
        let api = self.api::<RunnerVm>();
        let gone = |vm: &Result<Option<RunnerVm>, kube::Error>| vm.as_ref().is_ok_and(Option::is_none);
        Patience::default().until(&format!("RunnerVM {name} to go"), || api.get_opt(name), gone).await??;
        Ok(())
    }

    /// Waits until a pool is gone.
    ///
    /// # Errors
    /// When it stays.
    pub async fn pool_gone(&self, name: &str) -> Result<(), Trouble> {
        let api = self.api::<RunnerPool>();
        let gone = |pool: &Result<Option<RunnerPool>, kube::Error>| pool.as_ref().is_ok_and(Option::is_none);
        Patience::default().until(&format!("pool {name} to go"), || api.get_opt(name), gone).await??;
        Ok(())
    }

    /// What must not disappear: living RunnerVMs, instances that nobody deletes, registrations.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn fleet(&self) -> Result<Fleet, kube::Error> {
        let vms = self.vms().await?;
        let living = vms.iter().filter(|vm| vm.metadata.deletion_timestamp.is_none());
        let running = self.compute.all_instances().into_iter().filter(|i| i.action == "NONE");
        Ok(Fleet {
            vms: living.map(ResourceExt::name_any).collect(),
            instances: running.filter_map(|instance| instance.id).collect(),
            runners: self.github.runners().into_iter().map(|runner| runner.id).collect(),
        })
    }

    /// Watches for a while that nothing of `before` is deleted.
    ///
    /// # Errors
    /// When something is, or the API server does not answer.
    pub async fn holds(&self, before: &Fleet, time: Duration) -> Result<(), Trouble> {
        let start = tokio::time::Instant::now();
        while start.elapsed() < time {
            let now = self.fleet().await?;
            if !before.is_in(&now) {
                return Err(format!("something was deleted: {before:?} became {now:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// What must not disappear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// RunnerVMs.
    pub vms: BTreeSet<String>,
    /// Ids of instances.
    pub instances: BTreeSet<u64>,
    /// Ids of registrations.
    pub runners: BTreeSet<u64>,
}

impl Fleet {
    fn is_in(&self, other: &Self) -> bool {
        self.vms.is_subset(&other.vms)
            && self.instances.is_subset(&other.instances)
            && self.runners.is_subset(&other.runners)
    }
}
