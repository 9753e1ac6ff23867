//! The simulated world: a real Kubernetes control plane, and stand-ins for what needs somebody's account.
//!
//! ```text
//!   control_plane   etcd, kube-apiserver, kube-controller-manager, kubectl: built once from pinned Go modules
//!   compute         Google Compute: groups, instances, operations, metadata server, identity tokens
//!   published       the published descriptions that the simulators are checked against
//!   github          GitHub: App auth, registrations, JIT configs, runners, jobs
//!   runner          a stand-in for actions/runner that runs a job's real steps
//!   kstatus         what GitOps tools take a resource for
//!   vm              real Debian VMs under QEMU, with the agent's package
//!   stranger        an agent of a test's own making, that need not be honest
//!   server, faults  what every simulated service listens with: request log, injected faults, kill triggers
//!   measure         figures of the release build: `cargo measure`
//!   playground      a world for people: `cargo playground`
//!   world           all of it put together with the real operator and the real agents
//! ```

pub mod compute;
pub mod control_plane;
pub mod faults;
pub mod github;
pub mod kstatus;
pub mod measure;
pub mod playground;
pub mod proxy;
pub mod published;
pub mod runner;
pub mod server;
pub mod stranger;
pub mod vm;
pub mod world;
