//! The control plane's programs: built once from pinned Go modules, then cached by content.
//!
//! ```text
//!   KUBEBUILDER_ASSETS set      those programs, or an error that names the missing ones
//!   cache folder KEY exists     those
//!   otherwise                   lock, go build into a temporary folder, rename it to KEY
//! ```
//!
//! KEY is a hash over all that decides the result: both modules' go.mod and go.sum, the flags, system and architecture.
//! The finished binaries are cached, not Go's build cache, which is ten times their size.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use aws_lc_rs::digest;

use super::error::Error;

/// One Go module of ours and the programs its tools become.
struct Module {
    name: &'static str,
    /// The required module whose version is stamped into the programs.
    upstream: &'static str,
    /// File names as `go build` makes them, and as they are known.
    programs: &'static [(&'static str, &'static str)],
}

const MODULES: [Module; 2] = [
    Module { name: "etcd", upstream: "go.etcd.io/etcd/server/v3", programs: &[("server", "etcd")] },
    Module {
        name: "kubernetes",
        upstream: "k8s.io/kubernetes",
        programs: &[
            ("kube-apiserver", "kube-apiserver"),
            ("kube-controller-manager", "kube-controller-manager"),
            ("kubectl", "kubectl"),
        ],
    },
];

/// Bump when the recipe below changes in a way the key does not see.
const RECIPE: &str = "1";

/// A folder with `etcd`, `kube-apiserver`, `kube-controller-manager` and `kubectl`.
#[derive(Clone, Debug)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Finds the programs, or builds them: about 7 minutes on two cores, once. Blocks.
    ///
    /// # Errors
    /// When there is neither Go nor a usable `KUBEBUILDER_ASSETS`, or the build fails.
    pub fn obtain() -> Result<Self, Error> {
        if let Some(folder) = env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty()) {
            return Self::in_assets(PathBuf::from(folder));
        }
        let cache = cache_folder()?;
        let folder = cache.join(content_key()?);
        if folder.is_dir() {
            return Ok(Self { folder });
        }
        build_once(&cache, &folder)?;
        Ok(Self { folder })
    }

    /// The user's own kubectl, or the built one: nobody waits for a build because of a client they have.
    pub(super) fn of_user() -> Result<Self, Error> {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).find(|folder| folder.join("kubectl").is_file());
        found.map_or_else(Self::obtain, |folder| Ok(Self { folder }))
    }

    /// The path of one program.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    fn in_assets(folder: PathBuf) -> Result<Self, Error> {
        let programs = MODULES.iter().flat_map(|module| module.programs).map(|(_, program)| *program);
        let missing: Vec<&str> = programs.filter(|program| !folder.join(program).is_file()).collect();
        if missing.is_empty() {
            return Ok(Self { folder });
        }
        Err(Error::IncompleteAssets { folder, missing: missing.join(", ") })
    }
}

/// `~/.cache/miglet/control-plane`.
fn cache_folder() -> Result<PathBuf, Error> {
    let user = env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = user.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let user = user.ok_or_else(|| Error::io("find the cache folder: set HOME")(io::ErrorKind::NotFound.into()))?;
    let folder = user.join("miglet").join("control-plane");
    fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// Two test binaries may get here at once: the first one builds, the second one waits and finds it done.
fn build_once(cache: &Path, folder: &Path) -> Result<(), Error> {
    let path = cache.join("lock");
    let lock = File::create(&path).map_err(Error::io(format!("open {}", path.display())))?;
    lock.lock().map_err(Error::io(format!("lock {}", path.display())))?;
    if folder.is_dir() {
        return Ok(());
    }
    if !go_exists() {
        return Err(Error::NoGo);
    }
    // Not eprintln: the test harness would keep it to itself, and seven silent minutes look like a hang.
    let notice = writeln!(io::stderr(), "building the test control plane, about 7 minutes, once");
    notice.map_err(Error::io("write to stderr"))?;
    let building = tempfile::Builder::new().prefix("building-").tempdir_in(cache);
    let building = building.map_err(Error::io("make a folder to build in"))?;
    for module in &MODULES {
        build(module, building.path())?;
    }
    fs::rename(building.path(), folder).map_err(Error::io(format!("move the programs to {}", folder.display())))
}

fn go_exists() -> bool {
    let version = Command::new("go").arg("version").stdin(Stdio::null()).output();
    version.is_ok_and(|output| output.status.success())
}

/// `go build` of all the module's tools.
fn build(module: &Module, into: &Path) -> Result<(), Error> {
    let mut go = Command::new("go");
    go.current_dir(source(module)).env("CGO_ENABLED", "0").env("GOWORK", "off").env_remove("GOFLAGS");
    go.args(["build", "-trimpath", "-ldflags", &linker_flags(module)?, "-o"]).arg(into).arg("tool");
    let output = go.stdin(Stdio::null()).output().map_err(Error::io("run go build"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = said.lines().rev().take(20).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        return Err(Error::Build { module: module.name, status: output.status, output: tail });
    }
    for (built, known) in module.programs {
        fs::rename(into.join(built), into.join(known)).map_err(Error::io(format!("name {built} {known}")))?;
    }
    Ok(())
}

fn source(module: &Module) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("control-plane").join(module.name)
}

/// Without a version stamp Kubernetes says v0.0.0-master, which kubectl and Helm take at its word.
fn linker_flags(module: &Module) -> Result<String, Error> {
    if module.name != "kubernetes" {
        return Ok("-s -w".to_owned());
    }
    let version = pinned_version(module)?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("0"), numbers.next().unwrap_or("0"));
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        let stamp = format!(
            " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
             -X {package}.gitCommit= -X {package}.gitTreeState=clean -X {package}.buildDate=1970-01-01T00:00:00Z"
        );
        flags.push_str(&stamp);
    }
    Ok(flags)
}

/// The version that the module's go.mod requires of its upstream.
fn pinned_version(module: &Module) -> Result<String, Error> {
    let path = source(module).join("go.mod");
    let text = fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))?;
    let mut requirements = text.lines().map(str::split_whitespace);
    let version = requirements.find_map(|mut words| (words.next()? == module.upstream).then(|| words.next())?);
    version.map(ToOwned::to_owned).ok_or_else(|| Error::Malformed {
        what: path.display().to_string(),
        message: format!("no requirement of {}", module.upstream),
    })
}

fn content_key() -> Result<String, Error> {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [RECIPE, env::consts::OS, env::consts::ARCH] {
        context.update(part.as_bytes());
        context.update(b"\0");
    }
    for module in &MODULES {
        for file in ["go.mod", "go.sum"] {
            let path = source(module).join(file);
            context.update(&fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?);
            context.update(b"\0");
        }
        context.update(linker_flags(module)?.as_bytes());
    }
    Ok(context.finish().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}
