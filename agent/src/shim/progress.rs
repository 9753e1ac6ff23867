//! Reads a runner's progress from the listener's lines and the hooks' messages. Pure.
//!
//! Lines of state carry a timestamp at their very start; a job's display name is free text and may itself contain
//! "completed with result:", so the last one counts. Whatever is said, phases only move forward, the first job stays
//! the job, and its first result stays its result: a job that forges lines cannot turn Busy back into Idle.

use std::collections::VecDeque;

use crate::{
    clock::Moment,
    runner::{Identity, Job, JobResult, Phase, Runner, TEXT_LIMIT, clean},
};

/// How many of the last lines are kept for a post-mortem.
const KEPT_LINES: usize = 12;
/// 2.336.0, and some room.
const VERSION_LIMIT: usize = 32;

/// A line that tells state.
#[derive(Debug, PartialEq, Eq)]
enum Mark<'a> {
    Listening,
    Running(&'a str),
    Completed(&'a str, JobResult),
}

/// What is known so far.
#[derive(Debug)]
pub struct Progress {
    runner: Runner,
    identity: Option<Identity>,
    last: VecDeque<String>,
}

impl Progress {
    /// Of a runner of which nothing was heard.
    #[must_use]
    pub fn new(runner: Runner) -> Self {
        Self { runner, identity: None, last: VecDeque::with_capacity(KEPT_LINES) }
    }

    /// The snapshot for state file and agent.
    #[must_use]
    pub fn snapshot(&self) -> Runner {
        let mut runner = self.runner.clone();
        runner.lines = self.last.iter().cloned().collect();
        if let (Some(job), Some(identity)) = (&mut runner.job, &self.identity) {
            job.identity = identity.clone();
        }
        runner
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.runner.phase
    }

    /// Changes what the lines do not tell: process ids, the exit.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Runner)) {
        change(&mut self.runner);
    }

    /// Takes one line of the listener; true when it changed the snapshot's state.
    pub fn line(&mut self, bytes: &[u8], now: Moment) -> bool {
        let text = String::from_utf8_lossy(bytes);
        if text.trim().is_empty() {
            return false;
        }
        self.keep(&text);
        if let Some(version) = version(&text).filter(|_| self.runner.version.is_empty()) {
            // Told with what comes next.
            self.runner.version = clean(version, VERSION_LIMIT);
        }
        parse(&text).is_some_and(|mark| self.apply(&mark, now))
    }

    /// Takes a hook's message; the first one counts. True when it changed the snapshot.
    pub(crate) fn identify(&mut self, identity: Identity) -> bool {
        let first = self.identity.is_none();
        if first {
            self.identity = Some(identity);
        }
        first && self.runner.job.is_some()
    }

    fn keep(&mut self, text: &str) {
        let mut line =
            if self.last.len() == KEPT_LINES { self.last.pop_front().unwrap_or_default() } else { String::new() };
        line.clear();
        line.push_str(&clean(text, TEXT_LIMIT));
        self.last.push_back(line);
    }

    fn apply(&mut self, mark: &Mark<'_>, now: Moment) -> bool {
        let runner = &mut self.runner;
        match mark {
            Mark::Listening if runner.phase < Phase::Listening => runner.phase = Phase::Listening,
            Mark::Running(name) if runner.job.is_none() => {
                runner.job = Some(job(name, now));
                runner.phase = runner.phase.max(Phase::Busy);
            }
            Mark::Completed(name, result) if runner.job.as_ref().is_none_or(|j| j.result.is_none()) => {
                let job = runner.job.get_or_insert_with(|| job(name, now));
                (job.result, job.completed_unix_ms) = (Some(*result), now.unix_ms);
                runner.phase = runner.phase.max(Phase::Busy);
            }
            _ => return false,
        }
        true
    }
}

fn job(name: &str, now: Moment) -> Job {
    let (started_unix_ms, started_boot_ms) = (now.unix_ms, Some(now.boot_ms));
    Job { name: clean(name, TEXT_LIMIT), started_unix_ms, started_boot_ms, ..Job::default() }
}

/// Said once, before the listener listens.
fn version(line: &str) -> Option<&str> {
    line.strip_prefix("Current runner version: '")?.trim_end().strip_suffix('\'')
}

fn parse(line: &str) -> Option<Mark<'_>> {
    let text = after_timestamp(line)?;
    if text == "Listening for Jobs" {
        return Some(Mark::Listening);
    }
    if let Some(name) = text.strip_prefix("Running job: ") {
        return Some(Mark::Running(name));
    }
    let (name, result) = text.strip_prefix("Job ")?.rsplit_once(" completed with result: ")?;
    Some(Mark::Completed(name, JobResult::parse(result.trim_end())?))
}

/// The text after `yyyy-MM-dd HH:mm:ssZ: `.
fn after_timestamp(line: &str) -> Option<&str> {
    const SHAPE: &[u8] = b"dddd-dd-dd dd:dd:ddZ: ";
    let head = line.as_bytes().get(..SHAPE.len())?;
    let fits = head.iter().zip(SHAPE).all(|(c, shape)| if *shape == b'd' { c.is_ascii_digit() } else { c == shape });
    fits.then(|| line.get(SHAPE.len()..)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: &str = "2026-11-21 00:00:00Z: ";

    fn after(lines: &[&str]) -> Runner {
        let mut progress = Progress::new(Runner::default());
        for (n, line) in lines.iter().enumerate() {
            progress.line(line.as_bytes(), Moment { unix_ms: 1000 + n as i64, boot_ms: 50 + n as u64 });
        }
        progress.snapshot()
    }

    #[test]
    fn the_listeners_own_lines_tell_a_whole_life() {
        let runner = after(&[
            "√ Connected to GitHub",
            "Current runner version: '2.336.0'",
            &format!("{AT}Listening for Jobs"),
            &format!("{AT}Running job: build"),
            &format!("{AT}Job build completed with result: Failed"),
        ]);
        let job = runner.job.expect("a job");
        assert_eq!((job.name.as_str(), job.result), ("build", Some(JobResult::Failed)));
        assert_eq!((job.started_unix_ms, job.started_boot_ms, job.completed_unix_ms), (1003, Some(53), 1004));
        assert_eq!(runner.phase, Phase::Busy);
    }

    #[test]
    fn a_job_named_like_a_result_line_keeps_its_real_result() {
        let name = "x completed with result: Succeeded";
        let line = format!("{AT}Job {name} completed with result: Canceled");
        let job = after(&[&line]).job.expect("a job");
        assert_eq!((job.name.as_str(), job.result), (name, Some(JobResult::Canceled)));
    }

    #[test]
    fn lines_without_the_timestamp_at_their_start_tell_nothing() {
        let runner =
            after(&["Running job: build", &format!(" {AT}Running job: b"), "job started", "Listening for Jobs"]);
        assert_eq!((runner.phase, runner.job), (Phase::Starting, None));
    }

    #[test]
    fn the_first_version_is_the_runners() {
        let runner = after(&["Current runner version: '2.336.0'", "Current runner version: '9.9.9'"]);
        assert_eq!(runner.version, "2.336.0");
    }

    #[test]
    fn busy_never_returns_to_idle_and_the_first_job_and_result_stay() {
        let runner = after(&[
            &format!("{AT}Running job: first"),
            &format!("{AT}Listening for Jobs"),
            &format!("{AT}Running job: second"),
            &format!("{AT}Job first completed with result: Failed"),
            &format!("{AT}Job first completed with result: Succeeded"),
        ]);
        let job = runner.job.expect("a job");
        assert_eq!(runner.phase, Phase::Busy);
        assert_eq!((job.name.as_str(), job.result), ("first", Some(JobResult::Failed)));
    }

    #[test]
    fn only_the_first_hook_names_the_job() {
        let mut progress = Progress::new(Runner::default());
        let named = |repository: &str| Identity { repository: repository.into(), ..Identity::default() };
        assert!(!progress.identify(named("acme/app")), "no job yet: nothing to tell");
        progress.line(format!("{AT}Running job: build").as_bytes(), Moment::default());
        assert!(!progress.identify(named("evil/app")));
        assert_eq!(progress.snapshot().job.expect("a job").identity.repository, "acme/app");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_kept_within_bounds(lines in proptest::collection::vec(any::<Vec<u8>>(), 0..40)) {
            let mut progress = Progress::new(Runner::default());
            for line in &lines {
                progress.line(line, Moment::default());
            }
            let runner = progress.snapshot();
            prop_assert!(runner.lines.len() <= KEPT_LINES);
            prop_assert!(runner.lines.iter().all(|l| l.len() <= TEXT_LIMIT));
        }

        #[test]
        fn any_display_name_gets_its_own_result(name in "[^\\x00-\\x1f\\x7f-\\x9f]{1,60}") {
            let line = format!("{AT}Job {name} completed with result: SucceededWithIssues");
            prop_assert_eq!(parse(&line), Some(Mark::Completed(&name, JobResult::SucceededWithIssues)));
            let line = format!("{AT}Running job: {name}");
            prop_assert_eq!(parse(&line), Some(Mark::Running(&name)));
        }
    }
}
