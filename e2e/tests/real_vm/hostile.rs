//! Jobs that mean harm. They may waste their own VM; they gain nothing, and the VM's end is still told.

use miglet_e2e::{
    github::Job,
    runner::wire::{Conclusion, JobFault},
    world::World,
};
use serde_json::json;

use crate::scene::{Result, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_no_identity_no_key_and_no_second_registration_and_its_noise_and_lies_cost_nothing() -> Result {
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let flood = Some(JobFault::Flood(100_000));
    let id = scene.busy_with(Job { fault: flood, ..World::job(include_str!("curious.sh")) }).await?;
    scene.root("touch ~runner/gate").await?;
    let job = scene.ended(id).await?;
    assert_eq!(job.conclusion, Some(Conclusion::Succeeded), "{}", scene.explained(&job.output));
    let said: Vec<&str> = job.output.lines().collect();
    let nothing = ["token=[]", "attributes=[]", "key=[]", "state=[]", "agent=[]"];
    let shut = ["agent.sock: shut", "shim.sock: shut", "firewall: shut", "service: shut", "kill: shut"];
    let ports = ["port 53: open", "port 80: shut", "port 123: open", "port 443: shut"];
    let done = ["gigabyte: written", "lines: written", ".runner: changed", "hook: called 10000"];
    for line in nothing.iter().chain(&shut).chain(&ports).chain(&done) {
        assert!(said.contains(line), "{line:?} is not in:\n{}", job.output);
    }
    let last = scene.epitaph().await?;
    assert_eq!(last.pointer("/status/job/result"), Some(&json!("Succeeded")), "{last:#}");
    assert_eq!(last.pointer("/status/job/repository"), Some(&json!("acme/app")), "{last:#}");
    assert_eq!(scene.world.github.registered().len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fills_the_disk_loses_neither_its_result_nor_its_number_when_the_agent_dies_before_it_is_told()
-> Result {
    /// Root itself finds no room.
    const FULL: &str = "head -c 1M /dev/zero > /var/tmp/$RANDOM";
    /// What it told, as the agent numbers it.
    const TOLD: &str = "grep --only-matching 'EVENT_KIND_JOB_COMPLETED.*sequence=[0-9]*' /run/miglet/agent.log";
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let id = scene.busy(include_str!("fill.sh")).await?;
    let look = async || scene.root(FULL).await.is_err();
    scene.until("the disk to be full", look, |full| *full).await?;
    scene.cut_off().await?;
    scene.root("touch /run/gate").await?;
    let job = scene.ended(id).await?;
    assert!(job.output.contains("left on the disk: 0"), "{}", scene.explained(&job.output));
    let told = scene
        .until("the agent's event", async || scene.root(TOLD).await.unwrap_or_default(), |told| !told.is_empty())
        .await?;
    scene.kill_agent().await?;
    scene.reconnect().await?;
    scene.event(&["acme/app · build ended"]).await?;
    let last = scene.epitaph().await?;
    assert_eq!(last.pointer("/status/job/result"), Some(&json!("Succeeded")), "{last:#}");
    let logs = scene.world.operator_logs();
    let heard: Vec<&str> =
        logs.lines().filter(|line| line.contains("Agent's event") && line.contains("job_completed")).collect();
    let number = told.rsplit_once("sequence=").map(|(_, number)| format!(" sequence={number} ")).unwrap_or_default();
    assert!(heard.len() == 1 && heard[0].contains(&number), "{told}: {heard:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_all_memory_ends_and_its_supervisors_do_not() -> Result {
    /// Agent, supervisor and listener, each with what it is worth when memory runs out.
    const ALIVE: &str = "for pid in $(systemctl show --property MainPID --value miglet.service miglet-runner.service) \
                         $(pgrep -x Runner.Listener); do echo $pid $(< /proc/$pid/oom_score_adj); done";
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let id = scene.busy(include_str!("devour.sh")).await?;
    scene.begun().await?;
    let before = scene.root(ALIVE).await?;
    let scores: Vec<&str> = before.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
    assert_eq!(scores, ["-900", "-900", "0"], "{before}");
    let look = async || scene.root("ls ~runner/devoured").await.is_ok();
    scene.until("the end of what took the memory", look, |ended| *ended).await?;
    assert_eq!(scene.root(ALIVE).await?, before);
    scene.root("touch ~runner/gate").await?;
    let job = scene.ended(id).await?;
    // By SIGKILL, which the kernel sends.
    assert!(job.output.contains("ended with 137"), "{}", scene.explained(&job.output));
    assert_eq!(job.conclusion, Some(Conclusion::Failed), "{}", scene.explained(&job.output));
    let last = scene.epitaph().await?;
    assert_eq!(last.pointer("/status/job/result"), Some(&json!("Failed")), "{last:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_no_identity_through_its_machine() -> Result {
    /// As Docker does it: a network of its own, forwarded under the machine's address.
    const CONTAINER: &str = "set -e; ip netns add box; ip link add outer type veth peer name inner netns box; \
                             ip address add 10.9.0.1/24 dev outer; ip link set outer up; \
                             ip -netns box address add 10.9.0.2/24 dev inner; ip -netns box link set inner up; \
                             ip -netns box route add default via 10.9.0.1; echo 1 > /proc/sys/net/ipv4/ip_forward; \
                             nft add table ip nat; \
                             nft add chain ip nat out '{ type nat hook postrouting priority srcnat; }'; \
                             nft add rule ip nat out ip saddr 10.9.0.0/24 masquerade";
    const ASK: &str = "ip netns exec box curl --silent --max-time 10 --header 'Metadata-Flavor: Google' \
                       'http://169.254.169.254/computeMetadata/v1/instance/attributes/miglet-audience' || echo nothing";
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    scene.root(CONTAINER).await?;
    assert_eq!(scene.root(ASK).await?, "nothing");
    assert_ne!(scene.root("nft list chain inet miglet forward | grep -c 'packets [1-9]'").await?, "0");
    // It is the agent's rule that keeps it away, and nothing else.
    scene.root("nft delete table inet miglet").await?;
    assert_eq!(scene.root(ASK).await?, "miglet-test");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_forks_without_end_and_kills_everything_it_may_is_told_as_lost() -> Result {
    const CROWDED: &str = "until (($(< /sys/fs/cgroup/system.slice/miglet-runner.service/pids.current) > 1000)); \
                           do sleep 1; done";
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let id = scene.busy(include_str!("massacre.sh")).await?;
    scene.begun().await?;
    scene.root(CROWDED).await?;
    // A thousand processes have no more of the processor than the agent.
    let status = scene.root("timeout 20 miglet status").await?;
    assert!(status.contains("Operator: connected"), "{}", scene.explained(&status));
    scene.root("touch /run/gate").await?;
    scene.event(&["JobLost"]).await?;
    scene.epitaph().await?;
    assert_ne!(scene.ended(id).await?.conclusion, Some(Conclusion::Succeeded));
    Ok(())
}
