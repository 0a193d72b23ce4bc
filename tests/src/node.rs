//! A node: the real driver, which can be killed, and what kubelet asks of it.
//!
//! The pods that it mounts for are told by their cgroups in kubelet's layout below the node's, and by kubelet's paths. Whatever is
//! mounted below its folder goes with it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use vineyard_proto::csi::controller_client::ControllerClient;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use vineyard_proto::csi::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};

use crate::binaries;
use crate::cgroups::{Cgroup, unique_name};
use crate::kubepods::{Kubepods, Layout};
use crate::process::{Process, Program, poll};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The file that tells boots apart.
const BOOT: &str = "boot";

/// A driver in a folder of its own.
#[derive(Debug)]
pub struct Node {
    driver: Option<Process>,
    retainer: Option<Process>,
    flags: Vec<String>,
    runtime: Runtime,
    own: Cgroup,
    retained: Cgroup,
    pods: Kubepods,
    root: Cgroup,
    folder: TempDir,
}

impl Node {
    /// A node whose driver runs, with more `flags`.
    ///
    /// # Errors
    /// When the kernel refuses, or the driver does not start.
    pub fn new(flags: &[&str]) -> Result<Self> {
        Self::laid_out(Layout::Cgroupfs, flags)
    }

    /// The same, with cgroups of pods in this layout.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn laid_out(layout: Layout, flags: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&unique_name())
            .tempdir()
            .context("a temporary directory")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        fs::create_dir_all(folder.path().join("kubelet/pods"))?;
        fs::write(folder.path().join(BOOT), unique_name())?;
        let root = Cgroup::run()?;
        let mut node = Self {
            own: root.child("driver")?,
            retained: root.child("retainer")?,
            pods: Kubepods::new(&root, layout)?,
            root,
            folder,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            driver: None,
            retainer: None,
        };
        node.start()?;
        Ok(node)
    }

    /// The same, with a retainer.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_retainer(flags: &[&str]) -> Result<Self> {
        let mut node = Self::new(flags)?;
        node.kill()?;
        let socket = node.folder().join("retainer.sock");
        let arguments = ["retainer".as_ref(), "--listen".as_ref(), socket.as_os_str()];
        let program = Program {
            path: binaries::driver()?,
            arguments: arguments.to_vec(),
            uid: 0,
            address_space: None,
            variable: None,
        };
        node.retainer = Some(Process::start(&program, &node.retained)?);
        ensure!(
            poll(PATIENCE, || UnixStream::connect(&socket).is_ok()),
            "the retainer does not listen"
        );
        let flags = ["--retainer".to_owned(), text(&socket)];
        node.flags.extend(flags);
        node.start()?;
        Ok(node)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cgroups of its pods.
    #[must_use]
    pub fn pods(&self) -> &Kubepods {
        &self.pods
    }

    /// The cgroup that holds all others of the node.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.root
    }

    /// The cgroup that the driver runs in.
    #[must_use]
    pub fn driver_cgroup(&self) -> &Cgroup {
        &self.own
    }

    /// The cgroup that the retainer runs in.
    #[must_use]
    pub fn retainer_cgroup(&self) -> &Cgroup {
        &self.retained
    }

    /// Ends the driver as `kill -9` does, a while from now and whatever it is doing then. Wait for that before it is started
    /// again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_within(&mut self, delay: Duration) -> Result<JoinHandle<Result<()>>> {
        let driver = self.driver.take().context("no driver runs")?;
        Ok(thread::spawn(move || {
            thread::sleep(delay);
            driver.kill()
        }))
    }

    /// Starts the driver, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(&mut self) -> Result<()> {
        let at = |name: &str| self.folder().join(name);
        let (endpoint, catalog, layers) = (at("csi.sock"), at("catalog"), at("layers"));
        let (kubelet, run, orders) = (at("kubelet"), at("run"), self.orders());
        let boot = at(BOOT);
        let mut arguments: Vec<&OsStr> = ["standalone", "--node-id", "test", "--budget", "8GiB"]
            .map(OsStr::new)
            .into();
        for (flag, path) in [
            ("--endpoint", endpoint.as_path()),
            ("--catalog", &catalog),
            ("--layers", &layers),
            ("--kubelet-dir", &kubelet),
            ("--run-dir", &run),
            ("--boot-id-file", &boot),
            ("--cgroup-root", self.root.directory()),
        ] {
            arguments.extend([OsStr::new(flag), path.as_os_str()]);
        }
        arguments.extend(self.flags.iter().map(OsStr::new));
        let program = Program {
            path: binaries::driver()?,
            arguments,
            uid: 0,
            address_space: None,
            variable: Some(("VINEYARD_FAILPOINTS", orders.as_os_str())),
        };
        self.driver = Some(Process::start(&program, &self.own)?);
        self.call(|channel| async move {
            NodeClient::new(channel)
                .node_get_info(tonic::Request::new(Default::default()))
                .await
        })?;
        Ok(())
    }

    /// The driver's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn driver(&mut self) -> Result<&mut Process> {
        self.driver.as_mut().context("no driver runs")
    }

    /// `kill -9` of the driver.
    ///
    /// # Errors
    /// When it had died before.
    pub fn kill(&mut self) -> Result<()> {
        self.driver.take().map_or(Ok(()), Process::kill)
    }

    /// SIGTERM to the driver.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(driver) = self.driver.take() else {
            return Ok(());
        };
        driver.signal(Signal::SIGTERM)?;
        driver.wait(PATIENCE).map(drop)
    }

    /// The node goes down and comes up: the driver, whatever is mounted and the memory in it are gone, and so is the run directory
    /// unless it was on a disk. Everybody else must be gone already. The driver is not started.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reboot(&mut self, keeps_run: bool) -> Result<()> {
        self.kill()?;
        for point in self.mounts()?.iter().rev() {
            umount2(point, MntFlags::MNT_DETACH)?;
        }
        if !keeps_run {
            fs::remove_dir_all(self.folder().join("run"))?;
        }
        Ok(fs::write(self.folder().join(BOOT), unique_name())?)
    }

    /// Calls the driver once, whatever comes of it.
    fn attempt<T, F>(
        &self,
        endpoint: &Endpoint,
        call: &impl Fn(Channel) -> F,
    ) -> Option<Result<Response<T>, Status>>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.runtime.block_on(async {
            let channel = endpoint.connect().await.ok()?;
            Some(call(channel).await)
        })
    }

    /// Calls the driver, again while it says that somebody is at it.
    ///
    /// # Errors
    /// What it answers.
    pub fn call<T, F>(&mut self, call: impl Fn(Channel) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let uri = format!("unix:{}", self.folder().join("csi.sock").display());
        let endpoint = Endpoint::from_shared(uri)?;
        if self.obeyed()? {
            self.start()?;
        }
        let mut answer = None;
        let answered = poll(PATIENCE, || {
            answer = self.attempt(&endpoint, &call);
            match &answer {
                // It is being killed: whoever does that starts it again.
                _ if self.driver.is_none() || self.hit() => true,
                None => false,
                // Unknown: a killed driver's child accepted before it became another program.
                Some(Err(status)) => !is_uncertain(status),
                Some(Ok(_)) => true,
            }
        });
        // It has died because it was ordered to.
        if self.hit() {
            return self.call(call);
        }
        if let Some(driver) = &mut self.driver {
            driver.check_alive()?;
        }
        match answer {
            Some(Ok(answer)) if answered => Ok(answer.into_inner()),
            Some(Err(status)) => Err(status.into()),
            _ => bail!("the driver does not answer"),
        }
    }

    fn orders(&self) -> PathBuf {
        self.folder().join("orders")
    }

    /// Has the driver die at the n-th fail point that it passes from now on. The next call starts it again.
    ///
    /// # Errors
    /// When the order cannot be written.
    pub fn order_death(&self, passage: u64) -> Result<()> {
        let beside = self.folder().join("orders.new");
        fs::write(&beside, format!("kill * {passage}"))?;
        Ok(fs::rename(beside, self.orders())?)
    }

    /// Takes the order back. Whether it was obeyed; then the driver is gone.
    ///
    /// # Errors
    /// When the driver does not die of it.
    pub fn spare(&mut self) -> Result<bool> {
        let _ = fs::remove_file(self.orders());
        self.obeyed()
    }

    fn hit(&self) -> bool {
        self.orders().with_extension("hit").exists()
    }

    /// Reaps a driver that obeyed its order.
    fn obeyed(&mut self) -> Result<bool> {
        if !self.hit() {
            return Ok(false);
        }
        if let Some(driver) = self.driver.take() {
            driver.wait(PATIENCE)?;
        }
        fs::remove_file(self.orders().with_extension("hit"))?;
        Ok(true)
    }

    /// Creates a volume.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn create(&mut self, name: &str, bytes: u64) -> Result<()> {
        let request = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange {
                required_bytes: i64::try_from(bytes)?,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![capability()],
            ..Default::default()
        };
        self.call(|channel| {
            let request = request.clone();
            async move { ControllerClient::new(channel).create_volume(request).await }
        })
        .map(drop)
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        let request = DeleteVolumeRequest {
            volume_id: name.into(),
            ..Default::default()
        };
        self.call(|channel| {
            let request = request.clone();
            async move { ControllerClient::new(channel).delete_volume(request).await }
        })
        .map(drop)
    }

    /// Stages a volume and publishes it to a pod. Returns where the pod has it.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn publish(&mut self, name: &str, pod: &str, read_only: bool) -> Result<PathBuf> {
        let stage = NodeStageVolumeRequest {
            volume_id: name.into(),
            staging_target_path: text(&self.staging(name)),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.call(|channel| {
            let request = stage.clone();
            async move { NodeClient::new(channel).node_stage_volume(request).await }
        })?;
        self.publish_staged(name, pod, read_only)
    }

    /// Publishes a volume to a pod that is staged, or that kubelet believes to be.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn publish_staged(&mut self, name: &str, pod: &str, read_only: bool) -> Result<PathBuf> {
        let target = self.target(pod, name)?;
        let publish = NodePublishVolumeRequest {
            volume_id: name.into(),
            staging_target_path: text(&self.staging(name)),
            target_path: text(&target),
            volume_capability: Some(capability()),
            readonly: read_only,
            ..Default::default()
        };
        self.call(|channel| {
            let request = publish.clone();
            async move { NodeClient::new(channel).node_publish_volume(request).await }
        })?;
        Ok(target)
    }

    /// Publishes a pod's sockets volume, for which it says how much it writes. Returns a short path to it.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn publish_sockets(&mut self, pod: &str, writes: Option<&str>) -> Result<PathBuf> {
        let target = self.target(pod, "sockets")?;
        let mut context = vec![("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned())];
        context.extend(writes.map(|writes| ("vineyard.io/writes".to_owned(), writes.to_owned())));
        let request = NodePublishVolumeRequest {
            volume_id: sockets_id(pod),
            target_path: text(&target),
            volume_capability: Some(capability()),
            volume_context: context.into_iter().collect(),
            ..Default::default()
        };
        self.call(|channel| {
            let request = request.clone();
            async move { NodeClient::new(channel).node_publish_volume(request).await }
        })?;
        // Where a container has it is as short.
        let short = self.folder().join(pod);
        if !short.exists() {
            symlink(&target, &short)?;
        }
        Ok(short)
    }

    /// Takes a volume, or `sockets`, away from a pod.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn unpublish(&mut self, name: &str, pod: &str) -> Result<()> {
        let volume_id = match name {
            "sockets" => sockets_id(pod),
            name => name.into(),
        };
        let request = NodeUnpublishVolumeRequest {
            volume_id,
            target_path: text(&self.target(pod, name)?),
        };
        self.call(|channel| {
            let request = request.clone();
            async move {
                NodeClient::new(channel)
                    .node_unpublish_volume(request)
                    .await
            }
        })
        .map(drop)
    }

    /// Unstages a volume.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn unstage(&mut self, name: &str) -> Result<()> {
        let request = NodeUnstageVolumeRequest {
            volume_id: name.into(),
            staging_target_path: text(&self.staging(name)),
        };
        self.call(|channel| {
            let request = request.clone();
            async move { NodeClient::new(channel).node_unstage_volume(request).await }
        })
        .map(drop)
    }

    /// What is on record of a pod's grants, as JSON; `None` when there is nothing.
    ///
    /// # Errors
    /// When the record is none.
    pub fn record(&self, pod: &str) -> Result<Option<serde_json::Value>> {
        let path = self.folder().join(format!("run/book/{pod}.json"));
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Mount points below the node's folder, in the order in which they were mounted.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let points = points.map(PathBuf::from);
        Ok(points
            .filter(|point| point.starts_with(self.folder()))
            .collect())
    }

    fn staging(&self, name: &str) -> PathBuf {
        self.folder().join(format!("kubelet/{name}-globalmount"))
    }

    /// Kubelet makes the parent.
    fn target(&self, pod: &str, name: &str) -> Result<PathBuf> {
        let parent = format!("kubelet/pods/{pod}/volumes/kubernetes.io~csi/{name}");
        let parent = self.folder().join(parent);
        fs::create_dir_all(&parent)?;
        Ok(parent.join("mount"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop((self.driver.take(), self.retainer.take()));
        for point in self.mounts().unwrap_or_default().iter().rev() {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

/// Worth another try, as kubelet sees it.
fn is_uncertain(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Aborted | Code::Unavailable | Code::Unknown | Code::Cancelled
    )
}

fn sockets_id(pod: &str) -> String {
    // As long as kubelet's: "csi-" and a SHA-256.
    format!("csi-{pod:0>64}")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeMultiWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}
