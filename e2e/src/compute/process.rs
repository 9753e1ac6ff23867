//! An instance as a local process: the real agent, supervised the way the packaged unit does it.
//!
//! A machine is everything that carries its `MIGLET_STATE_DIR` in its environment, and the descendants of those: jobs
//! and the agent's shim leave the process group and the session, but not their environment. Cutting the power walks
//! /proc and kills until nothing is left. An agent that ends with success switched the machine off; any other end
//! is a crash, and the agent is started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::machines::{Boot, Inert, Machine, Machines};

/// Lays out the runner's folder before the agent starts.
pub type Prepare = Arc<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// Between two starts of a crashed agent.
const RESTART: Duration = Duration::from_millis(100);
/// Between two looks at a dying machine.
const LOOK: Duration = Duration::from_millis(5);
/// Looks before giving up on a process that cannot die (stuck in the kernel).
const LOOKS: u32 = 1000;

/// The command every machine runs.
#[derive(Clone)]
pub struct Agent {
    /// Program, e.g. the agent's binary.
    pub program: PathBuf,
    /// Arguments, e.g. `run`.
    pub arguments: Vec<String>,
    /// What a shutdown calls before it ends the agent, as the runner's unit does, e.g. `drain --deadline 10`; nothing
    /// where empty.
    pub stop: Vec<String>,
    /// Further environment.
    pub environment: BTreeMap<String, String>,
    /// Fills the runner's folder.
    pub prepare: Prepare,
}

/// Machines that are local processes.
pub struct ProcessMachines {
    agent: Agent,
    root: TempDir,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    closed: bool,
    booted: u64,
    machines: BTreeMap<String, Place>,
}

#[derive(Clone)]
struct Place {
    directory: PathBuf,
    agent: Option<u32>,
}

impl ProcessMachines {
    /// Machines that run this agent.
    ///
    /// # Errors
    /// When there is no place for their files.
    pub fn new(agent: Agent) -> io::Result<Self> {
        // Short, because sockets live below it and their paths are bounded.
        let root = tempfile::Builder::new().prefix("mvm").tempdir()?;
        Ok(Self { agent, root, running: Arc::default() })
    }

    /// The files of the machine an instance booted as last: `run`, `runner`, `data`, `console.log`.
    #[must_use]
    pub fn directory(&self, instance: &str) -> Option<PathBuf> {
        lock(&self.running).machines.get(instance).map(|place| place.directory.clone())
    }

    /// The process id of the agent on an instance.
    #[must_use]
    pub fn agent_pid(&self, instance: &str) -> Option<u32> {
        lock(&self.running).machines.get(instance).and_then(|place| place.agent)
    }

    /// Makes a machine's folders; what the runner needs may take a while to lay out.
    async fn place(&self, instance: &str) -> io::Result<PathBuf> {
        let number = {
            let mut running = lock(&self.running);
            running.booted += 1;
            running.booted
        };
        let directory = self.root.path().join(number.to_string());
        let (prepare, folders) = (Arc::clone(&self.agent.prepare), directory.clone());
        tokio::task::spawn_blocking(move || {
            for folder in ["run", "runner", "data", "home", "tmp"] {
                fs::create_dir_all(folders.join(folder))?;
            }
            prepare(&folders.join("runner"))
        })
        .await??;
        let place = Place { directory: directory.clone(), agent: None };
        lock(&self.running).machines.insert(instance.to_owned(), place);
        Ok(directory)
    }
}

#[async_trait]
impl Machines for ProcessMachines {
    async fn boot(&self, vm: Boot) -> Box<dyn Machine> {
        let started = self.place(&vm.name).await.and_then(|directory| {
            let (agent, running) = (self.agent.clone(), Arc::clone(&self.running));
            let mut machine = ProcessMachine { agent, vm: vm.clone(), directory, running, child: None, dead: false };
            machine.start()?;
            Ok(machine)
        });
        match started {
            Ok(machine) => Box::new(machine),
            Err(error) => {
                tracing::error!(instance = vm.name, %error, "the machine does not boot");
                Box::new(Inert)
            }
        }
    }

    fn power_off_all(&self) {
        lock(&self.running).closed = true;
        kill_all(self.root.path());
        // Here rather than on drop: the lives that still hold this may outlast the process.
        drop(fs::remove_dir_all(self.root.path()));
    }
}

impl Drop for ProcessMachines {
    fn drop(&mut self) {
        self.power_off_all();
    }
}

struct ProcessMachine {
    agent: Agent,
    vm: Boot,
    directory: PathBuf,
    running: Arc<Mutex<Running>>,
    child: Option<Child>,
    /// The power is cut, and nothing can have come to life since.
    dead: bool,
}

impl ProcessMachine {
    /// Starts the agent. Under the lock, so that nothing starts once the power of all is cut.
    fn start(&mut self) -> io::Result<()> {
        let mut command = self.command(&self.agent.arguments)?;
        let mut running = lock(&self.running);
        if running.closed {
            return Err(io::Error::other("the machines are switched off for good"));
        }
        let child = command.spawn()?;
        if let Some(place) = running.machines.get_mut(&self.vm.name) {
            place.agent = child.id();
        }
        self.child = Some(child);
        Ok(())
    }

    fn command(&self, arguments: &[String]) -> io::Result<Command> {
        let console = fs::OpenOptions::new().create(true).append(true).open(self.console_file())?;
        let path = |name: &str| self.directory.join(name);
        let mut command = Command::new(&self.agent.program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", path("home"))
            .env("TMPDIR", path("tmp"))
            .env("GCE_METADATA_HOST", self.vm.metadata_host.to_string())
            .env("MIGLET_STATE_DIR", path("run"))
            .env("MIGLET_RUNNER_DIR", path("runner"))
            .env("MIGLET_DATA_DIR", path("data"))
            .env("MIGLET_MACHINE", "process")
            .envs(&self.agent.environment)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .process_group(0);
        Ok(command)
    }

    fn console_file(&self) -> PathBuf {
        self.directory.join("console.log")
    }
}

#[async_trait]
impl Machine for ProcessMachine {
    /// As the service manager: the runner's unit is stopped first, then the agent. Takes its time in the background,
    /// which the power does not wait for.
    async fn soft_off(&mut self) {
        let pid = self.child.as_ref().and_then(Child::id);
        let agent = pid.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let stop = (!self.agent.stop.is_empty()).then(|| self.command(&self.agent.stop)?.kill_on_drop(true).spawn());
        let directory = self.directory.clone();
        tokio::spawn(async move {
            match stop {
                Some(Ok(mut stop)) => drop(stop.wait().await),
                Some(Err(error)) => tracing::error!(%error, "the shutdown's command does not start"),
                None => {}
            }
            // It may have ended by itself in the meantime.
            if let Some(agent) = agent.filter(|agent| lives_in(agent.as_raw_nonzero().get(), &directory)) {
                kill_process(agent, Signal::TERM).unwrap_or_default();
            }
        });
    }

    async fn power_off(&mut self) {
        let directory = self.directory.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || kill_all(&directory)).await {
            tracing::error!(instance = self.vm.name, %error, "the machine's power was not cut");
            return;
        }
        self.dead = true;
        self.reap();
    }

    async fn exited(&mut self) {
        loop {
            let Some(child) = self.child.as_mut() else { return std::future::pending().await };
            match child.wait().await {
                Ok(status) if status.success() => return,
                ended => tracing::warn!(instance = self.vm.name, ?ended, "the agent crashed and is started again"),
            }
            tokio::time::sleep(RESTART).await;
            if let Err(error) = self.start() {
                tracing::error!(instance = self.vm.name, %error, "the agent does not start again");
                return std::future::pending().await;
            }
        }
    }

    fn console(&self) -> Option<PathBuf> {
        Some(self.console_file())
    }
}

impl ProcessMachine {
    fn reap(&mut self) {
        if let Some(child) = &mut self.child {
            // Only to leave no zombie; how it ended is known.
            drop(child.try_wait());
        }
    }
}

impl Drop for ProcessMachine {
    fn drop(&mut self) {
        // Cutting the power of all has looked at every process there is, once for all machines.
        if !self.dead && !lock(&self.running).closed {
            kill_all(&self.directory);
        }
        self.reap();
        // What lies in a temporary folder goes with it at the latest.
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// Kills everything that lives below this directory; blocks, briefly.
fn kill_all(directory: &Path) {
    for _ in 0..LOOKS {
        if kill_once(directory) == 0 {
            return;
        }
        std::thread::sleep(LOOK);
    }
    tracing::error!(directory = %directory.display(), "processes survive SIGKILL");
}

/// Kills what is alive now and says how many that were.
fn kill_once(directory: &Path) -> usize {
    let doomed = inhabitants(directory);
    for pid in doomed.iter().filter_map(|&pid| Pid::from_raw(pid)) {
        // Gone already is as good.
        kill_process(pid, Signal::KILL).unwrap_or_default();
    }
    doomed.len()
}

/// Processes whose state folder is at or below this directory, and all their descendants.
fn inhabitants(directory: &Path) -> BTreeSet<i32> {
    let mut parents = BTreeMap::new();
    let mut found = BTreeSet::new();
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| numeric(&entry.file_name())) {
        let Some(parent) = living_parent(pid) else { continue };
        parents.insert(pid, parent);
        if lives_in(pid, directory) {
            found.insert(pid);
        }
    }
    loop {
        let children = parents.iter().filter(|(pid, parent)| found.contains(parent) && !found.contains(pid));
        let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
        if children.is_empty() {
            return found;
        }
        found.extend(children);
    }
}

fn numeric(name: &OsStr) -> Option<i32> {
    name.to_str()?.parse().ok()
}

/// The parent of a process that is not a zombie.
fn living_parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, so count from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.next()?.parse().ok()).flatten()
}

fn lives_in(pid: i32, directory: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| entry.strip_prefix(b"MIGLET_STATE_DIR="))
        .any(|value| Path::new(OsStr::from_bytes(value)).starts_with(directory))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
