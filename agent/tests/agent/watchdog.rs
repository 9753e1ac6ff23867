//! What systemd is told of a running agent, which it starts anew when that falls silent.

use std::os::unix::fs::PermissionsExt;

use tokio::{net::UnixDatagram, time::timeout};

use crate::{
    operator::PATIENCE,
    world::{RUNNER, World},
};

/// A search path on which the machine's programs do nothing.
fn idle_programs(world: &World) -> String {
    let path = world.dir.path().join("programs");
    std::fs::create_dir(&path).unwrap();
    for program in ["nft", "systemctl"] {
        std::fs::write(path.join(program), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path.join(program), PermissionsExt::from_mode(0o755)).unwrap();
    }
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn systemd_is_told_when_the_agent_is_ready_and_then_again_and_again_that_it_is_alive() {
    let world = World::new(RUNNER).await;
    let operator = world.operator().await;
    let path = world.dir.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    let environment = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("MIGLET_MACHINE", "systemd"),
        ("PATH", &idle_programs(&world)),
        // Or it would be written down for the machine that runs this.
        ("MIGLET_MAXIMUM_LIFETIME_SECONDS", "0"),
    ];
    let _agent = world.agent_with(&operator, &environment);
    for expected in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        let mut buffer = [0; 64];
        let count = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect(expected).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..count]), expected, "{:?}", world.log_lines());
    }
}
