//! Memory of a process, as the kernel counts it.

use std::{fs, io};

/// A field of /proc/PID/status in MiB: `VmRSS` now, `VmHWM` at its peak.
pub(super) fn mib(process: u32, field: &str) -> io::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| io::Error::other(format!("process {process} has no {field}")))
}
