//! What the agent is to be told: settings that changed, a drain, what a user asked for by annotation. Level-based: each
//! is compared with what the agent reports, so an order that was lost is repeated and one that holds is not.
//!
//! An order keeps its id while it is repeated (the agent does a repeated id once); a new wish gets a new one. Nothing here
//! ends a VM: what an agent refuses is told, once, as an event.

use std::time::Duration;

use jiff::Timestamp;

use super::{drain::cut, later, later_by, until};
use crate::{
    crd::{LogLevel, names},
    gateway::{
        report::{Ack, AgentState},
        sessions::AgentView,
    },
    vm::{
        memory::Sent,
        view::{Access, VmView},
    },
};

/// A job that runs may take its time.
const DRAIN: &str = "drain";
/// It may not: the second drain, which interrupts it, so that GitHub learns of its end before the machine is gone.
const ABORT: &str = "abort";
/// There is only one way to turn a machine off.
const SHUTDOWN: &str = "shutdown";
/// An order nobody answered is repeated after this.
const RETRY: Duration = Duration::from_secs(10);
/// How long diagnostics may take once they are promised.
const COLLECTING: Duration = Duration::from_secs(60);
/// How long an agent logs what an annotation says, unless it is told again. Short: an operator that is gone or an
/// annotation that was taken away must not leave a disk filling up.
pub const LOG_LEVEL_SECONDS: u32 = 600;
/// When it is told again.
const RENEW: Duration = Duration::from_secs(300);

/// What an order is about; of each, only the latest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Take no new work.
    Drain,
    /// Turn the machine off.
    Shutdown,
    /// How to work.
    Settings,
    /// What to log for a while.
    LogLevel,
    /// What helps to find a fault.
    Diagnostics,
}

impl Topic {
    /// For events and ids.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "Drain",
            Self::Shutdown => "Shutdown",
            Self::Settings => "Settings",
            Self::LogLevel => "LogLevel",
            Self::Diagnostics => "Diagnostics",
        }
    }
}

/// Something to tell an agent, or about what it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send it; under the id of before when it is a repetition.
    Send {
        /// What it is about.
        topic: Topic,
        /// What is wanted: a revision, a level, a user's id.
        want: String,
        /// The id it was sent under before.
        id: Option<String>,
    },
    /// Tell the user that the agent refused.
    TellRefusal {
        /// What it was about.
        topic: Topic,
        /// Why.
        detail: String,
    },
    /// Keep the diagnostics that came.
    Store {
        /// The user's id.
        want: String,
    },
}

impl Order {
    /// Take no new work, said for the first time.
    pub(super) fn drain() -> Self {
        Self::Send { topic: Topic::Drain, want: DRAIN.to_owned(), id: None }
    }

    /// Do not wait for the job, said for the first time.
    pub(super) fn abort() -> Self {
        Self::Send { topic: Topic::Drain, want: ABORT.to_owned(), id: None }
    }

    /// Turn the machine off, said for the first time.
    pub(super) fn shutdown() -> Self {
        Self::Send { topic: Topic::Shutdown, want: SHUTDOWN.to_owned(), id: None }
    }
}

/// What to tell now, and when to look again.
pub(super) fn next(view: &VmView, now: Timestamp) -> (Option<Order>, Option<Duration>) {
    let Some(agent) = view.agent.as_ref().filter(|agent| agent.connected) else { return (None, None) };
    let newer = [settings(view, agent), log_level(view, agent, now), diagnostics(view)];
    // An agent of minor 0 knows how to drain, and nothing else in here.
    let wishes = [drain(view, agent, now)].into_iter().chain(newer.into_iter().filter(|_| agent.minor > 0));
    let mut soonest = None;
    for wish in wishes.flatten() {
        match state(view, agent, &wish, now) {
            State::Act(order) => return (Some(order), None),
            State::Wait(time) => soonest = Some(soonest.map_or(time, |soonest: Duration| soonest.min(time))),
            State::Settled => {}
        }
    }
    (None, soonest)
}

/// Something that should hold and does not yet.
struct Wish {
    topic: Topic,
    want: String,
    /// How long an order that was acked has to show its effect.
    patience: Duration,
}

enum State {
    Act(Order),
    Wait(Duration),
    Settled,
}

fn state(view: &VmView, agent: &AgentView, wish: &Wish, now: Timestamp) -> State {
    let Wish { topic, want, patience } = wish;
    let send = |id| State::Act(Order::Send { topic: *topic, want: want.clone(), id });
    let Some(sent) = sent(view, *topic).filter(|sent| sent.want == *want) else { return send(None) };
    if *topic == Topic::Diagnostics
        && agent.diagnostics.as_ref().is_some_and(|found| found.complete && found.command_id == sent.id)
    {
        return State::Act(Order::Store { want: want.clone() });
    }
    match agent.acks.get(&sent.id) {
        Some(Ack { refusal: Some(_) }) if sent.settled => State::Settled,
        Some(Ack { refusal: Some(detail) }) => State::Act(Order::TellRefusal { topic: *topic, detail: detail.clone() }),
        // To log again what the settings say undoes itself no more than a drain does: nothing shows that it holds.
        Some(Ack { refusal: None }) if *topic == Topic::Drain || want.is_empty() || sent.settled => State::Settled,
        // It was done and is not so any more: the agent started again since.
        Some(Ack { refusal: None }) if now >= later(sent.at, *patience) => send(None),
        Some(Ack { refusal: None }) => State::Wait(until(later(sent.at, *patience), now)),
        None if now >= later(sent.at, RETRY) => send(Some(sent.id.clone())),
        None => State::Wait(until(later(sent.at, RETRY), now)),
    }
}

fn sent(view: &VmView, topic: Topic) -> Option<&Sent> {
    view.memory.orders.get(&topic)
}

/// A busy agent learns how long its job may still take; an idle one only when its registration is out of our reach,
/// because to stop its listener first would leave a registration that GitHub may still give a job.
fn drain(view: &VmView, agent: &AgentView, now: Timestamp) -> Option<Wish> {
    let requested = view.deletion_requested()?;
    let want = if cut(view, requested, now) { ABORT } else { DRAIN };
    let unreachable = view.access == Access::Lost && !view.memory.registration_gone;
    let wanted = agent.report.exit.is_none() && (agent.report.state == AgentState::Busy || unreachable);
    wanted.then(|| Wish { topic: Topic::Drain, want: want.to_owned(), patience: RETRY })
}

/// Whether the agent was not told yet that its job is not waited for.
pub(super) fn abort_unsaid(view: &VmView) -> bool {
    sent(view, Topic::Drain).is_none_or(|sent| sent.want != ABORT)
}

/// Seconds a job may still take under such a drain of a VM whose deletion was requested then.
#[must_use]
pub fn drain_deadline(want: &str, requested: Option<Timestamp>, grace: i32, now: Timestamp) -> u32 {
    let requested = requested.filter(|_| want != ABORT);
    let left = requested.map_or(Duration::ZERO, |requested| until(later_by(requested, grace), now));
    // 0 would mean that there is no deadline.
    u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn settings(view: &VmView, agent: &AgentView) -> Option<Wish> {
    // Of a pool that was not looked at yet, nothing is known to be wanted.
    let wanted = Some(&view.settings.revision).filter(|revision| !revision.is_empty())?;
    let differs = agent.report.settings_revision != *wanted && agent.report.exit.is_none();
    differs.then(|| Wish { topic: Topic::Settings, want: wanted.clone(), patience: RETRY })
}

fn log_level(view: &VmView, agent: &AgentView, now: Timestamp) -> Option<Wish> {
    let wish = |want: &str| Some(Wish { topic: Topic::LogLevel, want: want.to_owned(), patience: RETRY });
    let before = sent(view, Topic::LogLevel);
    let Some(level) = view.annotation(names::LOG_LEVEL).and_then(LogLevel::parse) else {
        // Back to the settings at once; if nobody can be told, it happens by itself.
        return before.filter(|before| !(before.want.is_empty() && before.settled)).and_then(|_| wish(""));
    };
    let fresh = before.filter(|sent| sent.want == level.as_str() && now < later(sent.at, RENEW));
    let holds = fresh.is_some_and(|sent| agent.acks.contains_key(&sent.id) && agent.report.log_level == Some(level));
    if holds { None } else { wish(level.as_str()) }
}

fn diagnostics(view: &VmView) -> Option<Wish> {
    let id = view.annotation(names::COLLECT_DIAGNOSTICS).filter(|id| is_label(id))?;
    let stored = view.memory.diagnostics_stored.as_deref() == Some(id);
    (!stored).then(|| Wish { topic: Topic::Diagnostics, want: id.to_owned(), patience: COLLECTING })
}

/// When an annotation's level has to be told again.
pub(super) fn renewal(view: &VmView, now: Timestamp) -> Option<Duration> {
    view.annotation(names::LOG_LEVEL)?;
    sent(view, Topic::LogLevel).map(|sent| until(later(sent.at, RENEW), now))
}

/// What can be part of an object's name.
fn is_label(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=40).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') && !text.ends_with('-')
}
