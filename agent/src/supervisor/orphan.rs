//! A listener whose supervisor died: nobody hears it any more, but it can still be told to end.

use std::time::Duration;

use rustix::process::Signal;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    process::Process,
    runner::Runner,
    shim::{INTERRUPT_DEADLINE, Order},
};

/// Between two looks at it.
const LOOK: Duration = Duration::from_secs(1);

/// The listener, and what was last known of it.
#[derive(Debug)]
pub(super) struct Orphan {
    listener: Process,
    busy: bool,
    kill_at: Option<Instant>,
}

impl Orphan {
    /// None where there was no listener.
    pub(super) fn of(runner: &Runner) -> Option<Self> {
        Some(Self { listener: runner.listener?, busy: runner.is_busy(), kill_at: None })
    }

    /// Until it has ended. A job in it has as long as it takes, unless it is ordered to end.
    pub(super) async fn outlast(mut self, orders: &mut mpsc::Receiver<Order>) {
        while self.listener.is_alive() {
            tokio::select! {
                () = sleep(LOOK) => {}
                Some(order) = orders.recv() => self.obey(order),
            }
            if self.kill_at.is_some_and(|at| Instant::now() >= at) {
                self.listener.signal(Signal::KILL);
            }
        }
    }

    /// As its supervisor would.
    fn obey(&mut self, order: Order) {
        match order {
            Order::InterruptIfIdle if self.busy || has_children(self.listener) => {}
            Order::InterruptIfIdle | Order::Interrupt => {
                self.kill_at.get_or_insert(Instant::now() + INTERRUPT_DEADLINE);
                self.listener.signal(Signal::INT);
            }
            Order::Kill => self.listener.signal(Signal::KILL),
        }
    }
}

/// A listener that was idle when its supervisor died may have a job since, and nobody heard: it runs in a child. What cannot
/// be found out counts as one.
fn has_children(listener: Process) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", listener.pid)) else { return true };
    threads.flatten().any(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children"));
        children.map_or(true, |children| !children.trim().is_empty())
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::process::ExitStatusExt,
        process::{Child, Command, Stdio},
    };

    use tokio::time::timeout;

    use super::*;
    use crate::runner::Phase;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn listener(phase: Phase) -> (Child, Orphan) {
        // Who is started in the background by a shell ignores SIGINT, and so does what it starts.
        let child = Command::new("env").args(["--default-signal=INT", "sleep", "1000"]).spawn().unwrap();
        let name = format!("/proc/{}/comm", child.id());
        while std::fs::read_to_string(&name).unwrap() != "sleep\n" {
            std::thread::yield_now();
        }
        let listener = Process::of(child.id().cast_signed());
        let orphan = Orphan::of(&Runner { phase, listener, ..Runner::default() }).unwrap();
        (child, orphan)
    }

    #[tokio::test]
    async fn orders_reach_a_listener_whose_supervisor_died() {
        for (phase, order, signal) in [
            (Phase::Busy, Order::Interrupt, Signal::INT),
            (Phase::Listening, Order::InterruptIfIdle, Signal::INT),
            (Phase::Busy, Order::Kill, Signal::KILL),
        ] {
            let (mut child, orphan) = listener(phase);
            let (orders_in, mut orders) = mpsc::channel(8);
            orders_in.send(order).await.unwrap();
            let ended = timeout(PATIENCE, orphan.outlast(&mut orders)).await;
            child.kill().ok();
            assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()), "{order:?}");
            ended.expect("its end is noticed");
        }
    }

    #[tokio::test]
    async fn a_job_is_not_ended_by_an_order_for_an_idle_listener_nor_by_the_end_of_all_orders() {
        let (mut child, orphan) = listener(Phase::Busy);
        let (orders_in, mut orders) = mpsc::channel(8);
        orders_in.send(Order::InterruptIfIdle).await.unwrap();
        drop(orders_in);
        let early = timeout(Duration::from_millis(300), orphan.outlast(&mut orders)).await;
        assert!(early.is_err() && child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_listener_that_was_idle_and_has_a_child_by_now_is_left_alone() {
        let mut child =
            Command::new("sh").args(["-c", "sleep 1000 & echo; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let listener = Process::of(child.id().cast_signed());
        assert!(has_children(listener.unwrap()));
        let (orders_in, mut orders) = mpsc::channel(8);
        orders_in.send(Order::InterruptIfIdle).await.unwrap();
        let orphan = Orphan::of(&Runner { phase: Phase::Listening, listener, ..Runner::default() }).unwrap();
        assert!(timeout(Duration::from_millis(300), orphan.outlast(&mut orders)).await.is_err());
        assert!(child.try_wait().unwrap().is_none());
        // Its child too.
        let status = Command::new("pkill").args(["--parent", &child.id().to_string()]).status().unwrap();
        child.wait().unwrap();
        assert!(status.success());
    }

    #[tokio::test]
    async fn a_listener_that_ignores_its_interrupt_is_killed() {
        let (mut child, orphan) = listener(Phase::Busy);
        let (_orders_in, mut orders) = mpsc::channel(8);
        Orphan { kill_at: Some(Instant::now()), ..orphan }.outlast(&mut orders).await;
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    }
}
