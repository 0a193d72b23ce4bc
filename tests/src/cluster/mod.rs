//! A real Kubernetes on this machine: etcd, the control plane, and nodes with a containerd and a kubelet each.
//!
//! All of it runs in a network, a mount and a pid namespace of its own, whose first process the file `processes/holder.pid` names. When that
//! one ends, the kernel ends every process, removes every mount and every interface. What is left then are cgroups and one
//! directory, both named after the cluster. `docs/testing-cluster.md` says how to use it.

mod arguments;
mod control_plane;
mod credentials;
mod hold;
mod interrupt;
mod namespaces;
mod network;
mod node;
mod node_cgroups;
mod node_settings;
mod place;
mod programs;
mod recorded;
mod workload;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub use arguments::run;
pub use namespaces::Namespaces;
pub use node::Node;
pub use place::{ClusterId, Place};
use programs::Programs;
pub use recorded::Recorded;

/// Most nodes of a cluster.
pub const MOST_NODES: u8 = 9;

/// The records of the first process of a cluster, and of whoever starts one. The first is also the name of the program that holds namespaces.
const HOLDER: &str = "holder";
const STARTER: &str = "starter";

/// How long processes may take to be gone once their namespace is.
const END: Duration = Duration::from_secs(30);

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the programs were built.
    pub programs: PathBuf,
    /// Archives of images that every node gets.
    pub images: Vec<PathBuf>,
    /// How many nodes.
    pub nodes: u8,
    /// Memory that a node offers to pods, in bytes.
    pub node_memory: u64,
}

/// A cluster that is up, or on its way.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    holder: Recorded,
}

impl Cluster {
    /// Starts a cluster. Returns when its nodes are ready.
    ///
    /// # Errors
    /// When there is one of this name, or something does not start; then nothing is left.
    pub fn up(id: &ClusterId, wanted: &Wanted) -> Result<Self> {
        let place = Place::of(id);
        if let Ok(cluster) = Self::open(id) {
            let nodes = place.nodes()?;
            if nodes != wanted.nodes {
                bail!("cluster {id} is up, with {nodes} nodes");
            }
            return Ok(cluster);
        }
        if starter(&place)?.is_some() {
            bail!("cluster {id} is being started");
        }
        let programs = Programs::find(&wanted.programs)?;
        remove(id)?;
        fs::create_dir(place.root()).with_context(|| place.root().display().to_string())?;
        Recorded::write(&place.processes(), STARTER, Pid::this())?;
        let started = Self::start_all(place, wanted, &programs);
        started.inspect_err(|_| {
            if let Err(error) = remove(id) {
                eprintln!("cluster {id} is not removed: {error:#}");
            }
        })
    }

    fn start_all(place: Place, wanted: &Wanted, programs: &Programs) -> Result<Self> {
        fs::create_dir(place.root().join("log"))?;
        let bin = place.root().join("bin");
        programs.name_in(&bin)?;
        // Tests start nodes again, and are other programs.
        std::os::unix::fs::symlink(std::env::current_exe()?, bin.join(HOLDER))?;
        credentials::make(&place, wanted.nodes)?;
        let (read, stay) = std::io::pipe()?;
        let cluster = Self::hold(place, Stdio::from(read))?;
        network::make_bridge(cluster.namespaces())?;
        cluster.start_control_plane()?;
        for n in 1..=wanted.nodes {
            cluster.node(n).start(wanted.node_memory)?;
        }
        cluster.import_all(wanted)?;
        cluster.wait_for_nodes(wanted.nodes)?;
        cluster.place.complete(wanted.nodes)?;
        // Until here it would have ended together with this process.
        let mut stay = stay;
        stay.write_all(hold::STAY.as_bytes())?;
        Ok(cluster)
    }

    /// Gives all nodes their images, each beside the others: unpacking is what takes longest.
    fn import_all(&self, wanted: &Wanted) -> Result<()> {
        let import = |n| -> Result<()> {
            let node = self.node(n);
            wanted
                .images
                .iter()
                .try_for_each(|image| node.import(image))
        };
        thread::scope(|scope| {
            let running: Vec<_> = (1..=wanted.nodes)
                .map(|n| scope.spawn(move || import(n)))
                .collect();
            running.into_iter().try_for_each(|node| {
                node.join()
                    .map_err(|_| anyhow!("an import panicked"))
                    .flatten()
            })
        })
    }

    /// Makes the namespaces.
    fn hold(place: Place, stdin: Stdio) -> Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation=slave",
                "--",
            ])
            .arg(std::env::current_exe()?)
            .arg("hold");
        let outer = namespaces::start(&mut command, None, stdin, &place.log("holder"))?;
        let holder = namespaces::child_of(outer)?;
        let holder = Recorded::write(&place.processes(), HOLDER, holder)?;
        let cluster = Self { place, holder };
        let inside = cluster.namespaces();
        inside.run("mount", &["-t", "proc", "proc", "/proc"])?;
        inside.run("mount", &["--make-rshared", "/"])?;
        Ok(cluster)
    }

    fn wait_for_nodes(&self, nodes: u8) -> Result<()> {
        for n in 1..=nodes {
            let node = format!("node/n{n}");
            for condition in ["create", "condition=Ready"] {
                self.kubectl(&[
                    "wait",
                    &node,
                    &format!("--for={condition}"),
                    "--timeout=180s",
                ])?;
            }
        }
        // What every pod needs, and appears a moment after the API server.
        let account = "serviceaccount/default";
        self.kubectl(&["wait", account, "--for=create", "--timeout=60s"])?;
        Ok(())
    }

    /// The cluster of this name.
    ///
    /// # Errors
    /// When it is not up.
    pub fn open(id: &ClusterId) -> Result<Self> {
        let place = Place::of(id);
        place.nodes()?;
        let holder = Recorded::read(&place.processes(), HOLDER)?;
        match holder.filter(Recorded::is_alive) {
            Some(holder) => Ok(Self { place, holder }),
            None => bail!("cluster {id} is not up"),
        }
    }

    /// Where it has what.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its namespaces: where its API server can be reached.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::of(self.holder.pid())
    }

    /// A program of the cluster: kubectl, helm, …
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.place.root().join("bin").join(name)
    }

    /// A command inside, as the administrator, that finds kubectl and helm.
    ///
    /// # Errors
    /// When the cluster is gone.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = std::iter::once(self.place.root().join("bin"));
        let folders = std::env::join_paths(own.chain(std::env::split_paths(&path)))?;
        let mut command = self.namespaces().command(program)?;
        command
            .env("PATH", folders)
            .env("KUBECONFIG", self.place.kubeconfig("admin"));
        Ok(command)
    }

    /// Runs kubectl as the administrator and returns what it wrote.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(self.program("kubectl"))?;
        namespaces::output(command.args(arguments), "kubectl")
    }

    /// Gives all nodes an image.
    ///
    /// # Errors
    /// When a node does not take it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        (1..=self.place.nodes()?).try_for_each(|n| self.node(n).import(archive))
    }
}

/// Who is starting this cluster, if anybody is.
fn starter(place: &Place) -> Result<Option<Recorded>> {
    let starter = Recorded::read(&place.processes(), STARTER)?;
    Ok(starter.filter(|starter| starter.is_alive() && place.nodes().is_err()))
}

/// Removes what is left of clusters that ended without being removed, and returns their names.
///
/// # Errors
/// When something is left.
pub fn remove_ended() -> Result<Vec<ClusterId>> {
    let mut removed = Vec::new();
    for place in Place::all()? {
        let holder = Recorded::read(&place.processes(), HOLDER)?;
        let lives = holder.is_some_and(|holder| holder.is_alive());
        if !lives && starter(&place)?.is_none() {
            remove(place.id())?;
            removed.push(place.id().clone());
        }
    }
    Ok(removed)
}

/// Ends and removes everything that the cluster of this name is or was, and nothing else. Returns whether there was anything.
///
/// # Errors
/// When something is left.
pub fn remove(id: &ClusterId) -> Result<bool> {
    let place = Place::of(id);
    // First, or it would go on making what is removed here.
    if let Some(starter) = starter(&place)?.filter(|starter| starter.pid() != Pid::this()) {
        starter.end(Signal::SIGKILL, END)?;
    }
    if let Some(holder) = Recorded::read(&place.processes(), HOLDER)? {
        holder.end(Signal::SIGKILL, END)?;
    }
    // A holder that was started and not yet recorded ends by itself: nobody can tell it to stay.
    for n in 1..=MOST_NODES {
        node_cgroups::remove(&place.cgroup(&format!("n{n}")))?;
    }
    match fs::remove_dir_all(place.root()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => {
            other.with_context(|| place.root().display().to_string())?;
            Ok(true)
        }
    }
}
