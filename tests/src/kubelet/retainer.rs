//! The retainer, in containers of its pod that come and go.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::binaries;
use crate::cgroups::{Cgroup, unique_name};
use crate::kubepods::Kubepods;
use crate::process::{Process, Program, poll};

/// The uid of the retainer's pod.
pub(super) const POD: &str = "00000000-0000-4000-8000-ffffffffffff";

/// The user that it runs as: nobody.
const USER: u32 = 65_534;

const START: Duration = Duration::from_secs(60);

/// Where it listens, before there is a node.
#[derive(Debug)]
pub(super) struct Place {
    folder: TempDir,
}

impl Place {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(&unique_name()).tempdir()?;
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700))?;
        chown(folder.path(), Some(USER), Some(USER))?;
        Ok(Self { folder })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("retainer.sock")
    }
}

/// The process, and the cgroups that it was and is in.
#[derive(Debug)]
pub(super) struct Retainer {
    process: Option<Process>,
    container: Option<Cgroup>,
    pod: Cgroup,
    place: Place,
    containers: u32,
}

impl Retainer {
    /// Starts it in a pod below `pods`.
    pub(super) fn start(place: Place, pods: &Kubepods) -> Result<Self> {
        let mut retainer = Self {
            process: None,
            container: None,
            pod: pods.pod(POD)?,
            place,
            containers: 0,
        };
        retainer.run()?;
        Ok(retainer)
    }

    /// Runs it in a new container.
    pub(super) fn run(&mut self) -> Result<()> {
        self.containers += 1;
        let container = self.pod.child(&format!("container-{}", self.containers))?;
        let socket = self.place.socket();
        let arguments = ["retainer", "--listen"].map(OsStr::new);
        let program = Program {
            path: binaries::driver()?,
            arguments: [arguments.as_slice(), &[socket.as_os_str()]].concat(),
            uid: USER,
            address_space: None,
            variable: None,
        };
        let mut process = Process::start(&program, &container)?;
        let listens = poll(START, || {
            UnixStream::connect(&socket).is_ok() || process.check_alive().is_err()
        });
        process.check_alive()?;
        ensure!(listens, "the retainer does not listen");
        (self.process, self.container) = (Some(process), Some(container));
        Ok(())
    }

    /// `kill -9`; its container's cgroup goes, and what was charged to it is the pod's.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)?;
        self.container.take().map_or(Ok(()), Cgroup::remove)
    }

    /// Whether it was killed and did not come back yet.
    pub(super) fn is_gone(&self) -> bool {
        self.process.is_none()
    }
}
