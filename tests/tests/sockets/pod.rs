//! A pod of a node: its volume, its sockets, its sidecar and any number of clients, all in its cgroup.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use vineyard_tests::cgroups::Cgroup;
use vineyard_tests::client::{Client, ClientOptions};
use vineyard_tests::commands::{Answer, Command, Content};
use vineyard_tests::ledger;
use vineyard_tests::node::Node;
use vineyard_tests::process::Process;
use vineyard_tests::sidecar;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const START: Duration = Duration::from_secs(60);

pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) clients: Vec<Client>,
    sidecar: Option<Process>,
    containers: Vec<Cgroup>,
    cgroup: Cgroup,
    sockets: PathBuf,
    volume: PathBuf,
    number: u32,
}

impl Pod {
    /// A pod with the volume `data` and a sidecar, as kubelet starts it.
    pub(crate) fn start(node: &mut Node, number: u32, writes: Option<&str>) -> Result<Self> {
        let uid = format!("p{number}");
        let volume = node.publish("data", &uid, false)?;
        let sockets = node.publish_sockets(&uid, writes)?;
        let mut pod = Self {
            cgroup: node.pods().pod(&uid)?,
            uid,
            clients: Vec::new(),
            sidecar: None,
            containers: Vec::new(),
            sockets,
            volume,
            number,
        };
        pod.start_sidecar()?;
        Ok(pod)
    }

    /// Starts the sidecar, in a container of its own, as kubelet does.
    pub(crate) fn start_sidecar(&mut self) -> Result<()> {
        let name = format!("sidecar-{}", self.containers.len());
        let container = self.cgroup.child(&name)?;
        let (driver, listen) = (self.driver_socket(), self.socket());
        let arguments = [OsStr::new("--driver"), driver.as_os_str()];
        let uid = 65_000 + self.number;
        let process = sidecar::start(&listen, &arguments, uid, &container)?;
        self.containers.push(container);
        self.sidecar = Some(process);
        Ok(())
    }

    pub(crate) fn start_client(&mut self) -> Result<()> {
        let volume = self.volume.clone();
        self.open(&volume)
    }

    /// Starts a client of any volume.
    pub(crate) fn open(&mut self, volume: &Path) -> Result<()> {
        let number = u32::try_from(self.clients.len())?;
        let container = self
            .cgroup
            .child(&format!("client-{}", self.containers.len()))?;
        let socket = self.socket();
        let options = ClientOptions {
            program: Path::new(CLIENT),
            volume,
            socket: Some(&socket),
            uid: 10_000 + number,
            address_space: None,
        };
        self.clients.push(Client::start(&options, &container)?);
        self.containers.push(container);
        Ok(())
    }

    pub(crate) fn kill_sidecar(&mut self) -> Result<()> {
        self.sidecar.take().map_or(Ok(()), Process::kill)
    }

    pub(crate) fn signal_sidecar(&mut self, signal: Signal) -> Result<()> {
        self.sidecar
            .as_mut()
            .context("no sidecar runs")?
            .signal(signal)
    }

    pub(crate) fn wait_for_sidecar(&mut self) -> Result<()> {
        let sidecar = self.sidecar.take().context("no sidecar runs")?;
        let status = sidecar.wait(START)?;
        ensure!(status.success(), "the sidecar ended with {status}");
        Ok(())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.join("pod/vineyard.sock")
    }

    pub(crate) fn driver_socket(&self) -> PathBuf {
        self.sockets.join("driver/driver.sock")
    }

    pub(crate) fn volume(&self) -> &Path {
        &self.volume
    }

    pub(crate) fn put(&mut self, client: usize, name: &str, content: Content) -> Result<Answer> {
        self.clients[client].call(&put(name, content))
    }

    pub(crate) fn get(&mut self, client: usize, name: &str, content: Content) -> Result<()> {
        match self.clients[client].call(&get(name, content))? {
            Answer::Object { .. } | Answer::Done => Ok(()),
            other => bail!("get of {name}: {other:?}"),
        }
    }

    /// Bytes that a survey finds on this pod's bill.
    pub(crate) fn charged(&self) -> Result<u64> {
        let bill = ledger::survey(&self.volume)?;
        let owners = std::iter::once(&self.cgroup).chain(&self.containers);
        Ok(owners.filter_map(|cgroup| bill.get(&cgroup.id())).sum())
    }

    /// Takes its volumes away, in kubelet's order or in the other one.
    pub(crate) fn unpublish(&mut self, node: &mut Node, sockets_first: bool) -> Result<()> {
        self.clients.clear();
        self.kill_sidecar()?;
        let order = match sockets_first {
            true => ["sockets", "data"],
            false => ["data", "sockets"],
        };
        for name in order {
            node.unpublish(name, &self.uid)?;
        }
        Ok(())
    }
}

pub(crate) fn put(name: &str, content: Content) -> Command {
    Command::Put {
        name: Some(name.into()),
        content,
        overwrite: true,
    }
}

pub(crate) fn get(name: &str, content: Content) -> Command {
    Command::Get {
        name: name.into(),
        content,
        shared: false,
        view: None,
    }
}

/// A number in the record of a pod.
pub(crate) fn recorded(node: &Node, pod: &str, field: &str) -> Result<Option<u64>> {
    let record = node.record(pod)?.context("no record")?;
    Ok(record.get(field).and_then(serde_json::Value::as_u64))
}
