//! The same while processes are killed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tonic::transport::Endpoint;
use vineyard_proto::csi::NodeUnpublishVolumeRequest;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_tests::commands::{Answer, Content};
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::watchdog::deadline;

use crate::pod::{Pod, recorded};
use crate::retainer::{Retainer, bill, charges, is_retained, requested, wait_until_retained};
use crate::{LIMIT, MIB, possible};

const CONTENT: Content = Content {
    seed: 1,
    len: 20 * MIB,
};

#[test]
fn an_absent_retainer_delays_unpublish_no_longer_than_said_and_takes_over_when_it_is_back()
-> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "an absent retainer");
    let (mut node, mut retainer) = Retainer::start(&["--hand-over-patience", "2000"])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, None)?;
    pod.start_client()?;
    pod.put(0, "kept", CONTENT)?;
    retainer.kill()?;
    let begin = Instant::now();
    pod.unpublish(&mut node, true)?;
    ensure!(begin.elapsed() >= Duration::from_secs(2), "it has waited");
    drop(pod);
    let billed = bill(&node, "data")?;
    ensure!(!is_retained(&billed, CONTENT.len), "{billed:?}");
    ensure!(requested(&node)? >= CONTENT.len, "requested all the same");
    let listed = charges(&node, "data")?;
    ensure!(listed["state"] == "waiting", "{listed}");
    ensure!(
        !listed["trouble"].as_str().unwrap_or_default().is_empty(),
        "{listed}"
    );
    // A driver that is restarted meanwhile finds it again.
    node.kill()?;
    node.start()?;
    retainer.run()?;
    wait_until_retained(&node, "data", CONTENT.len)?;
    let settled = || charges(&node, "data").is_ok_and(|it| it["state"] == "settled");
    ensure!(poll(LIMIT, settled), "{}", charges(&node, "data")?);
    Ok(())
}

#[test]
fn a_restarted_container_of_the_retainer_changes_no_bill() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "another container");
    let (mut node, mut retainer) = Retainer::start(&[])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, None)?;
    pod.start_client()?;
    pod.put(0, "kept", CONTENT)?;
    pod.unpublish(&mut node, true)?;
    let before = wait_until_retained(&node, "data", CONTENT.len)?;
    drop(pod);
    retainer.kill()?;
    retainer.run()?;
    let mut pod = Pod::start(&mut node, 2, Some("10MiB"))?;
    pod.start_client()?;
    pod.get(0, "kept", CONTENT)?;
    ensure!(bill(&node, "data")? == before);
    pod.put(
        0,
        "more",
        Content {
            seed: 2,
            len: 5 * MIB,
        },
    )?;
    pod.unpublish(&mut node, true)?;
    wait_until_retained(&node, "data", CONTENT.len + 5 * MIB)?;
    Ok(())
}

#[test]
fn a_driver_that_is_killed_at_any_moment_of_a_pods_end_hands_everything_over() -> Result<()> {
    possible!();
    let _limit = deadline(2 * LIMIT, "a killed driver");
    let (mut node, _retainer) = Retainer::start(&["--hand-over-patience", "2000"])?;
    for number in 1..=8_u32 {
        let delay = Duration::from_micros(u64::from(number - 1) * 1700);
        node.create("data", 64 * MIB)?;
        let mut pod = Pod::start(&mut node, number, None)?;
        pod.start_client()?;
        let answer = pod.put(0, "kept", CONTENT)?;
        ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
        pod.signal_sidecar(Signal::SIGTERM)?;
        std::thread::sleep(delay);
        node.kill()?;
        pod.clients.clear();
        node.start()?;
        let leaves = || {
            let record = recorded(&node, &pod.uid, "leaving");
            record.is_ok_and(|it| it.is_some())
        };
        ensure!(
            poll(LIMIT, leaves),
            "round {number}: nobody knows that it leaves"
        );
        pod.wait_for_sidecar()?;
        unpublish_and_kill(&mut node, &pod.uid, delay)?;
        pod.unpublish(&mut node, number % 2 == 0)?;
        drop(pod);
        wait_until_retained(&node, "data", CONTENT.len)?;
        let mut reader = Pod::start(&mut node, 100 + number, None)?;
        reader.start_client()?;
        reader.get(0, "kept", CONTENT)?;
        reader.unpublish(&mut node, true)?;
        node.unstage("data")?;
        node.delete("data")?;
    }
    ensure!(
        poll(LIMIT, || requested(&node).is_ok_and(|it| it == 0)),
        "still requested"
    );
    Ok(())
}

/// Kills the driver while it unpublishes, and starts it again.
fn unpublish_and_kill(node: &mut Node, pod: &str, delay: Duration) -> Result<()> {
    let socket = format!("unix:{}", node.folder().join("csi.sock").display());
    let target = format!("kubelet/pods/{pod}/volumes/kubernetes.io~csi/data/mount");
    let request = NodeUnpublishVolumeRequest {
        volume_id: "data".into(),
        target_path: node.folder().join(target).display().to_string(),
    };
    let caller = std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let endpoint = Endpoint::from_shared(socket)?;
        runtime.block_on(async {
            let channel = endpoint.connect().await?;
            // Answered or not: kubelet calls again.
            let _ = NodeClient::new(channel)
                .node_unpublish_volume(request)
                .await;
            Ok(())
        })
    });
    std::thread::sleep(delay);
    node.kill()?;
    // Killed before it was called is as well.
    let _ = caller.join();
    node.start()
}

#[test]
fn a_volume_may_be_deleted_while_it_is_handed_over() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "delete");
    let (mut node, _retainer) = Retainer::start(&["--hand-over-patience", "0"])?;
    for number in 1..=4 {
        node.create("data", 512 * MIB)?;
        let mut pod = Pod::start(&mut node, number, None)?;
        pod.start_client()?;
        pod.put(
            0,
            "large",
            Content {
                seed: 1,
                len: 300 * MIB,
            },
        )?;
        pod.unpublish(&mut node, true)?;
        node.unstage("data")?;
        std::thread::sleep(Duration::from_millis(u64::from(number - 1) * 20));
        node.delete("data")?;
    }
    ensure!(node.mounts()?.is_empty(), "{:?}", node.mounts()?);
    ensure!(
        poll(LIMIT, || requested(&node).is_ok_and(|it| it == 0)),
        "still requested"
    );
    Ok(())
}
