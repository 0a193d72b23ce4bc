//! What nobody needs any more goes, whoever left it, and so do its bytes from the bill.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use vineyard_tests::commands::{Answer, Command, Content};
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::watchdog::deadline;

use crate::pod::Pod;
use crate::retainer::{Retainer, bill, charges, is_retained, requested, wait_until_retained};
use crate::{LIMIT, MIB, possible};

const OFTEN: [&str; 4] = ["--sweep-period", "100", "--sweep-rest", "0"];

const CONTENT: Content = Content {
    seed: 1,
    len: 9 * MIB,
};

/// The files of a directory of the store.
fn listed(pod: &Pod, directory: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(pod.volume().join(".vineyard").join(directory))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Turns the clock of the only mark back, as if the time had come.
fn expire(pod: &Pod) -> Result<()> {
    let marks = listed(pod, "ttl")?;
    let (_, object) = marks[0].split_once('.').context("a mark")?;
    let ttl = pod.volume().join(".vineyard/ttl");
    let past = ttl.join(format!("000000000001.{object}"));
    Ok(fs::rename(ttl.join(&marks[0]), past)?)
}

fn is_empty(node: &Node) -> bool {
    bill(node, "data").is_ok_and(|bill| bill.values().sum::<u64>() == 4096)
}

#[test]
fn an_expired_object_of_a_pod_that_is_gone_leaves_the_retainers_bill_and_its_request() -> Result<()>
{
    possible!();
    let _limit = deadline(LIMIT, "expiry");
    let (mut node, _retainer) = Retainer::start(&OFTEN)?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, None)?;
    pod.start_client()?;
    let answer = pod.clients[0].call(&Command::PutExpiring {
        name: Some("soon/gone".into()),
        content: CONTENT,
        seconds: 3600,
    })?;
    ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
    let reader = {
        pod.unpublish(&mut node, true)?;
        wait_until_retained(&node, "data", CONTENT.len)?;
        Pod::start(&mut node, 2, None)?
    };
    ensure!(requested(&node)? >= CONTENT.len);
    expire(&reader)?;
    ensure!(poll(LIMIT, || is_empty(&node)), "{:?}", bill(&node, "data"));
    ensure!(!reader.volume().join("soon/gone").is_symlink());
    ensure!(listed(&reader, "objects")?.is_empty());
    // The mark goes after the object.
    let unmarked = || listed(&reader, "ttl").is_ok_and(|marks| marks.is_empty());
    ensure!(poll(LIMIT, unmarked), "a mark is left");
    ensure!(
        poll(LIMIT, || requested(&node).is_ok_and(|it| it <= MIB)),
        "still requested"
    );
    Ok(())
}

#[test]
fn trash_that_one_user_left_and_another_maps_goes_with_that_view_and_not_before() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "trash");
    let (mut node, _retainer) = Retainer::start(&OFTEN)?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, None)?;
    // Two users.
    pod.start_client()?;
    pod.start_client()?;
    pod.put(0, "mapped", CONTENT)?;
    let get = Command::Get {
        name: "mapped".into(),
        content: CONTENT,
        shared: true,
        view: Some(1),
    };
    let answer = pod.clients[1].call(&get)?;
    ensure!(
        matches!(answer, Answer::Object { .. } | Answer::Done),
        "{answer:?}"
    );
    let remove = Command::Remove {
        name: "mapped".into(),
    };
    ensure!(pod.clients[0].call(&remove)? == Answer::Count(1));
    // Gone, so that nobody is left who could sweep it himself.
    pod.clients.remove(0).kill()?;
    let object = listed(&pod, "trash")?.pop().context("it is no trash")?;
    // Sweeps come and go: this one is seen to.
    let sign = pod.volume().join(".vineyard/ttl");
    for round in 0..3 {
        let mark = sign.join(format!(
            "00000000000{round}.0000000000000000000000000{round}.raw"
        ));
        symlink("-", &mark)?;
        ensure!(poll(LIMIT, || !mark.is_symlink()), "nobody sweeps");
    }
    ensure!(listed(&pod, "trash")? == [object], "it is mapped");
    let answer = pod.clients[0].call(&Command::Check { view: 1 })?;
    ensure!(answer == Answer::Done, "{answer:?}");
    ensure!(pod.clients[0].call(&Command::Release { view: 1 })? == Answer::Done);
    ensure!(
        poll(LIMIT, || listed(&pod, "trash")
            .is_ok_and(|it| it.is_empty())),
        "it stays"
    );
    pod.unpublish(&mut node, true)?;
    ensure!(
        poll(LIMIT, || is_empty(&node)),
        "{:?}, {}",
        bill(&node, "data"),
        charges(&node, "data")?
    );
    ensure!(is_retained(&bill(&node, "data")?, 4096));
    Ok(())
}

#[test]
fn a_volume_goes_while_it_is_swept() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "delete");
    let (mut node, _retainer) = Retainer::start(&["--sweep-period", "1", "--sweep-rest", "0"])?;
    for number in 1..=5 {
        node.create("data", 64 * MIB)?;
        let pod = Pod::start(&mut node, number, None)?;
        let ttl = pod.volume().join(".vineyard/ttl");
        for mark in 0..20_000 {
            let id = format!("{mark:026}");
            symlink("-", ttl.join(format!("999999999999.{id}.raw")))?;
        }
        let mut pod = pod;
        pod.unpublish(&mut node, true)?;
        drop(pod);
        node.unstage("data")?;
        node.delete("data")?;
        ensure!(node.mounts()?.is_empty(), "{:?}", node.mounts()?);
    }
    Ok(())
}
