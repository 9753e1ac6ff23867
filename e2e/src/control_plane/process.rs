//! A child process that never outlives this one, however this one ends.
//!
//! Destructors do not run for statics, nor when a test binary is killed. So every child comes with a watcher: a shell
//! in the child's process group that reads a pipe whose other end only we hold. The pipe's end of file is the kernel's
//! word that we are gone; the watcher then kills the child and removes the folder it worked in.
//!
//! ```text
//!   this process --pipe--> sh (watcher)     end of file: kill -KILL child, rm -rf folder
//!              \---------> child            same process group, group id = child's pid
//! ```
//!
//! A parent-death signal would be shorter, but it fires when the *thread* that forked ends, and test threads end.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// Starts the watcher, then becomes the program. The group stays reserved as long as the watcher is in it, so the pid
/// it kills cannot have become somebody else's.
const WATCHED: &str = r#"
folder=$1; shift
exec 3<&0
(
  while read -r _ <&3; do :; done
  kill -KILL $$ 2>/dev/null
  [ -z "$folder" ] && exit
  for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$folder" 2>/dev/null && exit; sleep 0.1; done
) >/dev/null 2>&1 &
exec 3<&-
exec "$@" </dev/null
"#;

/// How much of a log an error quotes.
const TAIL_BYTES: u64 = 4096;

/// A running child; killed when dropped, and when this process ends in any way.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Runs `command` with its output in the file `log`. When this process dies before it drops the value, `folder` is
    /// removed as well.
    ///
    /// # Errors
    /// When the log cannot be made or `sh` cannot be run. A program that does not exist shows as exit status 127.
    pub fn spawn(command: &Command, log: &Path, folder: Option<&Path>) -> io::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let mut watched = Command::new("sh");
        watched.arg("-c").arg(WATCHED).arg("sh").arg(folder.unwrap_or(Path::new("")));
        watched.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => watched.env(name, value),
                None => watched.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            watched.current_dir(directory);
        }
        watched.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output).process_group(0);
        Ok(Self { child: watched.spawn()?, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, once it did.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Fails only when nothing is left in the group.
            kill_process_group(group, Signal::KILL).ok();
        }
        drop(self.child.wait());
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
