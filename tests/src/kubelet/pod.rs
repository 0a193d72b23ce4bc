//! A pod: its claims and its sockets, its sidecar, and a client for each claim, under users of their own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::cgroups::Cgroup;
use crate::client::{Client, ClientOptions};
use crate::process::Process;
use crate::sidecar;

const START: Duration = Duration::from_secs(60);

/// Clients are three users, whatever the pod.
const USERS: u32 = 3;

/// How the sidecar ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// SIGTERM: it says that it leaves.
    Told,
    /// SIGKILL: nobody says anything.
    Killed,
}

/// A claim of a pod.
#[derive(Clone, Debug)]
pub(super) struct Mount {
    /// The volume.
    pub(super) volume: String,
    /// Nothing can be written through it.
    pub(super) read_only: bool,
}

/// The processes of a pod, whose volumes are mounted.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) mounts: Vec<Mount>,
    clients: Vec<Client>,
    sidecar: Option<Process>,
    containers: Vec<Cgroup>,
    cgroup: Cgroup,
    sockets: PathBuf,
    number: u32,
    /// Bytes that its clients have put.
    pub(super) put: u64,
    /// Its sidecar was killed once, so what it had drawn is known to nobody.
    pub(super) was_restarted: bool,
}

impl Pod {
    /// The uid of the n-th pod.
    pub(super) fn uid(number: u32) -> String {
        format!("00000000-0000-4000-8000-{number:012x}")
    }

    /// Starts what runs in it: `cgroup` is its own, and `sockets` where its sockets volume is.
    pub(super) fn start(
        number: u32,
        mounts: Vec<Mount>,
        cgroup: Cgroup,
        sockets: PathBuf,
    ) -> Result<Self> {
        let mut pod = Self {
            uid: Self::uid(number),
            mounts,
            clients: Vec::new(),
            sidecar: None,
            containers: Vec::new(),
            cgroup,
            sockets,
            number,
            put: 0,
            was_restarted: false,
        };
        pod.start_sidecar()?;
        Ok(pod)
    }

    fn container(&mut self, what: &str) -> Result<()> {
        let name = format!("{what}-{}", self.containers.len());
        self.containers.push(self.cgroup.child(&name)?);
        Ok(())
    }

    /// Starts the sidecar, in a container of its own.
    fn start_sidecar(&mut self) -> Result<()> {
        self.container("sidecar")?;
        let (listen, driver) = (self.socket(), self.sockets.join("driver/driver.sock"));
        let arguments = [OsStr::new("--driver"), driver.as_os_str()];
        let uid = 65_000 + self.number % 500;
        let container = &self.containers[self.containers.len() - 1];
        let process = sidecar::start(&listen, &arguments, uid, container)?;
        self.sidecar = Some(process);
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.sockets.join("pod/vineyard.sock")
    }

    /// Starts a client of the volume at `path`: of the next claim that has none.
    pub(super) fn start_client(&mut self, program: &Path, path: &Path) -> Result<()> {
        self.container("client")?;
        let socket = self.socket();
        let claim = u32::try_from(self.clients.len())?;
        let options = ClientOptions {
            program,
            volume: path,
            socket: Some(&socket),
            uid: 10_000 + (self.number + claim) % USERS,
            address_space: None,
        };
        let container = &self.containers[self.containers.len() - 1];
        self.clients.push(Client::start(&options, container)?);
        Ok(())
    }

    /// The client of a claim.
    pub(super) fn client(&mut self, claim: usize) -> &mut Client {
        &mut self.clients[claim]
    }

    /// `kill -9` of the sidecar, which kubelet starts again.
    pub(super) fn restart_sidecar(&mut self) -> Result<()> {
        self.was_restarted = true;
        self.sidecar.take().map_or(Ok(()), Process::kill)?;
        self.start_sidecar()
    }

    /// Ends its processes in kubelet's order: the containers, then the sidecar.
    pub(super) fn end(&mut self, farewell: Farewell) -> Result<()> {
        for client in self.clients.drain(..) {
            client.kill()?;
        }
        let Some(sidecar) = self.sidecar.take() else {
            return Ok(());
        };
        match farewell {
            Farewell::Killed => sidecar.kill(),
            Farewell::Told => {
                sidecar.signal(Signal::SIGTERM)?;
                let status = sidecar.wait(START)?;
                ensure!(
                    status.success(),
                    "the sidecar of {} ended with {status}",
                    self.uid
                );
                Ok(())
            }
        }
    }
}
