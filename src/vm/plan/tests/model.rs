//! Any order of events against a model of the truth: what the plan may never do, and that it always comes to an end.

use proptest::prelude::*;

use super::*;
use crate::{
    gateway::report::Ack,
    vm::{
        memory::Sent,
        plan::{Order, Topic},
    },
};

/// What happens to a VM from outside, or to the process that plans.
#[derive(Clone, Copy, Debug)]
enum Event {
    Tick(u16),
    List,
    StaleList,
    Run,
    Call,
    Hear,
    Cut,
    JobComes,
    JobEnds,
    PowerOff,
    Delete,
    Restart,
    ForgeDown,
    ForgeUp,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1_u16..90).prop_map(Event::Tick),
        4 => Just(Event::List),
        1 => Just(Event::StaleList),
        3 => Just(Event::Run),
        3 => Just(Event::Call),
        2 => Just(Event::Hear),
        1 => Just(Event::Cut),
        3 => Just(Event::JobComes),
        2 => Just(Event::JobEnds),
        1 => Just(Event::PowerOff),
        1 => Just(Event::Delete),
        1 => Just(Event::Restart),
        1 => Just(Event::ForgeDown),
        1 => Just(Event::ForgeUp),
    ];
    prop::collection::vec(event, 1..60)
}

/// The truth, and the view this process has of it.
struct World {
    now: i64,
    view: VmView,
    machine: Option<Power>,
    /// A runner GitHub knows, and whether it has a job.
    runner: Option<bool>,
    agent: Report,
    connected: bool,
    configs: u32,
    forge: bool,
    released: bool,
}

impl World {
    fn new() -> Self {
        let agent = Report { state: AgentState::Ready, ..Report::default() };
        let (mut view, configs) = (view(), 0);
        view.settings.revision = "new".into();
        Self {
            now: 1,
            view,
            machine: None,
            runner: None,
            agent,
            connected: false,
            configs,
            forge: true,
            released: false,
        }
    }

    fn job_runs(&self) -> bool {
        self.runner == Some(true) && self.machine == Some(Power::Running)
    }

    fn takes_jobs(&self) -> bool {
        let idle = self.runner == Some(false) && self.agent.state == AgentState::Idle;
        idle && self.machine == Some(Power::Running)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(seconds) => self.now += i64::from(seconds),
            Event::List => self.list(self.machine),
            Event::StaleList => self.list(self.machine.map(|_| Power::Starting)),
            Event::Run if self.machine == Some(Power::Starting) => self.machine = Some(Power::Running),
            Event::Call if self.machine == Some(Power::Running) => self.call(),
            Event::Hear => self.hear(),
            Event::Cut => self.cut(),
            Event::JobComes if self.takes_jobs() => {
                self.runner = Some(true);
                self.agent.state = AgentState::Busy;
            }
            Event::JobEnds if self.job_runs() => {
                self.runner = None;
                self.agent.state = AgentState::Ended;
                self.agent.exit = Some(Exit { kind: ExitKind::JobDone, code: 0, detail: String::new() });
            }
            Event::PowerOff if self.machine == Some(Power::Running) => {
                self.machine = Some(Power::Down);
                // GitHub notices in its own time; here at once.
                self.runner = self.runner.map(|_| false);
                self.cut();
            }
            Event::Delete => {
                self.view.vm.metadata.deletion_timestamp.get_or_insert(KubeTime(at(self.now)));
            }
            Event::Restart => {
                self.view.memory = Memory::default();
                self.view.agent = None;
                self.connected = false;
                self.view.leading_since = at(self.now);
                self.view.presence = Presence::Unknown;
            }
            Event::ForgeDown => self.forge = false,
            Event::ForgeUp => self.forge = true,
            _ => {}
        }
        self.view.access = match (self.forge, &self.view.access) {
            (false, _) => Access::Blocked("down".into()),
            (true, Access::Usable { seen }) => Access::Usable { seen: *seen },
            (true, _) => Access::Usable { seen: None },
        };
    }

    fn list(&mut self, shown: Option<Power>) {
        self.now += 1;
        let entry = shown.map(instance);
        let marked = VmView::status(&self.view).create_requested_time.is_some();
        if marked {
            self.view.memory.listed(at(self.now), entry.as_ref());
        }
        self.view.presence = match (entry, self.view.memory.absent_since) {
            (Some(instance), _) => Presence::Present(instance),
            (None, Some(first)) => Presence::Absent { first, last: at(self.now) },
            (None, None) => Presence::Unknown,
        };
    }

    /// The gateway: first contact binds, a later one is a reconnect; a VM on its way out is not bound.
    fn call(&mut self) {
        let deleting = self.view.deletion_requested().is_some();
        let bound = VmView::status(&self.view).agent.is_some();
        if deleting && !bound {
            return;
        }
        self.view.memory.saw_unbound |= !bound;
        if !bound {
            let built = VmView::status(&super::view().bound(AgentState::Ready));
            self.view = self.view.clone().status(|s| {
                (s.agent, s.instance, s.runner) = (built.agent, built.instance, built.runner);
            });
        }
        self.connected = true;
        self.hear();
    }

    fn hear(&mut self) {
        if !self.connected {
            return;
        }
        let now = at(self.now);
        let before = self.view.agent.as_ref().and_then(|agent| agent.idle_since);
        let acks = self.view.agent.as_ref().map(|agent| agent.acks.clone());
        let quiet = matches!(self.agent.state, AgentState::Idle | AgentState::Ready);
        self.view.agent = Some(AgentView {
            connected: true,
            last_heard: now,
            idle_since: before.or(Some(now)).filter(|_| quiet),
            result_since: None,
            events: Ledger::default(),
            version: "1".into(),
            minor: 1,
            report: self.agent.clone(),
            acks: acks.unwrap_or_default(),
            ..AgentView::default()
        });
    }

    fn cut(&mut self) {
        self.connected = false;
        if let Some(agent) = &mut self.view.agent {
            agent.connected = false;
        }
    }

    /// Plans and acts until there is nothing to do now.
    fn settle(&mut self) {
        for _ in 0..20 {
            let now = at(self.now);
            let plan = plan(&self.view, now, &timing());
            let status = crate::vm::status::status(&self.view, &plan, now, &timing());
            self.view.vm.status = Some(status);
            if self.released || plan.step == Step::Wait {
                return;
            }
            self.act(&plan.step);
        }
    }

    fn act(&mut self, step: &Step) {
        let now = at(self.now);
        match step {
            Step::Create => {
                assert!(self.machine.is_none(), "a second instance is asked for");
                self.machine = Some(Power::Starting);
                self.view.memory.creation = Some(Creation::Accepted { at: now });
            }
            Step::Register { .. } => self.register(),
            Step::ClearName { .. } => {
                let removed = self.runner.take().map(|_| Deletion::Deleted);
                self.view.memory.name_looked(now, removed, at(0));
            }
            Step::Look { id } => {
                let runner = |busy| Runner { id: *id, name: "r".into(), online: self.connected, busy };
                self.view.memory.looked(now, self.runner.map(runner));
            }
            Step::FindJob(_) => self.view.memory.job_looked = true,
            Step::CheckScope => self.view.access = Access::Usable { seen: Some(now) },
            Step::Deregister { .. } => self.deregister(),
            Step::NoteRegistrationGone => {
                assert!(self.runner.is_none(), "a live registration is taken for gone");
                self.view.memory.registration_gone = true;
            }
            Step::Tell(order) => self.tell(order),
            Step::AskLastWords => self.view.memory.last_words = Some(String::new()),
            Step::DeleteInstance(_) => {
                assert!(!self.job_runs(), "a job is cut off");
                self.machine = None;
                self.view.memory.delete_asked = Some(now);
                self.cut();
            }
            Step::End(_) => self.happen(Event::Delete),
            Step::Release { left_behind } => {
                assert!(self.machine.is_none(), "an instance is left behind");
                assert!(self.runner.is_none() || *left_behind, "a registration is left behind without a word");
                self.released = true;
            }
            Step::Wait => {}
        }
    }

    /// The agent hears it at once, and says so.
    fn tell(&mut self, order: &Order) {
        let Order::Send { topic, want, .. } = order else { return };
        let sent = Sent { want: want.clone(), id: format!("{topic:?}"), at: at(self.now), settled: false };
        self.view.memory.orders.insert(*topic, sent);
        if *topic == Topic::Settings {
            self.agent.settings_revision = want.clone();
        }
        self.hear();
        if let Some(agent) = &mut self.view.agent {
            agent.acks.insert(format!("{topic:?}"), Ack { refusal: None });
        }
    }

    fn register(&mut self) {
        assert_eq!(self.configs, 0, "a second registration is sent to an instance");
        self.configs += 1;
        self.runner = Some(false);
        self.view.memory.registering();
        self.view.memory.config_sent = Some(at(self.now));
        self.view = self.view.clone().status(|s| {
            if let Some(runner) = &mut s.runner {
                runner.id = Some(RUNNER);
            }
        });
        self.agent.state = AgentState::Idle;
        self.agent.runner_name = "linux-x-1".into();
        self.hear();
    }

    fn deregister(&mut self) {
        let outcome = match self.runner {
            Some(true) => Deletion::Busy,
            Some(false) => Deletion::Deleted,
            None => Deletion::NotFound,
        };
        if outcome == Deletion::Deleted {
            self.runner = None;
            self.view.memory.registration_gone = true;
        }
        self.view.memory.deletion = Some((at(self.now), outcome));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_job_is_cut_nothing_is_made_twice_and_every_life_ends(events in events()) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
            world.settle();
        }
        // Now the world behaves: the job ends, the agent speaks, GitHub answers, lists come.
        for event in [Event::ForgeUp, Event::Call, Event::JobEnds, Event::Hear, Event::Delete] {
            world.happen(event);
        }
        for _ in 0..40 {
            for event in [Event::Tick(40), Event::Hear, Event::List] {
                world.happen(event);
                world.settle();
            }
        }
        prop_assert!(world.released, "held for ever: {:?}", plan(&world.view, at(world.now), &timing()));
    }

    #[test]
    fn an_unchanged_world_is_planned_for_once(events in events()) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
            world.settle();
        }
        if !world.released {
            let (now, timing) = (at(world.now), timing());
            let again = plan(&world.view, now, &timing);
            prop_assert_eq!(&again, &plan(&world.view, now, &timing));
            let status = crate::vm::status::status(&world.view, &again, now, &timing);
            prop_assert_eq!(&status, &VmView::status(&world.view), "a second pass writes");
        }
    }
}
