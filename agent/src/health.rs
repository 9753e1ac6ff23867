//! How the machine fares, read from /proc and statvfs directly: a heartbeat costs microseconds and no allocation.

use std::{fs::File, io::Read, path::PathBuf};

use miglet_proto::v1::Health;
use rustix::fs::{major, minor, stat, statvfs};
use tokio::sync::watch;

use crate::guards::Figures;

/// Reads figures; CPU is the share of busy time since the reading before.
#[derive(Debug)]
pub struct Sampler {
    place: watch::Receiver<PathBuf>,
    buffer: Vec<u8>,
    before: Option<CpuTimes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    total: u64,
}

impl Sampler {
    /// Figures of this machine, and of the file system that holds `place`, or will once it is there.
    #[must_use]
    pub fn new(place: watch::Receiver<PathBuf>) -> Self {
        let mut sampler = Self { place, buffer: Vec::with_capacity(4096), before: None };
        sampler.before = sampler.read("/proc/stat").and_then(cpu_times);
        sampler
    }

    /// The figures now; what cannot be read is 0.
    pub fn sample(&mut self) -> Health {
        let (memory_used_bytes, memory_total_bytes) = self.read("/proc/meminfo").and_then(memory).unwrap_or_default();
        let (disk_used_bytes, disk_total_bytes) = self.disk().unwrap_or_default();
        let cpu_percent = self.cpu();
        Health { cpu_percent, memory_used_bytes, memory_total_bytes, disk_used_bytes, disk_total_bytes }
    }

    /// Only what limits may be set on.
    pub fn figures(&mut self) -> Figures {
        let memory = self.read("/proc/meminfo").and_then(memory).unwrap_or_default();
        let disk = self.disk().unwrap_or_default();
        Figures { disk: percent(disk), memory: percent(memory), read_only: self.read_only() }
    }

    fn cpu(&mut self) -> u32 {
        let now = self.read("/proc/stat").and_then(cpu_times);
        let percent = self.before.zip(now).map_or(0, |(before, now)| cpu_percent(before, now));
        self.before = now;
        percent
    }

    fn disk(&self) -> Option<(u64, u64)> {
        let stat = self.place.borrow().ancestors().find_map(|folder| statvfs(folder).ok())?;
        Some(in_use((stat.f_blocks, stat.f_bfree, stat.f_bavail), stat.f_frsize))
    }

    /// Whether the file system itself takes no writes. Not by statvfs, which tells of the mount too: the agent's own unit sees
    /// every disk through read-only mounts, and the runner's does not.
    fn read_only(&self) -> bool {
        let device = self.place.borrow().ancestors().find_map(|folder| Some(stat(folder).ok()?.st_dev));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        device.is_some_and(|device| is_read_only(&mounts, &format!("{}:{}", major(device), minor(device))))
    }

    /// The beginning of a file; what is wanted stands in its first lines.
    fn read(&mut self, path: &str) -> Option<&str> {
        self.buffer.clear();
        File::open(path).ok()?.take(4096).read_to_end(&mut self.buffer).ok()?;
        std::str::from_utf8(&self.buffer).ok()
    }
}

/// In use, of what jobs can use at all, as df has it: what a file system keeps for root is no room, so a disk without any
/// left is full.
fn in_use((blocks, free, available): (u64, u64, u64), size: u64) -> (u64, u64) {
    let used = blocks.saturating_sub(free);
    (used.saturating_mul(size), used.saturating_add(available).saturating_mul(size))
}

fn percent((used, total): (u64, u64)) -> u8 {
    let percent = (u128::from(used) * 100).checked_div(u128::from(total)).unwrap_or(0);
    u8::try_from(percent).unwrap_or(100).min(100)
}

/// `36 35 8:1 / /mnt rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro`: the device is the third word; what holds for
/// its file system, wherever it is mounted, is the third behind the dash.
fn is_read_only(mounts: &str, device: &str) -> bool {
    let of_device = |line: &&str| line.split(' ').nth(2) == Some(device);
    let mount = mounts.lines().find(of_device).and_then(|line| line.split_once(" - "));
    let options = mount.and_then(|(_, system)| system.split(' ').nth(2)).unwrap_or_default();
    options.split(',').any(|option| option == "ro")
}

fn cpu_times(stat: &str) -> Option<CpuTimes> {
    let mut times = CpuTimes { busy: 0, total: 0 };
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    for (index, field) in fields.take(8).enumerate() {
        let ticks: u64 = field.parse().ok()?;
        times.total += ticks;
        times.busy += if matches!(index, 3 | 4) { 0 } else { ticks };
    }
    Some(times)
}

fn cpu_percent(before: CpuTimes, now: CpuTimes) -> u32 {
    let (busy, total) = (now.busy.saturating_sub(before.busy), now.total.saturating_sub(before.total));
    u32::try_from((busy * 100).checked_div(total).unwrap_or(0).min(100)).unwrap_or(0)
}

fn memory(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let (total, available) = (field("MemTotal:")?, field("MemAvailable:")?);
    Some((total.saturating_sub(available), total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_busy_time_without_idle_and_iowait() {
        let before = cpu_times("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1").expect("times");
        let now = cpu_times("cpu  35 0 20 125 20 0 0 0 0 0\n").expect("times");
        assert_eq!(before, CpuTimes { busy: 20, total: 100 });
        assert_eq!(cpu_percent(before, now), 35);
        assert_eq!(cpu_percent(now, now), 0);
    }

    #[test]
    fn memory_used_is_what_is_not_available() {
        assert_eq!(memory("MemTotal: 8 kB\nMemFree: 1 kB\nMemAvailable: 6 kB\n"), Some((2048, 8192)));
        assert_eq!(memory("garbage"), None);
    }

    #[test]
    fn use_is_a_percentage_whatever_the_figures_are() {
        assert_eq!([(0, 0), (5, 10), (u64::MAX, 1)].map(percent), [0, 50, 100]);
    }

    #[test]
    fn a_disk_of_which_only_roots_reserve_is_left_is_full() {
        assert_eq!(in_use((1000, 50, 0), 4096), (950 * 4096, 950 * 4096));
        assert_eq!(
            [(1000, 50, 0), (1000, 525, 475), (1000, 1000, 950), (0, 0, 0)].map(|n| percent(in_use(n, 1))),
            [100, 50, 0, 0]
        );
    }

    #[test]
    fn a_file_system_is_read_only_wherever_it_is_mounted_and_a_read_only_mount_is_none() {
        let mounts = "22 1 8:1 / / ro,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
                      23 1 8:2 / /opt rw,relatime shared:2 master:3 - ext4 /dev/sdb ro\n\
                      24 1 8:21 / /x ro - tmpfs none rw,size=5k\n";
        for (device, expected) in [("8:1", false), ("8:2", true), ("8:21", false), ("9:9", false)] {
            assert_eq!(is_read_only(mounts, device), expected, "{device}");
        }
        assert!(!is_read_only("", "8:1") && !is_read_only("garbage - ", "8:1"));
    }

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let place = watch::Sender::new(PathBuf::from("/not/there/yet"));
        let health = Sampler::new(place.subscribe()).sample();
        assert!(health.memory_total_bytes > health.memory_used_bytes && health.memory_used_bytes > 0);
        assert!(health.disk_total_bytes >= health.disk_used_bytes && health.disk_total_bytes > 0);
    }
}
