//! From the producer to the retainer, while nothing goes wrong.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vineyard_tests::binaries;
use vineyard_tests::commands::{Answer, Content};
use vineyard_tests::kubepods::Layout;
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::watchdog::deadline;

use crate::pod::Pod;
use crate::retainer::{
    RETAINER, Retainer, bill, charges, is_retained, requested, wait_until_retained,
};
use crate::{LIMIT, MIB, possible};

const SIZES: [u64; 6] = [1, 4096, 100_000, 300_000, 2 * MIB, 9 * MIB + 5];

fn content(seed: usize, len: u64) -> Content {
    let seed = seed as u64;
    Content { seed, len }
}

fn put_all(pod: &mut Pod) -> Result<u64> {
    for (index, len) in SIZES.into_iter().enumerate() {
        let answer = pod.put(0, &format!("n/{index}"), content(index, len))?;
        ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
    }
    Ok(SIZES.iter().sum())
}

fn get_all(pod: &mut Pod) -> Result<()> {
    for (index, len) in SIZES.into_iter().enumerate() {
        pod.get(0, &format!("n/{index}"), content(index, len))?;
    }
    Ok(())
}

#[test]
fn what_a_pod_puts_is_its_own_bill_then_the_retainers_and_never_its_readers() -> Result<()> {
    possible!();
    for layout in Layout::ALL {
        live(layout).with_context(|| format!("{layout:?}"))?;
    }
    Ok(())
}

fn live(layout: Layout) -> Result<()> {
    let _limit = deadline(LIMIT, "a life");
    let http = free_address()?;
    let (mut node, _retainer) = Retainer::laid_out(layout, &["--http", &http])?;
    node.create("data", 64 * MIB)?;
    let mut producer = Pod::start(&mut node, 1, None)?;
    let empty = bill(&node, "data")?;
    ensure!(is_retained(&empty, 1), "the driver's own page: {empty:?}");
    producer.start_client()?;
    let bytes = put_all(&mut producer)?;
    let billed = bill(&node, "data")?;
    ensure!(billed["p1"] >= bytes, "{billed:?}");
    // SIGTERM, as kubelet ends it: the hand-over is under way before any unpublish.
    producer.signal_sidecar(Signal::SIGTERM)?;
    ensure!(
        poll(LIMIT, || requested(&node).is_ok_and(|it| it >= bytes)),
        "never requested"
    );
    producer.clients.clear();
    producer.wait_for_sidecar()?;
    wait_until_retained(&node, "data", bytes)?;
    producer.unpublish(&mut node, true)?;
    drop(producer);
    let billed = wait_until_retained(&node, "data", bytes)?;
    let listed = charges(&node, "data")?;
    ensure!(
        listed["retained_bytes"].as_u64() == billed.get(RETAINER).copied(),
        "{listed}"
    );
    ensure!(requested(&node)? >= bytes);
    shown_everywhere(&node, &http, billed[RETAINER])?;

    let mut reader = Pod::start(&mut node, 2, None)?;
    reader.start_client()?;
    get_all(&mut reader)?;
    ensure!(bill(&node, "data")? == billed, "a reader changes no bill");
    reader.unpublish(&mut node, false)?;
    node.unstage("data")?;
    node.delete("data")?;
    ensure!(
        poll(LIMIT, || requested(&node).is_ok_and(|it| it == 0)),
        "still requested"
    );
    ensure!(node.mounts()?.is_empty(), "{:?}", node.mounts()?);
    Ok(())
}

/// An address that nobody listens at a moment ago.
fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.to_string())
}

/// `top` and the metrics say what the survey says.
fn shown_everywhere(node: &Node, http: &str, retained: u64) -> Result<()> {
    let top = Command::new(binaries::command_line()?)
        .args(["top", "--once", "--json", "--driver"])
        .arg(node.folder().join("run/admin.sock"))
        .output()?;
    let top: serde_json::Value = serde_json::from_slice(&top.stdout)?;
    let shares = &top["volumes"][0]["shares"];
    ensure!(shares[0]["payer"] == "retainer", "{top}");
    ensure!(shares[0]["bytes"] == retained, "{top}");
    let mut stream = TcpStream::connect(http)?;
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics)?;
    for line in [
        format!("vineyard_billed_bytes{{volume=\"data\",owner=\"retainer\"}} {retained}"),
        format!("vineyard_retained_bytes{{volume=\"data\"}} {retained}"),
        "vineyard_pending_bytes{volume=\"data\"} 0".to_owned(),
        "vineyard_leaving_pods 0".to_owned(),
    ] {
        ensure!(
            metrics.lines().any(|it| it == line),
            "{line} is not in {metrics}"
        );
    }
    Ok(())
}

#[test]
fn ordinary_files_and_the_bytes_of_a_sidecar_that_was_killed_are_handed_over_too() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "no farewell");
    let (mut node, _retainer) = Retainer::start(&[])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, None)?;
    pod.start_client()?;
    let bytes = put_all(&mut pod)?;
    // Charged to this test, which is in no pod; and half a region of it moves only when nobody can write any more.
    fs::write(pod.volume().join("plain"), vec![7; 3 << 20])?;
    pod.unpublish(&mut node, true)?;
    wait_until_retained(&node, "data", bytes + 3 * MIB)?;
    drop(pod);
    node.unstage("data")?;
    node.delete("data")
}

#[test]
fn a_pod_that_leaves_takes_nobody_elses_bill_with_it() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "two pods");
    let (mut node, _retainer) = Retainer::start(&[])?;
    node.create("data", 64 * MIB)?;
    let mut one = Pod::start(&mut node, 1, Some("32MiB"))?;
    let mut two = Pod::start(&mut node, 2, Some("32MiB"))?;
    one.start_client()?;
    two.start_client()?;
    one.put(0, "one", content(1, 10 * MIB))?;
    two.put(0, "two", content(2, 5 * MIB))?;
    one.unpublish(&mut node, false)?;
    let billed = bill(&node, "data")?;
    ensure!(billed.get(RETAINER) >= Some(&(10 * MIB)), "{billed:?}");
    ensure!(billed.get("p2") >= Some(&(5 * MIB)), "{billed:?}");
    two.put(0, "more", content(3, 5 * MIB))?;
    let billed = bill(&node, "data")?;
    ensure!(billed.get("p2") >= Some(&(10 * MIB)), "{billed:?}");
    two.unpublish(&mut node, false)?;
    wait_until_retained(&node, "data", 20 * MIB)?;
    Ok(())
}

#[test]
fn what_the_allowance_does_not_cover_is_the_retainers_from_the_beginning() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "overflow");
    let (mut node, _retainer) = Retainer::start(&["--request-chunk", "4MiB"])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, Some("0"))?;
    pod.start_client()?;
    for (index, len) in SIZES.into_iter().enumerate() {
        let answer = pod.put(0, &format!("n/{index}"), content(index, len))?;
        ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
        ensure!(requested(&node)? >= len, "only under what is allocated");
    }
    let billed = bill(&node, "data")?;
    ensure!(is_retained(&billed, SIZES.iter().sum()), "{billed:?}");
    get_all(&mut pod)?;
    pod.unpublish(&mut node, true)
}
