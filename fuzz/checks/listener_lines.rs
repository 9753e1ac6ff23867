//! What the runner, and through it a job, writes to stdout and stderr: in pieces of any size.

use miglet_agent::{
    clock::Moment,
    lines::Lines,
    runner::{Phase, Runner, TEXT_LIMIT},
    shim::Progress,
};

const LINE_LIMIT: usize = 4096;

/// Whether they told of a job.
pub(crate) fn check(pieces: &[&[u8]]) -> bool {
    let (mut lines, mut progress) = (Lines::new(LINE_LIMIT), Progress::new(Runner::default()));
    let mut before = progress.snapshot();
    for piece in pieces {
        lines.feed(piece, |line| {
            assert!(line.len() <= LINE_LIMIT && !line.contains(&b'\n'));
            progress.line(line, Moment::default());
        });
        let after = progress.snapshot();
        compare(&before, &after);
        before = after;
    }
    lines.finish(|line| {
        progress.line(line, Moment::default());
    });
    compare(&before, &progress.snapshot());
    progress.snapshot().job.is_some()
}

/// Only forward, and never large.
fn compare(before: &Runner, after: &Runner) {
    assert!(before.phase <= after.phase && after.phase < Phase::Exited);
    assert!(after.lines.len() <= 12 && after.lines.iter().all(|line| line.len() <= TEXT_LIMIT));
    if let Some(job) = &before.job {
        let now = after.job.as_ref().expect("a job stays");
        assert!(now.name == job.name && (job.result.is_none() || now.result == job.result));
    }
    assert_eq!(after.phase == Phase::Busy, after.job.is_some());
    assert!(serde_json::to_vec(after).is_ok_and(|bytes| bytes.len() < 128 * 1024), "the agent reads no more");
}
