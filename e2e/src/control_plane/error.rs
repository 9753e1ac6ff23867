//! What can go wrong with the control plane.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// A failure to build, start or use the control plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on the local machine refused.
    #[error("{doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing to build with and nothing built.
    #[error("the test control plane needs Go 1.26 or newer on PATH (https://go.dev/dl), or KUBEBUILDER_ASSETS")]
    NoGo,
    /// The folder the user named lacks programs.
    #[error(
        "KUBEBUILDER_ASSETS={} has no {missing}: add it (envtest archives leave kube-controller-manager out), \
         or unset the variable to have the control plane built with Go",
        .folder.display()
    )]
    IncompleteAssets {
        /// What the variable says.
        folder: PathBuf,
        /// Programs that are not there.
        missing: String,
    },
    /// The Go build failed.
    #[error("go build of {module} failed with {status}:\n{output}")]
    Build {
        /// Which of the two modules.
        module: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A component ended by itself.
    #[error("{program} ended with {status}:\n{log}")]
    Exited {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Something did not become so in time.
    #[error("waited {waited:?} for {what}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// A key or certificate could not be made.
    #[error("make the control plane's certificates")]
    Certificate(#[from] rcgen::Error),
    /// The API server refused.
    #[error("{doing}")]
    Api {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// A kubeconfig of ours was not understood.
    #[error("read the control plane's own kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// A file does not hold what it should.
    #[error("read {what}: {message}")]
    Malformed {
        /// Which file.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// kubectl ended with an error.
    #[error("kubectl {args} failed with {status}: {stderr}")]
    Kubectl {
        /// Its arguments.
        args: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
}

impl Error {
    /// Wraps an input/output error with what was tried.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Wraps an API error with what was tried.
    pub(crate) fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Api { doing, source: Box::new(source) }
    }
}
