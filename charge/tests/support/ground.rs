//! A tmpfs and cgroups of their own for one test, removed again when it ends.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use vineyard_charge::cgroup::Hierarchy;
use vineyard_charge::cgroup::control::ControlledCgroup;
use vineyard_charge::survey::Ledger;
use vineyard_charge::{CgroupId, MemoryCgroup, RemotePayer, ReserveError};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// One at a time: a test that starts a process holds, until that executes something, a copy of every file that the
/// others have open, and they count who has files open.
static TURN: Mutex<()> = Mutex::new(());

pub const MIB: u64 = 1 << 20;

/// Removes in reverse order: processes, cgroups, the mount, the directory.
pub struct Ground {
    processes: Vec<Child>,
    sockets: Vec<PathBuf>,
    cgroups: Vec<ControlledCgroup>,
    mounted: bool,
    directory: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Ground {
    /// `None`, with the reason printed, where this process may not do what the test needs.
    pub fn new(capacity: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut ground = Self {
            processes: Vec::new(),
            sockets: Vec::new(),
            cgroups: Vec::new(),
            mounted: false,
            directory,
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
        };
        if let Err(reason) = ground.set_up(capacity) {
            eprintln!("skipped: {reason}");
            return None;
        }
        Some(ground)
    }

    fn set_up(&mut self, capacity: u64) -> Result<(), String> {
        vineyard_charge::survey::Surveyor::open().map_err(|e| e.to_string())?;
        let hierarchy = Hierarchy::detect().map_err(|e| e.to_string())?;
        let name = format!(
            "vineyard-test-{}-{}",
            std::process::id(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        );
        let top = ControlledCgroup::create(&hierarchy.mount, &name).map_err(|e| e.to_string())?;
        self.cgroups.push(top);
        let volume = self.volume();
        fs::create_dir(&volume).unwrap();
        let options = format!("size={capacity},mode=0777,huge=never");
        let none = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some(name.as_str()),
            &volume,
            Some("tmpfs"),
            none,
            Some(options.as_str()),
        )
        .map_err(|e| format!("no tmpfs can be mounted: {e}"))?;
        self.mounted = true;
        Ok(())
    }

    pub fn volume(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.volume().join(name)
    }

    /// A place that is not on the volume.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A cgroup below the test's own, like a pod.
    pub fn cgroup(&mut self, name: &str, limit: Option<u64>) -> CgroupId {
        let top = self.cgroups[0].directory().to_owned();
        self.cgroup_below(&top, name, limit)
    }

    pub fn cgroup_below(&mut self, parent: &Path, name: &str, limit: Option<u64>) -> CgroupId {
        let made = ControlledCgroup::create(parent, name).unwrap();
        if limit.is_some() {
            made.set_limit(limit).unwrap();
        }
        let id = made.memory().unwrap().id();
        self.cgroups.push(made);
        id
    }

    fn control(&self, id: CgroupId) -> &ControlledCgroup {
        let found = self
            .cgroups
            .iter()
            .find(|c| c.memory().is_ok_and(|m| m.id() == id));
        found.unwrap()
    }

    pub fn memory(&self, id: CgroupId) -> MemoryCgroup {
        self.control(id).memory().unwrap()
    }

    pub fn limit(&self, id: CgroupId, bytes: u64) {
        self.control(id).set_limit(Some(bytes)).unwrap();
    }

    pub fn directory_of(&self, id: CgroupId) -> PathBuf {
        self.control(id).directory().to_owned()
    }

    pub fn remove(&mut self, id: CgroupId) {
        let index = self
            .cgroups
            .iter()
            .position(|c| c.memory().is_ok_and(|m| m.id() == id));
        self.cgroups.remove(index.unwrap()).remove().unwrap();
    }

    /// A payer process of another user in the cgroup, and the client's end of its socket.
    pub fn payer(&mut self, cgroup: CgroupId) -> RemotePayer {
        self.payer_seeing(cgroup, true)
    }

    /// The same, with or without sight of the limits above it.
    pub fn payer_seeing(&mut self, cgroup: CgroupId, limits: bool) -> RemotePayer {
        let socket = self.outside(&format!("payer-{}.sock", self.processes.len()));
        let role = if limits { "payer" } else { "blind payer" };
        self.start(cgroup, role, &[("PATH_OF", socket.as_os_str())]);
        self.sockets.push(socket);
        self.client()
    }

    /// Another client of the payer that was started last.
    pub fn client(&self) -> RemotePayer {
        let begin = Instant::now();
        loop {
            match RemotePayer::connect(self.sockets.last().unwrap(), "ledger test") {
                // It may take longer to start than its clients wait for one that is gone.
                Err(ReserveError::Unreachable(_)) if begin.elapsed() < super::patience() => {}
                connected => return connected.unwrap(),
            }
        }
    }

    /// A process in the cgroup that writes the pattern into a file and ends.
    pub fn write_in(&mut self, cgroup: CgroupId, path: &Path, size: u64) {
        let size = size.to_string();
        self.start(
            cgroup,
            "writer",
            &[("PATH_OF", path.as_os_str()), ("SIZE", size.as_ref())],
        );
        let writer = self.processes.last_mut().unwrap();
        assert!(writer.wait().unwrap().success());
    }

    /// A process that hands the volume over to the payer that was started last, whose cgroup is `owner`.
    pub fn driver(&mut self, cgroup: CgroupId, owner: CgroupId) {
        let (volume, socket) = (self.volume(), self.sockets.last().unwrap().clone());
        let owner = owner.0.to_string();
        let environment = [
            ("PATH_OF", volume.as_os_str()),
            ("SOCKET", socket.as_os_str()),
            ("OWNER", owner.as_ref()),
        ];
        self.start(cgroup, "driver", &environment);
    }

    /// Starts this test program again, in a role, and moves it to the cgroup before it does anything.
    fn start(&mut self, cgroup: CgroupId, role: &str, environment: &[(&str, &std::ffi::OsStr)]) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "support::roles::play",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env("VINEYARD_TEST_ROLE", role)
            .envs(
                environment
                    .iter()
                    .map(|(k, v)| (format!("VINEYARD_TEST_{k}"), v)),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.control(cgroup).join(child.id()).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        self.processes.push(child);
    }

    /// The process that was started last.
    pub fn last(&self) -> nix::unistd::Pid {
        let pid = self.processes.last().unwrap().id();
        nix::unistd::Pid::from_raw(pid.try_into().unwrap())
    }

    /// Ends the process that was started last, without a word.
    pub fn kill_last(&mut self) {
        let last = self.processes.last_mut().unwrap();
        last.kill().unwrap();
        last.wait().unwrap();
    }

    /// Whether the payers are all alive: nothing was killed.
    pub fn all_alive(&mut self) -> bool {
        self.processes
            .iter_mut()
            .all(|p| match p.try_wait().unwrap() {
                None => true,
                Some(status) => status.success(),
            })
    }

    pub fn oom_kills(&self) -> u64 {
        self.cgroups
            .iter()
            .map(|c| c.memory().unwrap().oom_kills().unwrap())
            .sum()
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::of(&self.volume()).unwrap()
    }

    /// The whole bill, as (who, bytes).
    pub fn bills(&self) -> Vec<(CgroupId, u64)> {
        self.ledger()
            .bills
            .iter()
            .map(|b| (b.owner, b.bytes))
            .collect()
    }

    pub fn used(&self) -> u64 {
        self.ledger().used
    }

    /// What the volume has handed out, files without a name included.
    pub fn assert_used(&self, bytes: u64) {
        assert_eq!(self.used(), bytes);
    }

    pub fn mount_name(&self) -> String {
        self.cgroups[0]
            .directory()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        if self.mounted {
            let _ = umount2(&self.volume(), MntFlags::MNT_DETACH);
        }
        while let Some(cgroup) = self.cgroups.pop() {
            if let Err(error) = cgroup.remove() {
                eprintln!("left behind: {error}");
            }
        }
    }
}

/// Bytes that differ from page to page, with a zero now and then.
pub fn pattern(offset: u64, size: u64) -> Vec<u8> {
    (offset..offset + size)
        .map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[5])
        .collect()
}

/// 0 wrong bytes.
pub fn assert_pattern(path: &Path, size: u64) {
    let read = fs::read(path).unwrap();
    assert_eq!(read.len() as u64, size);
    assert!(
        read == pattern(0, size),
        "the bytes of {} changed",
        path.display()
    );
}

/// Piece by piece, so that the writer itself needs little.
pub fn write_pattern(file: &File, size: u64) {
    for offset in (0..size).step_by(1 << 20) {
        let part = pattern(offset, MIB.min(size - offset));
        file.write_all_at(&part, offset).unwrap();
    }
}
