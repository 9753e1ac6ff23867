//! One managed instance's life, as a task of its own.
//!
//! ```text
//!  placeholder -> (capacity?) -> id, PROVISIONING -> STAGING -> RUNNING -> switched off -> TERMINATED, or repaired:
//!       ^                                                                                   same name, new id
//!       '---------------------------------------------------------------------------------------'
//!  deleted at any point -> STOPPING -> gone
//! ```

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{sync::mpsc::UnboundedReceiver, time::sleep};

use super::{
    Inner,
    machines::{Boot, Inert, Machine},
    metadata::{Metadata, Subject},
    state::{Command, Doing, Status, View, Vm, new_id, now},
};
use crate::server::Server;

/// Why an instance stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Somebody asked.
    Told(Command),
    /// It switched itself off.
    Exited,
    /// It could not be created, and that is not tried again.
    GaveUp,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Gone,
    /// Again, under the same name.
    Again,
}

struct Life {
    sim: Arc<Inner>,
    sequence: u64,
    commands: UnboundedReceiver<Command>,
    machine: Box<dyn Machine>,
    metadata: Option<(Arc<Metadata>, Server)>,
}

/// Lives until the instance is gone.
pub(crate) async fn live(sim: Arc<Inner>, sequence: u64, commands: UnboundedReceiver<Command>) {
    let mut life = Life { sim, sequence, commands, machine: Box::new(Inert), metadata: None };
    while life.once().await == End::Again {
        life.change(|view| (view.doing, view.id, view.status) = (Doing::Recreating, None, None));
        sleep(life.sim.options.delays.repair).await;
    }
    life.with(Vm::vanish);
}

impl Life {
    async fn once(&mut self) -> End {
        let cause = match self.start().await {
            ControlFlow::Break(cause) => cause,
            ControlFlow::Continue(()) => self.run().await,
        };
        self.end(cause).await
    }

    /// From the placeholder to a running machine.
    async fn start(&mut self) -> ControlFlow<Cause> {
        let delays = self.sim.options.delays;
        self.pass(delays.create).await?;
        self.allocate().await?;
        self.pass(delays.provision).await?;
        self.change(|view| view.status = Some(Status::Staging));
        self.pass(delays.stage).await?;
        self.boot().await;
        ControlFlow::Continue(())
    }

    /// Lets time pass, unless something is asked of the instance.
    async fn pass(&mut self, time: Duration) -> ControlFlow<Cause> {
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => ControlFlow::Break(Cause::Told(command)),
            () = sleep(time) => ControlFlow::Continue(()),
        }
    }

    /// Tries to get capacity until there is some: in the first zone of the group that has it.
    async fn allocate(&mut self) -> ControlFlow<Cause> {
        loop {
            if self.try_allocate() {
                return ControlFlow::Continue(());
            }
            if !self.sim.options.create_retries {
                return ControlFlow::Break(Cause::GaveUp);
            }
            self.pass(self.sim.options.delays.retry).await?;
        }
    }

    fn try_allocate(&self) -> bool {
        let project = &self.sim.options.project;
        let mut world = self.sim.world();
        let Some(vm) = world.vms.get(&self.sequence) else { return true };
        let key = vm.group.clone();
        let zones = world.groups.get(&key).map(|group| group.zones.clone()).unwrap_or_default();
        let refusals = zones.iter().map(|zone| (zone, world.refusal(project, zone, vm)));
        let mut refused = None;
        let mut chosen = None;
        for (zone, refusal) in refusals {
            match refusal {
                Some(attempt) => refused = Some(attempt),
                None => {
                    chosen = Some(zone.clone());
                    break;
                }
            }
        }
        if let Some(zone) = chosen {
            let Some(vm) = world.vms.get_mut(&self.sequence) else { return true };
            vm.created = now();
            vm.change(|view| {
                *view = View {
                    id: Some(new_id()),
                    status: Some(Status::Provisioning),
                    doing: view.doing,
                    zone,
                    failed: None,
                };
            });
            return true;
        }
        let Some(attempt) = refused else { return true };
        if vm.view.failed.as_ref() != Some(&attempt) {
            let error = crate::compute::managers::listed_error(project, vm, &attempt);
            if let Some(group) = world.groups.get_mut(&key) {
                group.errors.push(error);
            }
            if let Some(vm) = world.vms.get_mut(&self.sequence) {
                vm.change(|view| view.failed = Some(attempt));
            }
        }
        false
    }

    async fn boot(&mut self) {
        let (Some(boot), hung) = (self.power_on().await, self.sim.take_hung_boot()) else { return };
        self.change(|view| (view.status, view.doing) = (Some(Status::Running), Doing::None));
        if !hung {
            self.machine = self.sim.options.machines.boot(boot).await;
            let console = self.machine.console();
            self.with(|vm| vm.console = console);
        }
    }

    /// Starts the instance's metadata server and says what boots.
    async fn power_on(&mut self) -> Option<Boot> {
        let (subject, attributes, group) = self.describe()?;
        let sim = &self.sim;
        let metadata =
            Metadata::new(subject.clone(), Arc::clone(&sim.identity), Arc::clone(&sim.skew), attributes.clone());
        let metadata = Arc::new(metadata);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(Arc::clone(&metadata).router(), address, sim.metadata_faults.clone()).await;
        let server = server.inspect_err(|error| tracing::error!(%error, "no port for a metadata server")).ok()?;
        let metadata_host = server.address();
        self.metadata = Some((Arc::clone(&metadata), server));
        self.with(|vm| vm.metadata = Some((metadata, metadata_host)));
        let Subject { name, id, zone, project, .. } = subject;
        Some(Boot { name, id, zone, project, group, metadata_host, attributes })
    }

    fn describe(&self) -> Option<(Subject, BTreeMap<String, String>, String)> {
        let options = &self.sim.options;
        let world = self.sim.world();
        let vm = world.vms.get(&self.sequence)?;
        let (place, group) = &vm.group;
        let email = vm.properties.pointer("/serviceAccounts/0/email").and_then(Value::as_str);
        let subject = Subject {
            name: vm.name.clone(),
            id: vm.view.id?,
            zone: vm.view.zone.clone(),
            project: options.project.clone(),
            project_number: options.project_number,
            service_account: email.map(str::to_owned),
            token: format!("vm-{}", self.sim.token),
            created: vm.created.as_second(),
        };
        let number = options.project_number;
        let mut attributes = template_attributes(&vm.properties);
        let created_by = format!("projects/{number}/{}/instanceGroupManagers/{group}", place.path());
        attributes.insert("created-by".to_owned(), created_by);
        let template = super::state::below_project(&vm.template).unwrap_or_default();
        attributes.insert("instance-template".to_owned(), format!("projects/{number}/{template}"));
        Some((subject, attributes, group.clone()))
    }

    async fn run(&mut self) -> Cause {
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => Cause::Told(command),
            () = self.machine.exited() => Cause::Exited,
        }
    }

    /// Switches off, and stays off until the end unless the group repairs it.
    async fn end(&mut self, cause: Cause) -> End {
        let delays = self.sim.options.delays;
        match cause {
            Cause::GaveUp => {
                self.shrink();
                return End::Gone;
            }
            Cause::Told(Command::Delete) => {
                self.power_off().await;
                sleep(delays.delete).await;
                return End::Gone;
            }
            Cause::Told(Command::Recreate) => {
                self.change(|view| view.doing = Doing::Recreating);
                self.power_off().await;
                return End::Again;
            }
            Cause::Told(Command::DeleteElsewhere) => {
                self.power_off().await;
                self.change(|view| (view.id, view.status, view.doing) = (None, None, Doing::None));
            }
            Cause::Told(Command::Preempt) => {
                if let Some(cause) = self.notice().await {
                    return Box::pin(self.end(cause)).await;
                }
                self.terminate().await;
                if self.sim.deletes_on_preemption(self.sequence) {
                    self.change(|view| (view.id, view.status) = (None, None));
                }
            }
            Cause::Told(Command::PowerOff) | Cause::Exited => self.terminate().await,
        }
        if self.sim.repairs(self.sequence) {
            return End::Again;
        }
        self.wait_while_off().await
    }

    /// Preemption: the notice, the power button, and the time until the power goes.
    async fn notice(&mut self) -> Option<Cause> {
        if let Some((metadata, _)) = &self.metadata {
            metadata.preempt();
        }
        self.change(|view| view.status = Some(Status::Stopping));
        self.machine.soft_off().await;
        tokio::select! {
            Some(command @ (Command::Delete | Command::Recreate)) = self.commands.recv() => Some(Cause::Told(command)),
            () = self.machine.exited() => None,
            () = sleep(self.sim.options.delays.preemption) => None,
        }
    }

    async fn terminate(&mut self) {
        self.change(|view| view.status = Some(Status::Stopping));
        self.power_off().await;
        self.change(|view| (view.status, view.doing) = (Some(Status::Terminated), Doing::None));
    }

    async fn power_off(&mut self) {
        self.machine.power_off().await;
        let console = self.machine.console().and_then(|path| std::fs::read(path).ok());
        self.machine = Box::new(Inert);
        self.metadata = None;
        self.with(|vm| {
            vm.console = None;
            vm.transcript = console.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        });
    }

    async fn wait_while_off(&mut self) -> End {
        loop {
            match self.commands.recv().await {
                Some(Command::Delete) => {
                    sleep(self.sim.options.delays.delete).await;
                    return End::Gone;
                }
                Some(Command::Recreate) => return End::Again,
                Some(Command::DeleteElsewhere) => {
                    self.change(|view| (view.id, view.status) = (None, None));
                    if self.sim.repairs(self.sequence) {
                        return End::Again;
                    }
                }
                Some(Command::PowerOff | Command::Preempt) => {}
                None => return End::Gone,
            }
        }
    }

    fn shrink(&self) {
        let mut world = self.sim.world();
        let key = world.vms.get(&self.sequence).map(|vm| vm.group.clone());
        if let Some(group) = key.and_then(|key| world.groups.get_mut(&key)) {
            group.target -= 1;
        }
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        self.with(|vm| {
            // Once it is being deleted, nothing else is done about it.
            let deleting = vm.view.doing == Doing::Deleting;
            vm.change(|view| {
                change(view);
                if deleting {
                    view.doing = Doing::Deleting;
                }
            });
        });
    }

    fn with(&self, act: impl FnOnce(&mut Vm)) {
        if let Some(vm) = self.sim.world().vms.get_mut(&self.sequence) {
            act(vm);
        }
    }
}

/// The metadata items of template properties.
pub(crate) fn template_attributes(properties: &Value) -> BTreeMap<String, String> {
    let items = properties.pointer("/metadata/items").and_then(Value::as_array).into_iter().flatten();
    let text = |item: &Value, name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
    items.filter_map(|item| Some((text(item, "key")?, text(item, "value").unwrap_or_default()))).collect()
}

impl Inner {
    /// Whether preemption deletes the instance rather than stopping it.
    fn deletes_on_preemption(&self, sequence: u64) -> bool {
        let world = self.world();
        let action =
            world.vms.get(&sequence).and_then(|vm| vm.properties.pointer("/scheduling/instanceTerminationAction"));
        action.is_some_and(|action| action == "DELETE")
    }
}
