//! Runner.Worker: one job. Started hook, the steps, completed hook; one JSON line on stdout at the end.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::watch,
};
use uuid::Uuid;

use super::{
    exit,
    steps::{End, Shell, Tail},
    wire::{Conclusion, JobFault, Order, Outcome},
};

/// What the listener sends first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) order: Order,
    /// Name of the runner.
    pub(super) runner: String,
    /// The work folder.
    pub(super) folder: PathBuf,
}

/// What the listener may say later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orders {
    /// A user cancelled the job.
    Cancel,
    /// The runner is going down.
    Shutdown,
    /// The listener is no more.
    Orphaned,
}

impl Orders {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Shutdown => "shutdown",
            Self::Orphaned => "orphaned",
        }
    }
}

/// Runs the job the listener sends; the exit code.
pub(super) async fn run(_root: &Path) -> u8 {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let first = orders.next_line().await.ok().flatten();
    let Some(work) = first.and_then(|line| serde_json::from_str::<Work>(&line).ok()) else { return exit::TERMINATED };
    let (sender, stop) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let order = match orders.next_line().await.ok().flatten().as_deref() {
                Some("cancel") => Orders::Cancel,
                Some(_) => Orders::Shutdown,
                None => Orders::Orphaned,
            };
            if sender.send(Some(order)).is_err() || order == Orders::Orphaned {
                return;
            }
        }
    });
    let Some(outcome) = Job::new(work, stop).run().await else { return exit::TERMINATED };
    super::terminal::line(&serde_json::to_string(&outcome).unwrap_or_default());
    exit::HOSTED + outcome.conclusion.number()
}

/// A job on its way.
struct Job {
    work: Work,
    shell: Shell,
    tracking: String,
}

impl Job {
    fn new(work: Work, stop: watch::Receiver<Option<Orders>>) -> Self {
        let repository = work.order.repository.rsplit('/').next().unwrap_or_default();
        let workspace = work.folder.join(repository).join(repository);
        let tracking = format!("github_{}", Uuid::new_v4());
        let environment = environment(&work, &workspace, &tracking);
        Self { work, shell: Shell { environment, workspace, stop, output: Tail::default() }, tracking }
    }

    /// `None` when nobody is left to be told.
    async fn run(mut self) -> Option<Outcome> {
        let end = match self.prepare() {
            Ok(script) => self.sequence(&script).await,
            Err(error) => {
                self.shell.output.add(format!("could not prepare the job: {error}\n").as_bytes());
                End::Failed
            }
        };
        self.shell.clean_up(&self.tracking).await;
        let conclusion = match end {
            End::Succeeded => Conclusion::Succeeded,
            End::Failed | End::Stopped(Orders::Shutdown) => Conclusion::Failed,
            End::Stopped(Orders::Cancel) => Conclusion::Canceled,
            End::Stopped(Orders::Orphaned) => return None,
        };
        Some(Outcome { conclusion, output: self.shell.output.text() })
    }

    /// The completed hook is always run, except when the runner goes down.
    async fn sequence(&mut self, script: &Path) -> End {
        let mut end = self.hook("ACTIONS_RUNNER_HOOK_JOB_STARTED").await;
        if end == End::Succeeded {
            end = self.steps(script).await;
        }
        if !matches!(end, End::Stopped(Orders::Shutdown | Orders::Orphaned)) {
            self.shell.forget_cancel();
            let last = self.hook("ACTIONS_RUNNER_HOOK_JOB_COMPLETED").await;
            if end == End::Succeeded {
                end = last;
            }
        }
        end
    }

    async fn steps(&mut self, script: &Path) -> End {
        let crash = self.work.order.fault == Some(JobFault::WorkerCrash);
        let end = self.shell.run(script).await;
        if crash {
            // As a crash in the middle would: the steps had their effect, nobody reports it.
            self.shell.clean_up(&self.tracking).await;
            std::process::abort();
        }
        end
    }

    async fn hook(&mut self, variable: &str) -> End {
        let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) else {
            return End::Succeeded;
        };
        if path.extension().is_none_or(|e| e != "sh") || !path.is_file() {
            self.shell
                .output
                .add(format!("{variable}: {} is not a script that can be run\n", path.display()).as_bytes());
            return End::Failed;
        }
        self.shell.run(&path).await
    }

    /// Makes the folders, the event file and the script of the steps.
    fn prepare(&self) -> io::Result<PathBuf> {
        let temp = self.work.folder.join("_temp");
        fs::create_dir_all(&self.shell.workspace)?;
        fs::create_dir_all(temp.join("_github_workflow"))?;
        let order = &self.work.order;
        let event = json!({"repository": {"full_name": order.repository, "id": order.repository_id}});
        fs::write(temp.join("_github_workflow/event.json"), event.to_string())?;
        let script = temp.join(format!("{}.sh", Uuid::new_v4()));
        fs::write(&script, &order.steps)?;
        Ok(script)
    }
}

/// What hooks and steps see.
fn environment(work: &Work, workspace: &Path, tracking: &str) -> Vec<(&'static str, String)> {
    let (order, show) = (&work.order, |path: PathBuf| path.display().to_string());
    let server = order.api_url.clone();
    let owner = order.repository.split('/').next().unwrap_or_default().to_owned();
    let reference = format!("{}/.github/workflows/{}.yml@refs/heads/main", order.repository, order.workflow);
    let sha = "0123456789abcdef0123456789abcdef01234567".to_owned();
    let temp = work.folder.join("_temp");
    vec![
        ("CI", "true".to_owned()),
        ("GITHUB_ACTIONS", "true".to_owned()),
        ("GITHUB_ACTOR", "octocat".to_owned()),
        ("GITHUB_API_URL", server.clone()),
        ("GITHUB_SERVER_URL", server),
        ("GITHUB_EVENT_NAME", "push".to_owned()),
        ("GITHUB_EVENT_PATH", show(temp.join("_github_workflow/event.json"))),
        ("GITHUB_JOB", order.key.clone()),
        ("GITHUB_REF", "refs/heads/main".to_owned()),
        ("GITHUB_REPOSITORY", order.repository.clone()),
        ("GITHUB_REPOSITORY_ID", order.repository_id.to_string()),
        ("GITHUB_REPOSITORY_OWNER", owner),
        ("GITHUB_RUN_ATTEMPT", "1".to_owned()),
        ("GITHUB_RUN_ID", order.run_id.to_string()),
        ("GITHUB_RUN_NUMBER", order.id.to_string()),
        ("GITHUB_SHA", sha.clone()),
        ("GITHUB_WORKFLOW", order.workflow.clone()),
        ("GITHUB_WORKFLOW_REF", reference),
        ("GITHUB_WORKFLOW_SHA", sha),
        ("GITHUB_WORKSPACE", workspace.display().to_string()),
        ("RUNNER_ARCH", if cfg!(target_arch = "aarch64") { "ARM64" } else { "X64" }.to_owned()),
        ("RUNNER_ENVIRONMENT", "self-hosted".to_owned()),
        ("RUNNER_NAME", work.runner.clone()),
        ("RUNNER_OS", "Linux".to_owned()),
        ("RUNNER_TEMP", show(temp)),
        ("RUNNER_TOOL_CACHE", show(work.folder.join("_tool"))),
        ("RUNNER_TRACKING_ID", tracking.to_owned()),
        ("RUNNER_WORKSPACE", workspace.parent().unwrap_or(workspace).display().to_string()),
    ]
}
