//! `docs/reference/metrics.md` against what a real driver and a real sidecar tell a scraper.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vineyard_tests::binaries;
use vineyard_tests::client::{Client, ClientOptions};
use vineyard_tests::commands::{Command, Content};
use vineyard_tests::node::Node;
use vineyard_tests::process::{Process, Program, poll};

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const START: Duration = Duration::from_secs(60);
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");

/// A metric's type and labels, by its name.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// The table below a heading of the page.
fn documented(heading: &str) -> Result<Metrics> {
    let page = fs::read_to_string(PAGE)?;
    let (_, rest) = page
        .split_once(&format!("## {heading}\n"))
        .with_context(|| format!("no heading {heading}"))?;
    let section = rest.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut all = Metrics::new();
    for row in rows {
        let (name, rest) = row.split_once('`').context("a name")?;
        let cells: Vec<_> = rest.split('|').map(str::trim).collect();
        let [_, kind, labels, unit, meaning, ..] = cells[..] else {
            anyhow::bail!("the row of {name} has too few columns");
        };
        ensure!(
            !unit.is_empty() && !meaning.is_empty(),
            "{name} says nothing"
        );
        let labels = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`'));
        let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
        all.insert(name.to_owned(), (kind.to_owned(), labels.collect()));
    }
    Ok(all)
}

/// What a scraper reads at an address.
fn scraped(address: SocketAddr) -> Result<Metrics> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("a body")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut all = Metrics::new();
    for line in body.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').context("a type")?;
            let suffix = if kind == "counter" { "_total" } else { "" };
            let entry = (kind.to_owned(), BTreeSet::new());
            all.insert(format!("{name}{suffix}"), entry);
        }
    }
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let known = [Some(name), base]
            .into_iter()
            .flatten()
            .find(|it| all.contains_key(*it));
        let known = known
            .with_context(|| format!("{name} has no type"))?
            .to_owned();
        let (labels, _) = rest.rsplit_once('}').context("an end of labels")?;
        let labels = labels
            .split("\",")
            .filter_map(|label| label.split_once('='));
        let labels = labels
            .map(|(label, _)| label.to_owned())
            .filter(|label| label != "le");
        if let Some((_, seen)) = all.get_mut(&known) {
            seen.extend(labels);
        }
    }
    Ok(all)
}

/// An address that nobody listened on a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[test]
fn the_page_lists_what_a_real_driver_and_a_real_sidecar_tell_a_scraper() -> Result<()> {
    vineyard_tests::skip_unless_possible!();
    let (http, metrics) = (free_address()?, free_address()?);
    let mut node = Node::with_retainer(&["--http", &http.to_string(), "--survey-period", "100"])?;
    node.create("data", 64 << 20)?;
    let volume = node.publish("data", "p1", false)?;
    let sockets = node.publish_sockets("p1", None)?;
    let pod = node.pods().pod("p1")?;
    let (in_sidecar, in_client) = (pod.child("sidecar")?, pod.child("client")?);
    let (listen, driver) = (
        sockets.join("pod/vineyard.sock"),
        sockets.join("driver/driver.sock"),
    );
    let address = metrics.to_string();
    let arguments = [
        OsStr::new("--listen"),
        listen.as_os_str(),
        OsStr::new("--driver"),
        driver.as_os_str(),
        OsStr::new("--metrics"),
        OsStr::new(&address),
    ];
    let program = Program {
        path: binaries::sidecar()?,
        arguments: arguments.to_vec(),
        uid: 65_001,
        address_space: None,
        variable: None,
    };
    let sidecar = Process::start(&program, &in_sidecar)?;
    ensure!(
        poll(START, || UnixStream::connect(&listen).is_ok()),
        "no sidecar listens"
    );
    let options = ClientOptions {
        program: Path::new(CLIENT),
        volume: &volume,
        socket: Some(&listen),
        uid: 10_000,
        address_space: None,
    };
    let mut client = Client::start(&options, &in_client)?;
    client.call(&Command::Put {
        name: Some("a".into()),
        content: Content {
            seed: 1,
            len: 4 << 20,
        },
        overwrite: true,
    })?;
    drop(client);
    // A connection has ended, and a survey has found whose bytes they are.
    let complete = |heading, address| -> Result<bool> {
        let (page, found) = (documented(heading)?, scraped(address)?);
        Ok(page == found)
    };
    let (driver_page, sidecar_page) = ("Node driver and controller", "Sidecar");
    for (heading, address) in [(driver_page, http), (sidecar_page, metrics)] {
        if !poll(START, || complete(heading, address).unwrap_or(false)) {
            assert_eq!(
                documented(heading)?,
                scraped(address)?,
                "{heading}: the page, and a scrape"
            );
        }
    }
    sidecar.kill()?;
    node.unpublish("sockets", "p1")?;
    node.unpublish("data", "p1")?;
    node.stop()
}
