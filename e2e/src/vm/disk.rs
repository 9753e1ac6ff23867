//! The disk VMs boot from: Debian, the agent's package installed as a user would, and little else.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Package, VmError, archive, cache, command::run, root::Root, rootfs::Rootfs, shell};

/// Room for a job to fill, and not for the host to miss.
const SIZE: &str = "1200M";
/// Bump when the steps below change in a way the files do not show.
const RECIPE: &str = "4";
/// Where an image has its runner.
const RUNNER: &str = "opt/actions-runner";
/// A group of the jobs' user beside its own, as docker's is.
const GROUP: &str = "builders";
/// Where an upgrade of the agent lies on the disk.
pub const UPGRADE: &str = "/var/tmp/miglet-later.deb";

/// What is written over the installed system.
const FILES: [(&str, &str); 6] = [
    ("etc/systemd/network/10-dhcp.network", "[Match]\nName=en*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n"),
    // As Google's images have it; there is no DNS in QEMU's network that would know it.
    ("etc/hosts", "127.0.0.1 localhost\n169.254.169.254 metadata.google.internal metadata\n"),
    ("etc/resolv.conf", ""),
    ("etc/systemd/system/test-shell.service", TEST_SHELL),
    // Images let jobs use sudo; this one not for what a job that means harm would want.
    ("etc/sudoers.d/runner", "runner ALL=(root) NOPASSWD: /usr/bin/id\n"),
    // So that the serial console shows what the agent says, in the order of events.
    ("etc/systemd/journald.conf.d/console.conf", "[Journal]\nForwardToConsole=yes\nMaxLevelConsole=info\n"),
];

const TEST_SHELL: &str = "[Unit]
DefaultDependencies=no
BindsTo=dev-virtio\\x2dports-test.device
After=dev-virtio\\x2dports-test.device

[Service]
ExecStart=/usr/local/sbin/test-shell
OOMScoreAdjust=-1000
TasksMax=infinity
Restart=always

[Install]
WantedBy=multi-user.target
";

/// Started at boot.
const ENABLED: [&str; 3] = ["systemd-networkd.service", "systemd-networkd-wait-online.service", "test-shell.service"];
/// Never started. A login prompt on the serial console cuts off whoever else writes there; the rest only takes time.
const MASKED: [&str; 9] = [
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-pstore.service",
];

/// A bootable disk, with a runner in the image. VMs write to a snapshot of it.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(super) image: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Disk {
    /// Finds or makes a disk with this package installed, and a later version of it beside. Blocks: 10 s, and a minute
    /// more the first time ever.
    ///
    /// # Errors
    /// When the tools are missing or fail.
    pub fn obtain(package: &Package) -> Result<Self, VmError> {
        let rootfs = Rootfs::obtain()?;
        let deb = fs::read(&package.deb).map_err(VmError::io(&package.deb))?;
        let unpacked = tempfile::tempdir().map_err(VmError::io(std::env::temp_dir()))?;
        let runner = unpacked.path().join("runner");
        archive::unpacked(&runner)?;
        let program = fs::read(runner.join("bin/Runner.Listener")).map_err(VmError::io(&runner))?;
        let lists = ENABLED.iter().chain(&MASKED).chain(FILES.iter().flat_map(|(name, text)| [name, text]));
        let parts = [RECIPE, SIZE, RUNNER, GROUP, &rootfs.key, shell::SERVER].into_iter().chain(lists.copied());
        let key = cache::key(parts.map(str::as_bytes).chain([deb.as_slice(), program.as_slice()]));
        let folder = cache::once("disk", &key, |into| make(&rootfs, package, &runner, into))?;
        Ok(Self { image: folder.join("disk.img"), kernel: rootfs.kernel, initrd: rootfs.initrd })
    }
}

fn make(rootfs: &Rootfs, package: &Package, runner: &Path, into: &Path) -> Result<(), VmError> {
    let unpacked = Root::unpack(rootfs, into.join("root"))?;
    // Dependencies, scripts and units as on a user's machine.
    unpacked.bake(package)?;
    let root = unpacked.0;
    package.upgraded(&root.join(UPGRADE.trim_start_matches('/')))?;
    configure(&root)?;
    run(Command::new("cp").arg("-a").arg(runner.join(".")).arg(root.join(RUNNER)))?;
    // As `tar` leaves GitHub's archive when root unpacks it: nobody's on this machine.
    run(Command::new("chown").args(["-R", "1001:1001"]).arg(root.join(RUNNER)))?;
    let image = into.join("disk.img");
    // Nothing reserved: a disk that a job fills is full for root as well.
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0", "-d"]).arg(&root).arg(&image).arg(SIZE))?;
    fs::remove_dir_all(&root).map_err(VmError::io(&root))
}

fn configure(root: &Path) -> Result<(), VmError> {
    let write = |name: &str, text: &str| {
        let path = root.join(name);
        let folder = path.parent().unwrap_or(root);
        fs::create_dir_all(folder).map_err(VmError::io(folder))?;
        // It may be a link to somewhere on the host.
        fs::remove_file(&path).unwrap_or_default();
        fs::write(&path, text).map_err(VmError::io(&path)).map(|()| path)
    };
    for (name, text) in FILES {
        write(name, text)?;
    }
    // First boot: the VM makes an identity of its own.
    write("etc/machine-id", "uninitialized\n")?;
    let server = write("usr/local/sbin/test-shell", shell::SERVER)?;
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).map_err(VmError::io(&server))?;
    run(Command::new("chroot").arg(root).args(["groupadd", GROUP]))?;
    run(Command::new("chroot").arg(root).args(["usermod", "--append", "--groups", GROUP, "runner"]))?;
    for unit in MASKED {
        let path = root.join("etc/systemd/system").join(unit);
        symlink("/dev/null", &path).map_err(VmError::io(&path))?;
    }
    run(Command::new("chroot").arg(root).args(["systemctl", "--quiet", "enable"]).args(ENABLED)).map(drop)
}
