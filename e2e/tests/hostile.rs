//! One hostile agent, on a VM of its own, against the real operator: its neighbours and the operator hardly notice.

use std::time::Duration;

use miglet_e2e::{
    stranger::Stranger,
    world::{Patience, World, WorldOptions},
};
use miglet_operator::crd::{Phase, RunnerVm};
use miglet_proto::v1::{AgentState, CommandAck, Event, EventKind, Hello, Job, Report, agent_message::Message};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpSocket};
use tonic::Code;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What the operator may grow by, in KiB: a few sessions' buffers, not what was sent at it.
const GROWTH: u64 = 64 * 1024;
/// Connections that say nothing.
const SILENT: usize = 1000;

/// Resident memory of the operator, in KiB.
fn memory(world: &World) -> Result<u64> {
    let operator = world.operators.first().ok_or("no operator")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", operator.id()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no figure")?.parse()?)
}

/// A pool `evil` whose one VM boots nothing, so that the stranger is its agent; and its name.
async fn hostile_vm(world: &World) -> Result<String> {
    world.compute.hung_boots(1);
    world.apply_pool("evil", 1, json!({"spec": {"github": {"labels": ["evil"]}}})).await?;
    let one = |vms: &std::result::Result<Vec<String>, kube::Error>| vms.as_ref().is_ok_and(|vms| vms.len() == 1);
    let booting = Patience::default().until("the VM", || world.in_phase(Phase::Booting), one).await??;
    booting.into_iter().next().ok_or_else(|| "no VM".into())
}

/// A report full of nonsense, in another state each time.
fn nonsense(round: usize) -> Report {
    let states = [AgentState::Idle, AgentState::JobRunning, AgentState::Ready, AgentState::Draining, AgentState::Error];
    let state = states.get(round % states.len()).copied().unwrap_or_default();
    let huge = format!("{round}\u{1b}[2J\u{0}{}", "\u{fffd}x".repeat(1500));
    let job = Job { name: huge.clone(), repository: huge.clone(), workflow: huge.clone(), ..Job::default() };
    let job = (state == AgentState::JobRunning).then_some(job);
    Report { state: state.into(), runner_name: huge.clone(), error: huge, job, ..Report::default() }
}

/// Floods until the operator ends the session; returns why it did.
async fn flood(world: &World, stranger: &Stranger, vm: &str) -> Result<Code> {
    let mut voice = world.meet(stranger, &world.token(vm, stranger)?).await?;
    for round in 0..5000 {
        // No crash: that would end its VM, and the test with it.
        let kind = if round % 2 == 0 { EventKind::JobCompleted } else { EventKind::Error };
        let event = Event { sequence: round as u64 + 1, kind: kind.into(), ..Event::default() };
        if !voice.report(nonsense(round)).await || !voice.say(Message::Event(event)).await {
            break;
        }
    }
    Ok(voice.end().await)
}

/// Messages no agent sends; each ends its session or is ignored.
async fn odd_messages(world: &World, stranger: &Stranger, vm: &str) -> Result {
    let huge = Report { error: "x".repeat(1 << 20), ..Report::default() };
    let ack = CommandAck { command_id: "i".repeat(50_000), outcome: -7, detail: "\u{0}".repeat(10_000) };
    for (odd, end) in [
        (Message::Report(huge), Code::OutOfRange),
        (Message::Hello(Hello::default()), Code::InvalidArgument),
        (Message::Hello(stranger.hello("again")), Code::InvalidArgument),
    ] {
        let mut voice = world.meet(stranger, &world.token(vm, stranger)?).await?;
        voice.say(Message::Ack(ack.clone())).await;
        voice.say(odd).await;
        assert_eq!(voice.end().await, end);
    }
    Ok(())
}

/// Bytes that are no protocol, before and after the handshake.
async fn bad_bytes(world: &World, stranger: &Stranger) -> Result {
    for _ in 0..20 {
        let mut plain = TcpSocket::new_v4()?.connect(world.gateway()).await?;
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let mut tls = stranger.dial(world.gateway(), world.ca()).await?;
        // It may be closed while we write.
        drop(tls.write_all(&[0xff; 16 * 1024]).await);
    }
    Ok(())
}

/// Connections that say nothing, from an address of the attacker's own.
async fn silent_connections(world: &World) -> Result<Vec<tokio::net::TcpStream>> {
    let gateway = world.operators.first().ok_or("no operator")?.gateway();
    let mut held = Vec::new();
    for _ in 0..SILENT {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 2], 0).into())?;
        held.push(socket.connect(gateway).await?);
    }
    Ok(held)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_agent_costs_its_neighbours_and_the_operator_next_to_nothing() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let vm = hostile_vm(&world).await?;
    let stranger = Stranger::new()?;
    let mut voice = world.meet(&stranger, &world.token(&vm, &stranger)?).await?;
    assert!(voice.next(Duration::from_secs(15)).await?.is_some(), "it gets its registration like any other");
    world.apply_pool("linux", 2, json!({})).await?;
    let neighbours = world.idle("linux", 2).await?;
    let before = memory(&world)?;
    let id = world.github.queue_job(World::job("sleep 4; echo undisturbed"));

    let held = silent_connections(&world).await?;
    for _ in 0..20 {
        assert_eq!(flood(&world, &stranger, &vm).await?, Code::ResourceExhausted, "a flood ends its session");
    }
    odd_messages(&world, &stranger, &vm).await?;
    bad_bytes(&world, &stranger).await?;
    let peak = memory(&world)?;

    let job = world.github.wait_job(id, Patience::default().0).await?;
    assert!(!job.lost && job.output.contains("undisturbed"), "{job:?}");
    let ended = |name: &&String| {
        let log = world.operators.iter().map(miglet_e2e::world::Operator::log).collect::<String>();
        let ran_it = job.runner_name.as_deref().is_some_and(|runner| runner.starts_with(name.as_str()));
        !ran_it && log.lines().any(|l| l.contains("session ended") && l.contains(name.as_str()))
    };
    assert_eq!(neighbours.iter().find(ended), None, "a neighbour lost its session");
    world.idle("linux", 2).await?;
    drop(held);
    assert!(peak < before + GROWTH, "the operator grew from {before} to {peak} KiB");
    assert!(world.refused("TooManyMessages").await? >= 20);
    assert!(world.refused("TooManyConnections").await? >= 800, "silent connections are capped");
    assert!(world.refused("BadHandshake").await? >= 20);
    let writes = world.plane.audit()?.into_iter().filter(|e| e.is_write() && e.resource == "runnervms" && e.name == vm);
    let writes: Vec<_> = writes.map(|e| format!("{} {}", e.verb, e.subresource)).collect();
    assert!(writes.len() <= 12, "writes for the hostile VM: {writes:?}");
    let status = serde_json::to_string(&world.api::<RunnerVm>().get(&vm).await?.status)?;
    assert!(status.len() < 4096 && !status.contains("[2J\\u0000"), "{} bytes: {status}", status.len());
    Ok(())
}
