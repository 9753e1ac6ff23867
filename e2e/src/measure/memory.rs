//! What a process takes, as the kernel counts it.

use std::{fs, io};

/// A field of /proc/PID/status in MiB: `VmRSS` now, `VmHWM` at its peak.
pub(super) fn mib(process: u32, field: &str) -> io::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| io::Error::other(format!("process {process} has no {field}")))
}

/// Processor time that every thread of a process has had so far, in seconds. Not from /proc/PID/stat: that counts ticks of
/// 10 ms, more than an idle agent takes in a minute.
pub(super) fn cpu_seconds(process: u32) -> io::Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}
