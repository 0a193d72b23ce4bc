//! What the allowance does not cover: the retainer reserves it, on its own bill.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use vineyard_tests::commands::{Answer, Content};
use vineyard_tests::ledger;
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::watchdog::deadline;

use crate::pod::{Pod, recorded};
use crate::{MIB, possible};

#[test]
fn a_pod_without_an_allowance_puts_on_the_retainers_bill() -> Result<()> {
    possible!();
    let _limit = deadline(Duration::from_secs(300), "overflow");
    let mut node = Node::with_retainer(&["--grant-chunk", "4MiB"])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, Some("8MiB"))?;
    pod.start_client()?;
    let contents: Vec<_> = [100, 5 * MIB, 300_000, 9 * MIB, 6 * MIB, 70_000, 40]
        .into_iter()
        .enumerate()
        .map(|(index, len)| {
            (
                format!("n/{index}"),
                Content {
                    seed: index as u64,
                    len,
                },
            )
        })
        .collect();
    for (index, (name, content)) in contents.iter().enumerate() {
        if index == 4 {
            node.kill()?;
            node.start()?;
        }
        let answer = pod.put(0, name, *content)?;
        ensure!(
            matches!(answer, Answer::Object { .. }),
            "{name}: {answer:?}"
        );
    }
    for (name, content) in &contents {
        pod.get(0, name, *content)?;
    }
    let bill = ledger::survey(pod.volume())?;
    let retained = bill.get(&node.retainer_cgroup().id()).copied().unwrap_or(0);
    let charged = pod.charged()?;
    println!("{charged} bytes on the pod's bill, {retained} on the retainer's");
    ensure!(
        charged <= 8 * MIB + (64 << 10),
        "{charged} bytes on the pod's bill"
    );
    ensure!(
        retained >= 14 * MIB,
        "{retained} bytes on the retainer's bill"
    );
    let driver = bill.get(&node.driver_cgroup().id()).copied().unwrap_or(0);
    ensure!(driver == 0, "{driver} bytes on the driver's bill");
    // Beyond the volume nothing is reserved, by nobody.
    let answer = pod.put(
        0,
        "huge",
        Content {
            seed: 9,
            len: 60 * MIB,
        },
    )?;
    ensure!(matches!(answer, Answer::Failed(_)), "{answer:?}");
    pod.get(0, &contents[3].0, contents[3].1)?;
    let begun = Instant::now();
    pod.signal_sidecar(Signal::SIGTERM)?;
    let leaves = || recorded(&node, "p1", "leaving").is_ok_and(|it| it.is_some());
    ensure!(
        poll(Duration::from_secs(60), leaves),
        "the driver does not know"
    );
    pod.clients.clear();
    pod.wait_for_sidecar()?;
    println!(
        "acknowledged {:?} after SIGTERM, the last client's end included",
        begun.elapsed()
    );
    pod.unpublish(&mut node, true)
}
