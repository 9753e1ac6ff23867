//! The scripts the runner calls around a job: ours, and around it the user's own.
//!
//! The runner knows one script an event. So ours takes that place and calls the user's, as the runner would have: with
//! its output in the job's log, in the job's directory, its exit code deciding over the job. Before the job ours comes
//! first, so that the job has a name even when the user's script refuses it; after the job it comes last.
//!
//! The user's script is what the settings say, else `ACTIONS_RUNNER_HOOK_JOB_*` of the runner's `.env`, else of the
//! agent's environment. The runner lets `.env` override its environment; the two lines are taken out of it, or ours
//! would never be called.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Event;
use crate::paths::{Paths, make_dir};

/// The user's own scripts that the settings name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scripts {
    /// Before the job's first step.
    pub job_started: Option<PathBuf>,
    /// After its last.
    pub job_completed: Option<PathBuf>,
}

impl Scripts {
    fn of(&self, event: Event) -> Option<&PathBuf> {
        match event {
            Event::JobStarted => self.job_started.as_ref(),
            Event::JobCompleted => self.job_completed.as_ref(),
        }
    }

    fn set(&mut self, event: Event, path: PathBuf) {
        match event {
            Event::JobStarted => self.job_started = Some(path),
            Event::JobCompleted => self.job_completed = Some(path),
        }
    }
}

/// Writes the scripts; the runner's user must be able to read them.
///
/// # Errors
/// When a file cannot be read or written.
pub fn install(paths: &Paths, program: &Path, given: &Scripts) -> io::Result<()> {
    make_dir(&paths.data, 0o755)?;
    let of_image = take_from_env(&paths.runner.join(".env"))?;
    for event in Event::ALL {
        let inherited = || std::env::var_os(event.runner_variable()).filter(|path| !path.is_empty()).map(PathBuf::from);
        let users = given.of(event).or_else(|| of_image.of(event)).cloned().or_else(inherited);
        let path = paths.hook_script(event.name());
        let users = users.filter(|users| *users != path);
        std::fs::write(&path, script((program, &paths.hook_socket()), event, users.as_deref(), &paths.runner))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Takes the hooks' lines out of the runner's `.env`; the file keeps its owner and mode.
fn take_from_env(path: &Path) -> io::Result<Scripts> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Scripts::default()),
        other => other?,
    };
    let (scripts, rest) = split(&text);
    if rest != text {
        std::fs::write(path, rest)?;
    }
    Ok(scripts)
}

/// What an `.env` says about hooks, and the rest of it. The last line of a name counts, as in the runner.
fn split(text: &str) -> (Scripts, String) {
    let (mut scripts, mut rest) = (Scripts::default(), String::new());
    for line in text.split_inclusive('\n') {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        match Event::ALL.into_iter().find(|event| event.runner_variable() == name) {
            Some(event) => {
                let value = value.trim_end_matches(['\n', '\r']);
                if !value.is_empty() {
                    scripts.set(event, PathBuf::from(value));
                }
            }
            None => rest.push_str(line),
        }
    }
    (scripts, rest)
}

/// The script the runner calls. Without one of the user's it ends with 0 whatever happens, a vanished agent included.
fn script((program, socket): (&Path, &Path), event: Event, users: Option<&Path>, runner: &Path) -> String {
    let (program, socket) = (quoted(program), quoted(socket));
    let ours = format!("{program} hook {} --socket {socket} </dev/null >/dev/null 2>&1 || true\n", event.name());
    let Some(users) = users.map(|users| call(users, runner)) else { return format!("#!/bin/sh\n{ours}exit 0\n") };
    let users = format!("code=0\n{users} || code=$?\n");
    match event {
        Event::JobStarted => format!("#!/bin/sh\n{ours}{users}exit $code\n"),
        Event::JobCompleted => format!("#!/bin/sh\n{users}{ours}exit $code\n"),
    }
}

/// Calls a script the way the runner does: by its extension.
fn call(script: &Path, runner: &Path) -> String {
    let path = quoted(script);
    match script.extension().and_then(|extension| extension.to_str()) {
        Some("sh") => format!("if command -v bash >/dev/null 2>&1; then bash -e {path}; else sh -e {path}; fi"),
        Some("ps1") => {
            let inner = script.display().to_string().replace('\'', "''");
            format!("pwsh -NoLogo -NonInteractive -Command {}", quote(&format!(". '{inner}'")))
        }
        // The newest that the runner brings along.
        Some("js") => {
            format!("\"$(ls -d {}/node*/bin/node 2>/dev/null | tail -n 1)\" {path}", quoted(&runner.join("externals")))
        }
        _ => {
            format!("{{ echo {} >&2; false; }}", quote(&format!("{} is no .sh, .ps1 or .js script", script.display())))
        }
    }
}

fn quoted(path: &Path) -> String {
    quote(&path.display().to_string())
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Machine {
        dir: tempfile::TempDir,
        paths: Paths,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("dir");
            let at = |name: &str| dir.path().join(name);
            let paths = Paths { state: at("s"), data: at("it's data"), runner: at("r") };
            std::fs::create_dir_all(&paths.runner).expect("runner");
            Self { dir, paths }
        }

        /// A script of the user's that says its word and exits so.
        fn users(&self, name: &str, code: u8) -> PathBuf {
            let path = self.dir.path().join(name);
            std::fs::write(&path, format!("echo \"{name} in $PWD\"\nexit {code}\n")).expect("script");
            path
        }

        /// A program that says when it is called.
        fn install(&self, given: &Scripts) {
            let program = self.dir.path().join("it's miglet");
            let log = self.dir.path().join("log");
            std::fs::write(&program, format!("#!/bin/sh\necho \"ours $2\" >> '{}'\nexit 9\n", log.display()))
                .expect("program");
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
            install(&self.paths, &program, given).expect("installed");
        }

        /// As the runner calls it: code and output.
        fn call(&self, event: Event) -> (Option<i32>, String) {
            let script = self.paths.hook_script(event.name());
            let output = Command::new("bash").arg("-e").arg(script).current_dir("/").output().expect("bash");
            (output.status.code(), String::from_utf8(output.stdout).expect("text"))
        }

        fn log(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
        }
    }

    #[test]
    fn without_a_script_of_the_users_ours_says_nothing_and_never_fails() {
        let machine = Machine::new();
        machine.install(&Scripts::default());
        for event in Event::ALL {
            assert_eq!(machine.call(event), (Some(0), String::new()));
        }
        assert_eq!(machine.log(), "ours job-started\nours job-completed\n");
        std::fs::remove_file(machine.dir.path().join("it's miglet")).expect("removed");
        assert_eq!(machine.call(Event::JobStarted), (Some(0), String::new()), "a vanished agent");
    }

    #[test]
    fn the_users_scripts_run_with_their_output_and_exit_code_and_ours_runs_whatever_they_do() {
        let machine = Machine::new();
        let (started, completed) = (machine.users("it's a.sh", 3), machine.users("b.sh", 0));
        machine.install(&Scripts { job_started: Some(started), job_completed: Some(completed) });
        assert_eq!(machine.call(Event::JobStarted), (Some(3), "it's a.sh in /\n".into()));
        assert_eq!(machine.call(Event::JobCompleted), (Some(0), "b.sh in /\n".into()));
        assert_eq!(machine.log(), "ours job-started\nours job-completed\n");
    }

    #[test]
    fn ours_comes_first_before_the_job_and_last_after_it() {
        let machine = Machine::new();
        let log = machine.dir.path().join("log");
        let users = machine.dir.path().join("users.sh");
        std::fs::write(&users, format!("echo users >> '{}'\n", log.display())).expect("script");
        machine.install(&Scripts { job_started: Some(users.clone()), job_completed: Some(users) });
        for event in Event::ALL {
            machine.call(event);
        }
        assert_eq!(machine.log(), "ours job-started\nusers\nusers\nours job-completed\n");
    }

    #[test]
    fn the_scripts_of_the_runners_env_are_called_and_taken_out_of_it() {
        let machine = Machine::new();
        let script = machine.users("image.sh", 7);
        let env = machine.paths.runner.join(".env");
        let text = format!("LANG=C\r\nACTIONS_RUNNER_HOOK_JOB_STARTED={}\r\nA=b=c\n", script.display());
        std::fs::write(&env, text).expect("env");
        machine.install(&Scripts::default());
        assert_eq!(std::fs::read_to_string(&env).expect("env"), "LANG=C\r\nA=b=c\n");
        assert_eq!(machine.call(Event::JobStarted), (Some(7), "image.sh in /\n".into()));
        assert_eq!(machine.call(Event::JobCompleted).0, Some(0));
    }

    #[test]
    fn a_script_that_is_missing_or_of_an_unknown_kind_fails_the_job_as_the_runner_would() {
        let machine = Machine::new();
        for name in ["missing.sh", "script.py", "script"] {
            machine.install(&Scripts { job_started: Some(machine.dir.path().join(name)), ..Scripts::default() });
            let (code, _) = machine.call(Event::JobStarted);
            assert!(code.is_some_and(|code| code != 0), "{name}: {code:?}");
        }
    }

    #[test]
    fn the_last_line_of_a_name_counts() {
        let (scripts, rest) =
            split("ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/a.sh\nX\nACTIONS_RUNNER_HOOK_JOB_COMPLETED=/b.sh");
        assert_eq!((scripts.job_completed, rest.as_str()), (Some(PathBuf::from("/b.sh")), "X\n"));
    }
}
