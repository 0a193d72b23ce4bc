//! The driver as a process that is killed from outside, or inside at a fail point.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint};

use crate::patient;

/// How long a driver may take to serve on a busy machine.
const START: Duration = Duration::from_secs(60);

/// How often a driver is told to end that may not have begun.
const TRIES: u32 = 5;

/// A driver over a folder, and the node's identity of this boot.
pub(crate) struct Driver {
    folder: PathBuf,
    child: Option<Child>,
    channel: Option<Channel>,
    boots: u32,
    /// Only the controller, for these nodes. None: everything, for one node.
    pub(crate) nodes: Vec<&'static str>,
    /// What it logs.
    pub(crate) level: &'static str,
    /// How often it died at which fail point.
    pub(crate) deaths: BTreeMap<String, u64>,
}

impl Driver {
    pub(crate) fn new(folder: &Path) -> Self {
        for name in ["kubelet/pods", "kubelet/plugins"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let mut driver = Self {
            folder: folder.to_owned(),
            child: None,
            channel: None,
            boots: 0,
            nodes: Vec::new(),
            level: "info",
            deaths: BTreeMap::new(),
        };
        driver.next_boot();
        driver
    }

    /// Whether it is there, as far as is known.
    pub(crate) fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// A connection to the driver, which is started when it does not run.
    pub(crate) async fn connect(&mut self) -> Channel {
        if let Some(channel) = &self.channel {
            return channel.clone();
        }
        let socket = format!("unix:{}", self.folder.join("csi.sock").display());
        let end = Instant::now() + patient(START);
        while Instant::now() < end {
            if self.child.is_none() {
                self.start();
            }
            let endpoint = Endpoint::from_shared(socket.clone()).unwrap();
            if let Ok(channel) = endpoint.connect().await {
                self.channel = Some(channel.clone());
                return channel;
            }
            if let Some(ended) = self.child.as_mut().unwrap().try_wait().unwrap() {
                // At a fail point of its start, or by itself.
                assert!(self.spare(), "the driver ended: {ended}: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the driver does not serve: {}", self.log());
    }

    fn start(&mut self) {
        let at = |name: &str| self.folder.join(name);
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(at("log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vineyard-csi"));
        match self.nodes.as_slice() {
            [] => {
                let paths = [
                    ("--layers", "layers"),
                    ("--kubelet-dir", "kubelet"),
                    ("--run-dir", "run"),
                    ("--cgroup-root", "cgroup"),
                    ("--boot-id-file", "boot_id"),
                ];
                command.args(["standalone", "--node-id", "replay", "--budget", "16MiB"]);
                for (flag, name) in paths {
                    command.arg(flag).arg(at(name));
                }
            }
            nodes => {
                command.arg("controller");
                command.args(nodes.iter().flat_map(|node| ["--node", node]));
            }
        }
        let child = command
            .args(["--default-capacity", "1MiB"])
            .arg("--endpoint")
            .arg(at("csi.sock"))
            .arg("--catalog")
            .arg(at("catalog"))
            .env("RUST_LOG", self.level)
            .env("VINEYARD_FAILPOINTS", self.orders())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn orders(&self) -> PathBuf {
        self.folder.join("orders")
    }

    /// Tells the driver to obey at a fail point: `kill * 3`, at the third from now on; `hold stage.recorded 1`.
    pub(crate) fn order(&self, order: &str) {
        let beside = self.folder.join("orders.new");
        fs::write(&beside, order).unwrap();
        fs::rename(&beside, self.orders()).unwrap();
    }

    /// The order that was obeyed, and at which point: `kill stage.recorded`.
    pub(crate) fn hit(&self) -> Option<String> {
        match fs::read_to_string(self.orders().with_extension("hit")) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            hit => Some(hit.unwrap()),
        }
    }

    /// Whether it obeyed an order to kill.
    pub(crate) fn killed_itself(&self) -> bool {
        self.hit().is_some_and(|hit| hit.starts_with("kill "))
    }

    /// Waits until the driver is held somewhere.
    pub(crate) async fn held(&self) {
        let end = Instant::now() + patient(START);
        while self.hit().is_none() {
            assert!(Instant::now() < end, "nothing is held: {}", self.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets go on what is held; the next order stays.
    pub(crate) fn release(&self) {
        fs::remove_file(self.orders().with_extension("hit")).unwrap();
    }

    /// Takes an order back. Whoever was held goes on.
    pub(crate) fn withdraw(&self) {
        let _ = fs::remove_file(self.orders());
        let _ = fs::remove_file(self.orders().with_extension("hit"));
    }

    /// Takes back an order to kill. Whether it was too late, and the driver is dead.
    pub(crate) fn spare(&mut self) -> bool {
        let _ = fs::remove_file(self.orders());
        let hit = self.hit();
        self.withdraw();
        let Some(point) = hit.as_deref().and_then(|hit| hit.strip_prefix("kill ")) else {
            return false;
        };
        *self.deaths.entry(point.to_owned()).or_default() += 1;
        self.channel = None;
        if let Some(mut child) = self.child.take() {
            let ended = child.wait().unwrap();
            assert_eq!(ended.signal(), Some(9), "{ended}: {}", self.log());
        }
        true
    }

    /// SIGKILL, and nothing else of it is left but a mount or an unmount that was under way.
    pub(crate) fn kill(&mut self) {
        self.channel = None;
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Everything that a restart of the machine takes away.
    pub(crate) fn reboot(&mut self) {
        self.kill();
        // A child that unmounts may still be at it: then one is gone already, or busy for a moment.
        let end = Instant::now() + patient(START);
        while !self.mounts().is_empty() && Instant::now() < end {
            for point in self.mounts().iter().rev() {
                let _ = umount2(point, MntFlags::empty());
            }
        }
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
        let _ = fs::remove_dir_all(self.folder.join("run"));
        self.next_boot();
    }

    fn next_boot(&mut self) {
        self.boots += 1;
        let boot = format!("boot-{}\n", self.boots);
        fs::write(self.folder.join("boot_id"), boot).unwrap();
    }

    /// Mount points below the folder, in the order in which they were mounted.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from);
        points
            .filter(|point| point.starts_with(&self.folder) && *point != self.folder)
            .collect()
    }

    /// Everything that the driver said.
    pub(crate) fn whole_log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// What the driver said last.
    pub(crate) fn log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// No mount, no directory, no record, not even half of one.
    pub(crate) async fn assert_nothing_is_left(&mut self) {
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
        let own = ["lock", "nodes", "nodes/replay.json", "nodes/replay.beat"];
        let end = Instant::now() + patient(START);
        // A node reports beside its calls. What a driver that was killed has left of a report, the next one replaces.
        let mut left = self.below("catalog", &own);
        while left == ["nodes/replay.tmp"] && Instant::now() < end {
            self.connect().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            left = self.below("catalog", &own);
        }
        assert_eq!(left, [""; 0]);
        for folder in [
            "layers",
            "kubelet/pods",
            "kubelet/plugins",
            "run/pods",
            "run/book",
            "run/bill/volumes",
            "run/bill/leaving",
        ] {
            assert_eq!(self.below(folder, &[]), [""; 0]);
        }
        self.end().await;
        let mut run = self.below("run", &[]);
        run.retain(|name| !self.folder.join("run").join(name).is_dir());
        assert_eq!(run, [""; 0], "of a driver that has ended");
    }

    /// SIGTERM, as kubelet ends it.
    async fn end(&mut self) {
        // What was connected to may be what is left of one that was killed; then the new one may be told before it has begun.
        for _ in 0..TRIES {
            self.connect().await;
            self.channel = None;
            let mut child = self.child.take().unwrap();
            let pid = Pid::from_raw(child.id().try_into().unwrap());
            kill(pid, Signal::SIGTERM).unwrap();
            let ended = loop {
                if let Some(ended) = child.try_wait().unwrap() {
                    break ended;
                }
                // Meanwhile the connection is closed, which it waits for.
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            if ended.success() {
                return;
            }
            let signal = ended.signal();
            assert_eq!(signal, Some(Signal::SIGTERM as i32), "{}", self.log());
        }
        panic!("it does not end in order: {}", self.log());
    }

    /// What is below one of the folders, but for what always is.
    fn below(&self, folder: &str, own: &[&str]) -> Vec<String> {
        let folder = self.folder.join(folder);
        let (mut found, mut pending) = (Vec::new(), vec![folder.clone()]);
        while let Some(next) = pending.pop() {
            // A driver that never ran has made none.
            for entry in fs::read_dir(next).into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&folder).unwrap().display().to_string();
                pending.push(path);
                if !own.contains(&name.as_str()) {
                    found.push(name);
                }
            }
        }
        found
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
        for point in self.mounts().iter().rev() {
            let _ = umount2(point, MntFlags::empty());
        }
    }
}
