//! A VM: one QEMU process with a snapshot of the disk, its own metadata server, a console, a monitor and a shell.
//!
//! ```text
//!   169.254.169.254:80  --guestfwd, one relay process a connection--> this VM's metadata server on loopback
//!   169.254.169.2:PORT  --QEMU's user network--> 127.0.0.1:PORT       gateway, GitHub, its runner's archive
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{Disk, HOST, shell};
use crate::{
    compute::{Boot, Machine, Machines},
    control_plane::process::Process,
};

/// Between two looks at the process.
const LOOK: Duration = Duration::from_millis(100);
/// The monitor answers at once or not at all.
const MONITOR: Duration = Duration::from_secs(2);
/// Megabytes of memory of a VM.
const MEMORY: &str = "1024";

/// Machines that are real ones.
pub struct VmMachines {
    disk: Disk,
    folder: TempDir,
    /// Consoles of VMs outlive the test when somebody looks for a failure's cause.
    logs: PathBuf,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    closed: bool,
    vms: BTreeMap<String, Slot>,
}

/// The process, while there is power.
type Slot = Arc<Mutex<Option<Process>>>;

impl VmMachines {
    /// Machines that boot this disk.
    ///
    /// # Errors
    /// When there is no place for their files.
    pub fn new(disk: Disk) -> io::Result<Self> {
        // Short, because sockets live below it and their paths are bounded.
        let folder = tempfile::Builder::new().prefix("mqemu").tempdir()?;
        let logs = std::env::var_os("MIGLET_E2E_LOGS").map_or_else(|| folder.path().to_owned(), PathBuf::from);
        Ok(Self { disk, folder, logs, running: Arc::default() })
    }

    /// A root shell on an instance.
    #[must_use]
    pub fn shell(&self, instance: &str) -> shell::Shell {
        shell::Shell { socket: self.folder.path().join(instance).join("shell") }
    }

    /// Whether an instance has power.
    #[must_use]
    pub fn is_on(&self, instance: &str) -> bool {
        lock(&self.running).vms.get(instance).is_some_and(|slot| lock(slot).is_some())
    }

    /// What an instance wrote to its serial console so far.
    #[must_use]
    pub fn console(&self, instance: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.console_file(instance)).unwrap_or_default()).into_owned()
    }

    fn console_file(&self, instance: &str) -> PathBuf {
        self.logs.join(format!("{instance}.console.log"))
    }

    fn start(&self, vm: &Boot) -> io::Result<VmMachine> {
        let folder = self.folder.path().join(&vm.name);
        fs::create_dir_all(&folder)?;
        let console = self.console_file(&vm.name);
        let command = self.command(vm, &folder, &console)?;
        let mut running = lock(&self.running);
        if running.closed {
            return Err(io::Error::other("the machines are switched off for good"));
        }
        let process = Process::spawn(&command, &folder.join("qemu.log"), None)?;
        let slot: Slot = Arc::new(Mutex::new(Some(process)));
        running.vms.insert(vm.name.clone(), Arc::clone(&slot));
        Ok(VmMachine { slot, monitor: folder.join("monitor"), console })
    }

    fn command(&self, vm: &Boot, folder: &Path, console: &Path) -> io::Result<Command> {
        let show = |path: &Path| path.display().to_string();
        let socket = |name: &str| format!("path={},server=on,wait=off", show(&folder.join(name)));
        let relay = format!("{} {}", show(&relay()?), vm.metadata_host);
        let network = format!(
            "user,id=net,ipv6=off,net=169.254.169.0/24,host={HOST},dhcpstart=169.254.169.10,\
             guestfwd=tcp:169.254.169.254:80-cmd:{relay}"
        );
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "2", "-m", MEMORY]);
        qemu.arg("-kernel").arg(&self.disk.kernel).arg("-initrd").arg(&self.disk.initrd);
        qemu.args(["-append", "root=/dev/vda rw console=ttyS0 quiet"]);
        let drive = format!("file={},if=virtio,format=raw,snapshot=on,cache=unsafe", show(&self.disk.image));
        qemu.args(["-drive", &drive, "-netdev", &network, "-device", "virtio-net-pci,netdev=net"]);
        // Without it the kernel's random pool is ready only after 10 s.
        qemu.args(["-device", "virtio-rng-pci"]);
        qemu.args(["-display", "none", "-serial", &format!("file:{}", show(console))]);
        qemu.args(["-monitor", &format!("unix:{}", socket("monitor").trim_start_matches("path="))]);
        qemu.args(["-device", "virtio-serial-pci", "-chardev", &format!("socket,id=shell,{}", socket("shell"))]);
        qemu.args(["-device", &format!("virtserialport,chardev=shell,name={}", shell::PORT), "-no-reboot"]);
        // The snapshot's file.
        qemu.env("TMPDIR", folder);
        Ok(qemu)
    }
}

/// The program that QEMU starts for each connection to the metadata server.
fn relay() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join("guest-relay")).find(|path| path.is_file());
    found.ok_or_else(|| io::Error::other("guest-relay is not built: run `cargo build --workspace`"))
}

#[async_trait]
impl Machines for VmMachines {
    async fn boot(&self, vm: Boot) -> Box<dyn Machine> {
        match self.start(&vm) {
            Ok(machine) => Box::new(machine),
            Err(error) => {
                tracing::error!(instance = vm.name, %error, "the VM does not boot");
                Box::new(crate::compute::machines::Inert)
            }
        }
    }

    fn power_off_all(&self) {
        let vms = {
            let mut running = lock(&self.running);
            running.closed = true;
            std::mem::take(&mut running.vms)
        };
        vms.values().for_each(|slot| drop(lock(slot).take()));
    }

    fn host(&self) -> &'static str {
        HOST
    }
}

impl Drop for VmMachines {
    fn drop(&mut self) {
        self.power_off_all();
    }
}

struct VmMachine {
    slot: Slot,
    monitor: PathBuf,
    console: PathBuf,
}

#[async_trait]
impl Machine for VmMachine {
    async fn soft_off(&mut self) {
        let press = async {
            let mut monitor = UnixStream::connect(&self.monitor).await?;
            monitor.write_all(b"system_powerdown\n").await?;
            // Its greeting, the echo, the next prompt: read until the command is certainly taken.
            let (mut said, mut buffer) = (Vec::<u8>::new(), [0; 512]);
            while said.windows(6).filter(|bytes| bytes == b"(qemu)").count() < 2 {
                let count = monitor.read(&mut buffer).await?;
                said.extend(buffer.get(..count).filter(|bytes| !bytes.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?);
            }
            io::Result::Ok(())
        };
        // A VM that does not react loses its power later.
        drop(timeout(MONITOR, press).await);
    }

    async fn power_off(&mut self) {
        drop(lock(&self.slot).take());
    }

    async fn exited(&mut self) {
        loop {
            match lock(&self.slot).as_mut().map(Process::exit_status) {
                Some(Ok(None)) => {}
                Some(Ok(Some(_)) | Err(_)) => return,
                None => break,
            }
            sleep(LOOK).await;
        }
        std::future::pending().await
    }

    fn console(&self) -> Option<PathBuf> {
        Some(self.console.clone())
    }
}

impl Drop for VmMachine {
    fn drop(&mut self) {
        drop(lock(&self.slot).take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
