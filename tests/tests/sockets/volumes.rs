//! Sockets volumes come and go while the driver is killed in the middle of it.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::random::Random;
use vineyard_tests::watchdog::deadline;

use crate::possible;

const ROUNDS: u64 = 30;

#[test]
fn whenever_the_driver_is_killed_a_sockets_volume_is_served_or_gone() -> Result<()> {
    possible!();
    let _limit = deadline(Duration::from_secs(300), "killed between any two steps");
    let mut node = Node::new(&[])?;
    let mut random = Random::new(11);
    for round in 0..ROUNDS {
        let pod = format!("p{round}");
        let moment = |random: &mut Random| Duration::from_micros(random.below(8000));
        // As kubelet does, the call is repeated until there is an answer.
        let killed = node.kill_within(moment(&mut random))?;
        let _ = node.publish_sockets(&pod, None);
        killed.join().ok().context("the killer")??;
        node.start()?;
        let sockets = node.publish_sockets(&pod, None)?;
        let socket = sockets.join("driver/driver.sock");
        ensure!(
            UnixStream::connect(&socket).is_ok(),
            "round {round}: not served"
        );
        node.kill()?;
        node.start()?;
        ensure!(
            poll(Duration::from_secs(60), || UnixStream::connect(&socket)
                .is_ok()),
            "round {round}: not served again"
        );
        let killed = node.kill_within(moment(&mut random))?;
        let _ = node.unpublish("sockets", &pod);
        killed.join().ok().context("the killer")??;
        node.start()?;
        node.unpublish("sockets", &pod)?;
        ensure!(
            node.record(&pod)?.is_none(),
            "round {round}: a record is left"
        );
        ensure!(
            node.mounts()?.is_empty(),
            "round {round}: {:?}",
            node.mounts()?
        );
        ensure!(!socket.exists());
    }
    let left: Vec<_> = std::fs::read_dir(node.folder().join("run/pods"))?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
