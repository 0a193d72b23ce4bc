//! Pods as kubelet would make them: a cgroup each, a sidecar and a client in it, under different users.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use vineyard_charge::RemotePayer;
use vineyard_store::{Options, Volume};

use crate::account::Account;
use crate::cgroups::{Cgroup, unique_name};
use crate::client::{Client, ClientOptions};
use crate::commands::{Answer, Command};
use crate::process::Process;
use crate::sidecar;
use crate::volume_mount::VolumeMount;

/// A volume, and the cgroup below which its pods live.
#[derive(Debug)]
pub struct World {
    mount: VolumeMount,
    run: Cgroup,
    directory: TempDir,
    client: &'static Path,
}

impl World {
    /// A fresh volume of `size` bytes. `client` is the test client's program, which only an integration test knows.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(size: u64, client: &'static str) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(&unique_name())
            .tempdir()
            .context("a temporary directory")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let world = Self {
            run: Cgroup::run()?,
            mount: VolumeMount::new(&directory.path().join("volume"), size, 100_000)?,
            directory,
            client: Path::new(client),
        };
        // The tree is made by the driver, before any pod.
        Volume::open(world.volume(), Options::default())?;
        Ok(world)
    }

    /// The volume's directory.
    #[must_use]
    pub fn volume(&self) -> &Path {
        self.mount.path()
    }

    /// The volume's mount.
    #[must_use]
    pub fn mount(&self) -> &VolumeMount {
        &self.mount
    }

    /// The parent of all pods' cgroups: what removed pods leave is charged to it.
    #[must_use]
    pub fn run(&self) -> &Cgroup {
        &self.run
    }

    /// Makes a pod. Nothing runs in it yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod(&self, settings: PodSettings) -> Result<Pod> {
        let cgroup = self.run.child(&settings.name)?;
        if let Some(limit) = settings.limit {
            cgroup.limit(limit)?;
        }
        let directory = self.directory.path().join(&settings.name);
        // A pod of the same name was another pod.
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        chown(
            &directory,
            Some(settings.sidecar_uid),
            Some(settings.sidecar_uid),
        )?;
        Ok(Pod {
            client: None,
            sidecar: None,
            client_cgroup: cgroup.child("client")?,
            sidecar_cgroup: cgroup.child("sidecar")?,
            cgroup,
            socket: directory.join("vineyard.sock"),
            state: directory.join("spent"),
            volume: self.volume().into(),
            program: self.client,
            settings,
        })
    }

    /// A fresh volume with one pod in which sidecar and client run, and the account of it.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`started`](Self::started).
    pub fn with_pod(size: u64, client: &'static str) -> Result<(Self, Pod, Account)> {
        let world = Self::new(size, client)?;
        let pod = world.started(PodSettings::new("pod", 1))?;
        let account = Account::open(&world)?;
        Ok((world, pod, account))
    }

    /// A fresh volume with two such pods of different users.
    ///
    /// # Errors
    /// As [`with_pod`](Self::with_pod).
    pub fn with_pods(size: u64, client: &'static str) -> Result<(Self, [Pod; 2], Account)> {
        let world = Self::new(size, client)?;
        let pods = [
            world.started(PodSettings::new("one", 1))?,
            world.started(PodSettings::new("two", 2))?,
        ];
        let account = Account::open(&world)?;
        Ok((world, pods, account))
    }

    /// A pod of which only the sidecar runs, and a connection to it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn payer(&self, settings: PodSettings) -> Result<(Pod, RemotePayer)> {
        let mut pod = self.pod(settings)?;
        pod.start_sidecar()?;
        let payer = RemotePayer::connect(pod.socket(), "driver")?;
        Ok((pod, payer))
    }

    /// A pod in which sidecar and client run.
    ///
    /// # Errors
    /// When something does not start.
    pub fn started(&self, settings: PodSettings) -> Result<Pod> {
        let mut pod = self.pod(settings)?;
        pod.start_sidecar()?;
        pod.start_client()?;
        Ok(pod)
    }
}

/// What is different from pod to pod.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// Its name.
    pub name: String,
    /// Bytes that it may add to its bill.
    pub allowance: u64,
    /// The memory limit of the pod's cgroup.
    pub limit: Option<u64>,
    /// The sidecar's user.
    pub sidecar_uid: u32,
    /// The client's user.
    pub client_uid: u32,
}

impl PodSettings {
    /// A pod with room for everything, whose sidecar and client are two users that no other pod has.
    #[must_use]
    pub fn new(name: &str, number: u32) -> Self {
        Self {
            name: name.into(),
            allowance: 1 << 40,
            limit: None,
            sidecar_uid: 65_000 + number,
            client_uid: 10_000 + number,
        }
    }
}

/// A pod. Dropped, its processes are killed and its cgroups removed.
#[derive(Debug)]
pub struct Pod {
    client: Option<Client>,
    sidecar: Option<Process>,
    client_cgroup: Cgroup,
    sidecar_cgroup: Cgroup,
    cgroup: Cgroup,
    socket: PathBuf,
    state: PathBuf,
    volume: PathBuf,
    program: &'static Path,
    settings: PodSettings,
}

impl Pod {
    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &PodSettings {
        &self.settings
    }

    /// The cgroup of the whole pod.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The cgroup of the sidecar's container: what is reserved is charged here.
    #[must_use]
    pub fn sidecar_cgroup(&self) -> &Cgroup {
        &self.sidecar_cgroup
    }

    /// The cgroup of the client's container: ordinary files are charged here.
    #[must_use]
    pub fn client_cgroup(&self) -> &Cgroup {
        &self.client_cgroup
    }

    /// The sidecar's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the sidecar runs.
    #[must_use]
    pub fn has_sidecar(&self) -> bool {
        self.sidecar.is_some()
    }

    /// Whether the client runs.
    #[must_use]
    pub fn has_client(&self) -> bool {
        self.client.is_some()
    }

    /// Starts the sidecar and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_sidecar(&mut self) -> Result<()> {
        let allowance = self.settings.allowance.to_string();
        let arguments: [&OsStr; 6] = [
            "--volume".as_ref(),
            self.volume.as_ref(),
            "--allowance".as_ref(),
            allowance.as_ref(),
            "--state-file".as_ref(),
            self.state.as_ref(),
        ];
        let (uid, container) = (self.settings.sidecar_uid, &self.sidecar_cgroup);
        let process = sidecar::start(&self.socket, &arguments, uid, container)?;
        self.sidecar = Some(process);
        Ok(())
    }

    /// Starts the client.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_client(&mut self) -> Result<()> {
        let options = ClientOptions {
            program: self.program,
            volume: &self.volume,
            socket: Some(&self.socket),
            uid: self.settings.client_uid,
            address_space: None,
        };
        self.client = Some(Client::start(&options, &self.client_cgroup)?);
        Ok(())
    }

    /// The client.
    ///
    /// # Errors
    /// When it does not run.
    pub fn client(&mut self) -> Result<&mut Client> {
        self.client.as_mut().context("no client runs")
    }

    /// The sidecar's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn sidecar(&self) -> Result<&Process> {
        self.sidecar.as_ref().context("no sidecar runs")
    }

    /// Has the client do something.
    ///
    /// # Errors
    /// When it is gone.
    pub fn call(&mut self, command: &Command) -> Result<Answer> {
        self.client()?.call(command)
    }

    /// `kill -9` of the client.
    ///
    /// # Errors
    /// When it had died before.
    pub fn kill_client(&mut self) -> Result<()> {
        self.client.take().map_or(Ok(()), Client::kill)
    }

    /// `kill -9` of the sidecar.
    ///
    /// # Errors
    /// When it had died before.
    pub fn kill_sidecar(&mut self) -> Result<()> {
        self.sidecar.take().map_or(Ok(()), Process::kill)
    }

    /// SIGTERM to the sidecar, as kubelet ends it.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop_sidecar(&mut self, limit: Duration) -> Result<()> {
        let Some(sidecar) = self.sidecar.take() else {
            return Ok(());
        };
        sidecar.signal(Signal::SIGTERM)?;
        sidecar.wait(limit).map(drop)
    }

    /// Ends its processes and removes its cgroups; what it was billed stays in the volume.
    ///
    /// # Errors
    /// When a process had died before, or a cgroup cannot be removed.
    pub fn remove(mut self) -> Result<()> {
        self.kill_client()?;
        self.kill_sidecar()?;
        self.client_cgroup.remove()?;
        self.sidecar_cgroup.remove()?;
        self.cgroup.remove()
    }

    /// Checks that no process died and that the kernel killed none.
    ///
    /// # Errors
    /// When one did.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(client) = &mut self.client {
            client.process().check_alive()?;
        }
        if let Some(sidecar) = &mut self.sidecar {
            sidecar.check_alive()?;
        }
        for cgroup in [&self.cgroup, &self.client_cgroup, &self.sidecar_cgroup] {
            let kills = cgroup.memory().oom_kills()?;
            if kills > 0 {
                bail!(
                    "{kills} processes of {} were OOM-killed",
                    self.settings.name
                );
            }
        }
        Ok(())
    }
}
