//! The fleet as it is now: a small table in a terminal, lines about what changed otherwise.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use kube::ResourceExt;
use miglet_operator::crd::{RunnerPool, RunnerVm};

use super::{
    say,
    stage::{NAMESPACE, POOL, Stage},
};
use crate::world::{Trouble, World};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Rows a terminal has room for, whatever its size: the table is redrawn in place, so it must not scroll.
const ROWS: usize = 12;

/// Says how to play, then shows the fleet for ever.
pub(super) async fn show(stage: &Stage) -> Result<ExitCode, Trouble> {
    let world = stage.world()?;
    say("");
    say(&format!("export KUBECONFIG={}", world.plane.admin_kubeconfig().display()));
    say(&format!("{} --namespace {NAMESPACE} get rpool,rvm", world.plane.kubectl_path().display()));
    say("jobs:   cargo playground job 'echo hello; sleep 2'");
    say("faults: cargo playground fault --help");
    say("Ctrl-C ends it all.");
    say("");
    let mut screen = Screen { terminal: io::stdout().is_terminal(), drawn: 0, known: BTreeMap::new() };
    loop {
        match Fleet::look(world).await {
            Ok(fleet) => screen.draw(&fleet)?,
            Err(error) => tracing::debug!(%error, "the API server does not answer"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is shown.
#[derive(Debug, PartialEq, Eq)]
struct Fleet {
    pool: String,
    /// Name, phase and job of each VM.
    vms: Vec<(String, String, String)>,
}

impl Fleet {
    async fn look(world: &World) -> Result<Self, kube::Error> {
        let pool = world.api::<RunnerPool>().get_opt(POOL).await?;
        Ok(Self { pool: pool.map_or_else(|| "deleted".to_owned(), |p| line(&p)), vms: rows(&world.vms().await?) })
    }
}

fn line(pool: &RunnerPool) -> String {
    let status = pool.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let ready = ready.map_or("Unknown", |condition| condition.reason.as_str());
    let (desired, idle, busy) = (pool.spec.replicas, status.idle_replicas, status.busy_replicas);
    format!("{desired} desired, {} current, {idle} idle, {busy} busy, {ready}", status.replicas)
}

fn rows(vms: &[RunnerVm]) -> Vec<(String, String, String)> {
    let row = |vm: &RunnerVm| {
        let status = vm.status.clone().unwrap_or_default();
        let job = status.job.map(|job| job.summary).unwrap_or_default();
        (vm.name_any(), status.phase.as_str().to_owned(), job)
    };
    vms.iter().map(row).collect()
}

struct Screen {
    terminal: bool,
    /// Lines to go back up.
    drawn: usize,
    /// The lines last shown, by what they are about.
    known: BTreeMap<String, String>,
}

impl Screen {
    fn draw(&mut self, fleet: &Fleet) -> io::Result<()> {
        let text = if self.terminal { self.table(fleet) } else { self.changes(fleet) };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Over the last one: cursor up, erase to the end.
    fn table(&mut self, fleet: &Fleet) -> String {
        let mut text = String::new();
        if self.drawn > 0 {
            write!(text, "\x1b[{}A\x1b[J", self.drawn).ok();
        }
        let mut lines = vec![format!("pool {POOL}: {}", fleet.pool), format!("{:<40} {:<12} JOB", "VM", "PHASE")];
        lines.extend(fleet.vms.iter().take(ROWS).map(|(vm, phase, job)| format!("{vm:<40} {phase:<12} {job:.24}")));
        if fleet.vms.len() > ROWS {
            lines.push(format!("and {} more", fleet.vms.len() - ROWS));
        }
        self.drawn = lines.len();
        for line in lines {
            writeln!(text, "{line:.79}").ok();
        }
        text
    }

    fn changes(&mut self, fleet: &Fleet) -> String {
        let mut now = BTreeMap::from([(format!("pool {POOL}"), fleet.pool.clone())]);
        now.extend(fleet.vms.iter().map(|(vm, phase, job)| (vm.clone(), format!("{phase} {job}").trim().to_owned())));
        let mut text = String::new();
        for (about, line) in now.iter().filter(|(about, line)| self.known.get(*about) != Some(*line)) {
            writeln!(text, "{about}: {line}").ok();
        }
        for gone in self.known.keys().filter(|about| !now.contains_key(*about)) {
            writeln!(text, "{gone}: gone").ok();
        }
        self.known = now;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(phase: &str) -> Fleet {
        Fleet { pool: "1 desired".into(), vms: vec![("vm".into(), phase.into(), String::new())] }
    }

    fn screen(terminal: bool) -> Screen {
        Screen { terminal, drawn: 0, known: BTreeMap::new() }
    }

    #[test]
    fn without_a_terminal_only_what_changed_is_told() {
        let mut screen = screen(false);
        assert_eq!(screen.changes(&fleet("Idle")), "pool linux: 1 desired\nvm: Idle\n");
        assert_eq!(screen.changes(&fleet("Idle")), "");
        assert_eq!(screen.changes(&fleet("Busy")), "vm: Busy\n");
        assert_eq!(screen.changes(&Fleet { vms: Vec::new(), ..fleet("") }), "vm: gone\n");
    }

    #[test]
    fn a_table_is_drawn_over_the_last_one() {
        let mut screen = screen(true);
        assert!(!screen.table(&fleet("Idle")).contains('\x1b'));
        let second = screen.table(&fleet("Busy"));
        assert!(second.starts_with("\x1b[3A\x1b[J"), "{second:?}");
        assert!(second.contains("Busy") && !second.contains("Idle"));
    }
}
