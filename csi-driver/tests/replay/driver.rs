//! The driver as a process that can be killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// A driver over a folder, and the node's identity of this boot.
pub(crate) struct Driver {
    folder: PathBuf,
    child: Option<Child>,
    boots: u32,
}

impl Driver {
    pub(crate) fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder.join("kubelet/pods")).unwrap();
        let mut driver = Self {
            folder: folder.to_owned(),
            child: None,
            boots: 0,
        };
        driver.next_boot();
        driver
    }

    /// A connection to the driver, which is started when it does not run.
    pub(crate) async fn connect(&mut self) -> Channel {
        let socket = self.folder.join("csi.sock");
        for _ in 0..3_000 {
            if self.child.is_none() {
                self.start();
            }
            let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
            if let Ok(channel) = endpoint.connect().await {
                return channel;
            }
            if let Some(ended) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the driver ended: {ended}: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the driver does not serve: {}", self.log());
    }

    fn start(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let at = |name: &str| self.folder.join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_vineyard-csi"))
            .arg("standalone")
            .args([
                "--node-id",
                "replay",
                "--budget",
                "16MiB",
                "--default-capacity",
                "1MiB",
            ])
            .arg("--endpoint")
            .arg(at("csi.sock"))
            .arg("--catalog")
            .arg(at("catalog"))
            .arg("--layers")
            .arg(at("layers"))
            .arg("--run-dir")
            .arg(at("run"))
            .arg("--kubelet-dir")
            .arg(at("kubelet"))
            .arg("--boot-id-file")
            .arg(at("boot_id"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// SIGKILL, and nothing else of it is left but a mount or an unmount that was under way.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Everything that a restart of the machine takes away.
    pub(crate) fn reboot(&mut self) {
        self.kill();
        // A child that unmounts may still be at it, so one that is gone already is fine.
        for point in self.mounts().iter().rev() {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::empty());
        }
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
        self.next_boot();
    }

    fn next_boot(&mut self) {
        self.boots += 1;
        fs::write(
            self.folder.join("boot_id"),
            format!("boot-{}\n", self.boots),
        )
        .unwrap();
    }

    /// Mount points below the folder, in the order in which they were mounted.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from);
        points
            .filter(|point| point.starts_with(&self.folder))
            .collect()
    }

    /// What the driver said last.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
        for point in self.mounts().iter().rev() {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::empty());
        }
    }
}
