//! A node with a retainer, and what its bills come to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vineyard_tests::binaries;
use vineyard_tests::cgroups::Cgroup;
use vineyard_tests::kubepods::Layout;
use vineyard_tests::ledger;
use vineyard_tests::node::Node;
use vineyard_tests::process::{Process, Program, poll};

use crate::{LIMIT, MOVED};

/// The uid of its pod.
pub(crate) const RETAINER: &str = "retainer-1";

/// How long a busy kernel may take to forget a cgroup.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(10);

/// Whose bytes these are, by the pod's uid.
pub(crate) type Bill = BTreeMap<String, u64>;

/// Its retainer, in containers that come and go.
pub(crate) struct Retainer {
    process: Option<Process>,
    containers: Vec<Cgroup>,
    pod: Cgroup,
    socket: PathBuf,
    // Last: its socket lies in it.
    _folder: tempfile::TempDir,
}

impl Retainer {
    /// Starts it, and the driver again with it.
    pub(crate) fn start(flags: &[&str]) -> Result<(Node, Self)> {
        Self::laid_out(Layout::Cgroupfs, flags)
    }

    /// The same, with cgroups in this layout.
    pub(crate) fn laid_out(layout: Layout, flags: &[&str]) -> Result<(Node, Self)> {
        let folder = tempfile::Builder::new()
            .prefix("vineyard-test-retainer.")
            .tempdir()?;
        let socket = folder.path().join("retainer.sock");
        let path = socket.to_str().context("a plain path")?;
        // Only this many milliseconds, so that the tests do not take long.
        let mut all = vec!["--retainer", path, "--look-period", "200"];
        all.extend(["--survey-period", "500", "--hand-over-pause", "100"]);
        all.extend(["--hand-over-longest-pause", "1000"]);
        all.extend(flags);
        let node = Node::laid_out(layout, &all)?;
        let mut retainer = Self {
            process: None,
            containers: Vec::new(),
            pod: node.pods().pod(RETAINER)?,
            socket,
            _folder: folder,
        };
        retainer.run()?;
        Ok((node, retainer))
    }

    /// Runs it in a new container of its pod, as after a crash.
    pub(crate) fn run(&mut self) -> Result<()> {
        let name = format!("container-{}", self.containers.len());
        let container = self.pod.child(&name)?;
        let arguments = [
            OsStr::new("retainer"),
            OsStr::new("--listen"),
            self.socket.as_os_str(),
        ];
        let program = Program {
            path: binaries::driver()?,
            arguments: arguments.to_vec(),
            uid: 0,
            address_space: None,
            variable: None,
        };
        let mut process = Process::start(&program, &container)?;
        self.containers.push(container);
        let listens = poll(LIMIT, || {
            UnixStream::connect(&self.socket).is_ok() || process.check_alive().is_err()
        });
        process.check_alive()?;
        ensure!(listens, "the retainer does not listen");
        self.process = Some(process);
        Ok(())
    }

    /// `kill -9`; its container is removed.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)?;
        self.containers.pop().map_or(Ok(()), Cgroup::remove)
    }
}

/// Who is charged for a volume, by the pod's uid; of a pod that is gone it is the node: "".
pub(crate) fn bill(node: &Node, volume: &str) -> Result<Bill> {
    let mut last = look(node, volume);
    // The kernel names a cgroup that was just removed a little longer.
    poll(SETTLE, || {
        last = look(node, volume);
        last.is_ok()
    });
    last
}

fn look(node: &Node, volume: &str) -> Result<Bill> {
    let layer = node.folder().join("layers").join(volume);
    let mut bill = Bill::new();
    for (owner, bytes) in ledger::survey(&layer)? {
        let uid = match node.pods().uid_of(owner)? {
            Some(uid) => uid,
            None if node.cgroup().memory().subtree()?.contains(&owner) => String::new(),
            None => bail!("what is none of the node's is charged: {owner}"),
        };
        *bill.entry(uid).or_default() += bytes;
    }
    Ok(bill)
}

/// Waits until the retainer alone is charged for the volume, at least for `bytes`.
pub(crate) fn wait_until_retained(node: &Node, volume: &str, bytes: u64) -> Result<Bill> {
    let mut last = Ok(Bill::new());
    let retained = poll(MOVED, || {
        last = bill(node, volume);
        last.as_ref().is_ok_and(|bill| is_retained(bill, bytes))
    });
    match retained {
        true => last,
        false => bail!(
            "never on the retainer's bill alone: {last:?}, and the driver says {:?}",
            charges(node, volume)
        ),
    }
}

/// Whether the retainer alone is charged, at least for `bytes`.
pub(crate) fn is_retained(bill: &Bill, bytes: u64) -> bool {
    bill.keys().all(|name| name == RETAINER) && bill.values().sum::<u64>() >= bytes
}

/// What `vineyard charges --driver` says about a volume.
pub(crate) fn charges(node: &Node, volume: &str) -> Result<Value> {
    let output = Command::new(binaries::command_line()?)
        .args(["charges", "--json", "--driver"])
        .arg(node.folder().join("run/admin.sock"))
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let all: Value = serde_json::from_slice(&output.stdout)?;
    let volumes = all["volumes"].as_array().context("no volumes")?;
    let found = volumes.iter().find(|it| it["volume"] == volume);
    Ok(found.context("no such volume")?.clone())
}

/// What is asked for the retainer. Nothing has no record.
pub(crate) fn requested(node: &Node) -> Result<u64> {
    let record = match std::fs::read(node.folder().join("run/bill/request.json")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        record => record?,
    };
    let record: Value = serde_json::from_slice(&record)?;
    record["desired"].as_u64().context("no number")
}
