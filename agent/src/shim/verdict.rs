//! What follows from the listener's exit: try again, wait for its update, or the end. Pure.
//!
//! | code | the listener means | what follows |
//! | --- | --- | --- |
//! | 0 | done, or stopped, or removed while idle | the end |
//! | 2 | an unexpected error, worth another try | again with backoff, only if no job was seen, at most 5 times |
//! | 3, 4 | replaced by its own update | wait for `update.finished`, then again; not once a job was seen |
//! | 1 | its registration, settings or clock are refused | the end, failed |
//! | 5 | another listener held its session for 4 minutes | the end, failed |
//! | 7 | its version is refused (told apart from 1 because we ask for it) | the end, failed |
//! | 100 to 105 | a job's result, where the image asks for such codes | the end, with the job and that result |
//! | anything else | a signal, or unknown | the end, failed |
//!
//! The registration is consumed when a job is assigned, so after a job another start can only fail.

use std::time::Duration;

use crate::runner::{Exit, ExitKind, Job, JobResult, Phase, Runner, TEXT_LIMIT, clean};

/// Retryable exits before the runner counts as failed. They are not forgiven after a while: a machine whose idle runner
/// stumbles this often is better replaced.
const RETRY_LIMIT: u32 = 5;

/// What the shim does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start the listener again after this long.
    Retry(Duration),
    /// Wait for the listener's self-update, then start it again.
    AwaitUpdate,
    /// It is over.
    End(Exit),
}

/// How one run of the listener went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Exit code, or 128 + signal.
    pub(crate) code: i32,
    /// Whether the shim asked it to stop.
    pub(crate) interrupted: bool,
    /// How often it was retried before.
    pub(crate) retries: u32,
}

/// Decides.
pub(crate) fn verdict(run: Run, runner: &Runner) -> Verdict {
    match (run.code, runner.job.is_some() || run.interrupted) {
        (2, false) if run.retries < RETRY_LIMIT => Verdict::Retry(Duration::from_secs(1 << run.retries)),
        (3 | 4, false) if run.retries < RETRY_LIMIT => Verdict::AwaitUpdate,
        _ => Verdict::End(exit(run, runner)),
    }
}

/// The end, explained.
pub(crate) fn exit(run: Run, runner: &Runner) -> Exit {
    let kind = kind(run, runner.job.as_ref());
    let detail = if kind == ExitKind::Failed { detail(run, runner) } else { String::new() };
    Exit { code: run.code, kind, detail }
}

/// Writes the end down, and the job's result where only the code tells it: the listener's line comes first.
pub(crate) fn conclude(runner: &mut Runner, exit: Exit, now_ms: i64) {
    let told = result(exit.code);
    if let Some(job) = runner.job.as_mut().filter(|job| job.result.is_none() && told.is_some()) {
        (job.result, job.completed_unix_ms) = (told, now_ms);
    }
    (runner.phase, runner.exit) = (Phase::Exited, Some(exit));
}

fn result(code: i32) -> Option<JobResult> {
    Some(match code {
        100 => JobResult::Succeeded,
        101 => JobResult::SucceededWithIssues,
        102 => JobResult::Failed,
        103 => JobResult::Canceled,
        104 => JobResult::Skipped,
        105 => JobResult::Abandoned,
        _ => return None,
    })
}

fn kind(run: Run, job: Option<&Job>) -> ExitKind {
    match (run.code, job) {
        (0, Some(_)) => ExitKind::JobDone,
        // An ephemeral runner may stumble, or leave for its update, after its one job: the job is done all the same.
        (2..=4, Some(Job { result: Some(_), .. })) => ExitKind::JobDone,
        (100..=105, Some(_)) => ExitKind::JobDone,
        (0, None) => ExitKind::WithoutJob,
        // Stopped by us before it could handle the signal: 128 + SIGINT.
        (130, None) if run.interrupted => ExitKind::WithoutJob,
        _ => ExitKind::Failed,
    }
}

fn detail(run: Run, runner: &Runner) -> String {
    let tail: Vec<&str> = runner.lines.iter().rev().take(3).rev().map(String::as_str).collect();
    let said =
        if tail.is_empty() { "it said nothing".to_owned() } else { format!("its last lines: {}", tail.join(" | ")) };
    clean(&format!("the listener ended with code {}{}; {said}", run.code, meaning(run)), TEXT_LIMIT * 4)
}

/// What the code means, where it means one thing.
fn meaning(run: Run) -> String {
    match (run.code, run.retries) {
        (2, retries) if retries > 0 => format!(" for the {}th time", retries + 1),
        (3 | 4, _) => ": its update of itself came to no end".to_owned(),
        (5, _) => ": another listener holds its session".to_owned(),
        (7, _) => ": GitHub no longer accepts this version of the runner".to_owned(),
        // 128 + signal, up to the last real-time one.
        (129..=192, _) => format!(": killed by signal {}", run.code - 128),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: i32) -> Run {
        Run { code, interrupted: false, retries: 0 }
    }

    fn with_job(result: Option<JobResult>) -> Runner {
        Runner { job: Some(Job { result, ..Job::default() }), ..Runner::default() }
    }

    fn ended(run: Run, runner: &Runner) -> ExitKind {
        match verdict(run, runner) {
            Verdict::End(exit) => exit.kind,
            other => panic!("expected an end, got {other:?}"),
        }
    }

    #[test]
    fn exit_zero_means_done_only_with_a_job() {
        assert_eq!(ended(run(0), &with_job(Some(JobResult::Failed))), ExitKind::JobDone);
        assert_eq!(ended(run(0), &Runner::default()), ExitKind::WithoutJob);
    }

    #[test]
    fn a_retryable_exit_is_retried_with_backoff_up_to_the_cap() {
        let at = |retries| verdict(Run { retries, ..run(2) }, &Runner::default());
        assert_eq!(at(0), Verdict::Retry(Duration::from_secs(1)));
        assert_eq!(at(4), Verdict::Retry(Duration::from_secs(16)));
        assert!(matches!(at(5), Verdict::End(Exit { kind: ExitKind::Failed, .. })));
    }

    #[test]
    fn nothing_is_retried_once_a_job_was_seen() {
        assert_eq!(ended(run(2), &with_job(None)), ExitKind::Failed);
        assert_eq!(ended(run(2), &with_job(Some(JobResult::Succeeded))), ExitKind::JobDone);
        assert_eq!(ended(run(4), &with_job(Some(JobResult::Succeeded))), ExitKind::JobDone);
    }

    #[test]
    fn an_update_is_awaited_and_an_interrupted_runner_is_not_restarted() {
        assert_eq!(verdict(run(3), &Runner::default()), Verdict::AwaitUpdate);
        let stopped = |code| Run { interrupted: true, ..run(code) };
        assert_eq!(ended(stopped(2), &Runner::default()), ExitKind::Failed);
        assert_eq!(ended(stopped(130), &Runner::default()), ExitKind::WithoutJob);
    }

    #[test]
    fn codes_that_ask_for_a_job_result_are_an_end_with_a_job() {
        assert_eq!(ended(run(102), &with_job(None)), ExitKind::JobDone);
        assert_eq!(ended(run(100), &Runner::default()), ExitKind::Failed);
        assert_eq!(ended(run(106), &with_job(None)), ExitKind::Failed);
    }

    #[test]
    fn a_code_tells_the_result_that_no_line_told() {
        use JobResult::{Abandoned, Canceled, Failed, Skipped, Succeeded, SucceededWithIssues};
        let concluded = |code, result| {
            let mut runner = with_job(result);
            let Verdict::End(exit) = verdict(run(code), &runner) else { panic!("an end") };
            conclude(&mut runner, exit, 7);
            assert!(runner.phase == Phase::Exited && runner.exit.is_some());
            runner.job.map(|job| (job.result, job.completed_unix_ms))
        };
        for (code, result) in
            (100..).zip([Succeeded, SucceededWithIssues, Failed, Canceled, Skipped, Abandoned].map(Some))
        {
            assert_eq!(concluded(code, None), Some((result, 7)));
        }
        assert_eq!(concluded(100, Some(Failed)), Some((Some(Failed), 0)), "the line comes first");
        assert_eq!(concluded(0, None), Some((None, 0)), "not known is not succeeded");
        let mut without = Runner::default();
        conclude(&mut without, exit(run(100), &Runner::default()), 7);
        assert_eq!(without.job, None);
    }

    #[test]
    fn a_failure_says_what_its_code_means() {
        let said = |code, retries| {
            let run = Run { retries, interrupted: true, ..run(code) };
            let Verdict::End(exit) = verdict(run, &Runner::default()) else { panic!("an end") };
            exit.detail.split_once("; ").expect("two parts").0.to_owned()
        };
        for (code, retries, meaning) in [
            (1, 0, "the listener ended with code 1"),
            (2, 0, "the listener ended with code 2"),
            (2, 5, "the listener ended with code 2 for the 6th time"),
            (4, 0, "the listener ended with code 4: its update of itself came to no end"),
            (5, 0, "the listener ended with code 5: another listener holds its session"),
            (7, 0, "the listener ended with code 7: GitHub no longer accepts this version of the runner"),
            (137, 0, "the listener ended with code 137: killed by signal 9"),
        ] {
            assert_eq!(said(code, retries), meaning);
        }
    }

    #[test]
    fn a_failure_quotes_the_last_lines() {
        let runner = Runner { lines: vec!["a".into(), "Bad credentials".into()], ..Runner::default() };
        let Verdict::End(exit) = verdict(run(1), &runner) else { panic!("an end") };
        assert_eq!(exit.detail, "the listener ended with code 1; its last lines: a | Bad credentials");
    }
}
