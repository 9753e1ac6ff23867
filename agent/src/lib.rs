//! The Miglet agent: a kubelet for one GitHub Actions runner.
//!
//! ```text
//!  operator <== one gRPC stream over TLS ==> session --inputs--> driver --effects--> supervisor, machine
//!                                               ^-- reports, answers --+  (asks the pure plan)   |
//!                                               '------- events -- outbox (spool on the disk)    |
//!                                                                          miglet shim <---------'
//!                                                                               '-- bin/Runner.Listener
//! ```
//!
//! The agent proves who it is, receives one registration that exists nowhere else, has the shim run the runner, and
//! reports the whole state whenever it changes; what must not be lost it also tells as events, which are kept on the disk
//! until the operator has dealt with them. The shim outlives the agent, so an agent may crash, restart or be
//! upgraded in mid-job. [`run`] is the whole agent; `miglet` is a command line around it.

pub mod backoff;
pub mod clock;
pub mod diagnostics;
pub mod doctor;
pub mod drain;
pub mod driver;
pub mod durable;
pub mod environment_file;
pub mod error;
pub mod events;
pub mod fetch;
pub mod firewall;
pub mod guards;
pub mod health;
pub mod hook;
pub mod installation;
pub mod jit;
pub mod key;
mod last_resort;
pub mod leaving;
pub mod lines;
pub mod logging;
pub mod machine;
pub mod metadata;
pub mod notice;
pub mod notify;
pub mod outbox;
pub mod overlay;
pub mod paths;
pub mod plan;
pub mod preparation;
pub mod process;
pub mod proxy;
pub mod record;
pub mod redaction;
pub mod runner;
pub mod session;
pub mod settings;
pub mod shim;
pub mod spool;
pub mod status;
pub mod supervisor;
pub mod tls;
pub mod user;
pub mod wire;

pub use driver::{AgentError, Ended, Ports, run};
