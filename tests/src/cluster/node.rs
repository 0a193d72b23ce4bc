//! A node: namespaces with a containerd and a kubelet of its own. Ending its first process is what pulling its plug is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use vineyard_charge::cgroup::Hierarchy;

use super::namespaces::{self, Namespaces, child_of};
use super::network;
use super::recorded::Recorded;
use super::{Cluster, HOLDER, node_cgroups, node_settings};
use crate::process::poll;

/// What of the machine's directories a node has of its own, beside `/run`.
const OWN: [&str; 2] = ["/var/lib", "/var/log"];

/// How long a program may take to begin to serve.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    cluster: &'a Cluster,
    number: u8,
}

impl Cluster {
    /// Node `number`, counted from 1.
    #[must_use]
    pub fn node(&self, number: u8) -> Node<'_> {
        Node {
            cluster: self,
            number,
        }
    }
}

impl Node<'_> {
    /// Its name: `n1`, …
    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// One of its processes: `init`, `containerd` or `kubelet`.
    ///
    /// # Errors
    /// When it was never started.
    pub fn process(&self, name: &str) -> Result<Recorded> {
        let name = format!("{}.{name}", self.name());
        let read = Recorded::read(&self.cluster.place.processes(), &name)?;
        read.with_context(|| format!("{name} was never started"))
    }

    /// What `/proc` shows of its first process: mounts, and as `root` all of its directories.
    ///
    /// # Errors
    /// When it is not there.
    pub fn proc(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!(
            "/proc/{}",
            self.process("init")?.pid()
        )))
    }

    /// Its directories, as other processes of the machine reach them.
    ///
    /// # Errors
    /// When it is not there.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(self.proc()?.join("root"))
    }

    /// Its cgroup in the hierarchy that accounts memory.
    ///
    /// # Errors
    /// When none does.
    pub fn memory_cgroup(&self) -> Result<PathBuf> {
        let mount = Hierarchy::detect()?.mount;
        Ok(mount.join(self.cluster.place.cgroup(&self.name())))
    }

    /// Its namespaces.
    ///
    /// # Errors
    /// When it is not there.
    pub fn namespaces(&self) -> Result<Namespaces> {
        Ok(Namespaces::of(self.process("init")?.pid()))
    }

    /// Starts everything that a node is.
    ///
    /// # Errors
    /// When a step fails.
    pub(super) fn start(&self, memory: u64) -> Result<()> {
        let place = &self.cluster.place;
        let root = place.node(&self.name());
        for own in OWN {
            fs::create_dir_all(root.join(own.trim_start_matches('/')))?;
        }
        node_cgroups::make(&place.cgroup(&self.name()))?;
        node_settings::write(self.cluster, &root, self.number, memory)?;
        self.boot()
    }

    /// Switches it on.
    ///
    /// # Errors
    /// When a step fails.
    pub fn boot(&self) -> Result<()> {
        let place = &self.cluster.place;
        let cluster = self.cluster.namespaces();
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation=unchanged",
                "--",
            ])
            .arg(self.cluster.program(HOLDER))
            .args(["hold", "--stay"]);
        let log = place.log(&format!("{}.init", self.name()));
        let outer = namespaces::start(&mut command, Some(cluster), Stdio::null(), &log)?;
        let init = child_of(outer)?;
        Recorded::write(&place.processes(), &format!("{}.init", self.name()), init)?;
        let inside = Namespaces::of(init);
        // First, or the machine would have the node's mounts.
        inside.run("mount", &["--make-rslave", "/"])?;
        inside.run("mount", &["-t", "proc", "proc", "/proc"])?;
        let root = place.node(&self.name());
        for own in OWN {
            let from = root.join(own.trim_start_matches('/'));
            inside.run("mount", &["--bind", path(&from)?, own])?;
        }
        inside.run("mount", &["-t", "tmpfs", "-o", "mode=755", "run", "/run"])?;
        // Another boot of this node, not of the machine.
        let boot_id = root.join("boot_id");
        fs::write(&boot_id, fs::read("/proc/sys/kernel/random/uuid")?)?;
        inside.run(
            "mount",
            &["--bind", path(&boot_id)?, "/proc/sys/kernel/random/boot_id"],
        )?;
        inside.run("mount", &["--make-rshared", "/"])?;
        network::connect(cluster, inside, self.number, &pid_in_cluster(init)?)?;
        self.start_containerd()?;
        self.start_kubelet()
    }

    /// Starts its containerd and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_containerd(&self) -> Result<()> {
        self.start_program(
            "containerd",
            Command::new("containerd").args(["--config", "/var/lib/node/containerd.toml"]),
        )?;
        let inside = self.namespaces()?;
        let mut last = String::new();
        let serves = poll(PATIENCE, || match inside.run("ctr", &["version"]) {
            Ok(_) => true,
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        });
        if !serves {
            bail!("containerd of {} does not serve: {last}", self.name());
        }
        Ok(())
    }

    /// Starts its kubelet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_kubelet(&self) -> Result<()> {
        let cluster = self.cluster;
        let mut command = Command::new(cluster.program("kubelet"));
        command
            .arg("--config=/var/lib/node/kubelet.yaml")
            .arg(format!(
                "--kubeconfig={}",
                cluster.place.kubeconfig(&self.name()).display()
            ))
            .arg(format!("--hostname-override={}", self.name()))
            .arg(format!("--node-ip={}", network::node_address(self.number)));
        self.start_program("kubelet", &mut command)
    }

    fn start_program(&self, name: &str, command: &mut Command) -> Result<()> {
        let place = &self.cluster.place;
        let name = format!("{}.{name}", self.name());
        let pid = namespaces::start(
            command,
            Some(self.namespaces()?),
            Stdio::null(),
            &place.log(&name),
        )?;
        Recorded::write(&place.processes(), &name, pid)?;
        Ok(())
    }

    /// Gives it an image, from an archive as `docker save` writes it, or an OCI layout.
    ///
    /// # Errors
    /// When containerd does not take it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.namespaces()?
            .run("ctr", &["-n", "k8s.io", "image", "import", path(archive)?])?;
        Ok(())
    }

    /// Pulls its plug: processes, mounts, cgroups and memory are gone at once, directories stay.
    ///
    /// # Errors
    /// When something of it does not end.
    pub fn power_off(&self) -> Result<()> {
        self.process("init")?.end(Signal::SIGKILL, PATIENCE)?;
        node_cgroups::empty(&self.cluster.place.cgroup(&self.name()))
    }
}

/// The pid of a node's first process as processes of the cluster see it.
fn pid_in_cluster(init: Pid) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{init}/status"))?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids: Vec<_> = pids.unwrap_or_default().split_whitespace().collect();
    // The last one is 1: its own namespace.
    let in_cluster = pids
        .len()
        .checked_sub(2)
        .map(|place| pids[place].to_owned());
    in_cluster.with_context(|| format!("process {init} has no pid namespace of its own"))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| path.display().to_string())
}
