//! The retainer as a process: who is billed, what it accepts, and how it ends. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a test: what cannot be unwrapped is a failure"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vineyard_charge::cgroup::Hierarchy;
use vineyard_charge::cgroup::control::ControlledCgroup;
use vineyard_charge::handover::{HandOver, Outcome, Progress};
use vineyard_charge::recharge::Slack;
use vineyard_charge::survey::{Ledger, Surveyor};
use vineyard_charge::{CgroupId, Extent, Payer, REGION, RemotePayer, ReserveError};

static SERIAL: AtomicU32 = AtomicU32::new(0);

const MIB: u64 = 1 << 20;

/// How long anything may take on a busy machine: as many times longer as `VINEYARD_PATIENCE` says, for emulated ones.
fn patience() -> Duration {
    let times = std::env::var("VINEYARD_PATIENCE").ok();
    let times = times.and_then(|times| times.parse().ok()).unwrap_or(1);
    Duration::from_secs(60) * times
}

/// A volume, a pod for the retainer, and its containers.
struct Node {
    directory: tempfile::TempDir,
    retainer: Option<Child>,
    /// Innermost last.
    cgroups: Vec<ControlledCgroup>,
}

impl Node {
    fn new() -> Option<Self> {
        if let Err(error) = Surveyor::open() {
            eprintln!("skipped: {error}");
            return None;
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("vineyard-test-retainer-{}-{serial}", std::process::id());
        let hierarchy = Hierarchy::detect().unwrap();
        let pod = match ControlledCgroup::create(&hierarchy.mount, &name) {
            Ok(pod) => pod,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = Some("size=256m,mode=0777,huge=never");
        mount(Some(name.as_str()), &volume, Some("tmpfs"), flags, options).unwrap();
        for name in ["objects", "tmp"] {
            fs::create_dir_all(volume.join(".vineyard").join(name)).unwrap();
        }
        Some(Self {
            directory,
            retainer: None,
            cgroups: vec![pod],
        })
    }

    fn volume(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    fn object(&self, name: &str) -> PathBuf {
        self.volume().join(".vineyard/objects").join(name)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("retainer.sock")
    }

    /// Starts the retainer in a new container of its pod.
    fn start(&mut self, container: &str) {
        let made = ControlledCgroup::create(self.cgroups[0].directory(), container).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vineyard-csi"))
            .args(["retainer", "--listen"])
            .arg(self.socket())
            .env("RUST_LOG", "warn")
            .spawn()
            .unwrap();
        made.join(child.id()).unwrap();
        self.cgroups.push(made);
        self.retainer = Some(child);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.retainer.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the retainer, and removes its container.
    fn ended(&mut self) -> ExitStatus {
        let status = self.retainer.take().unwrap().wait().unwrap();
        self.cgroups.pop().unwrap().remove().unwrap();
        status
    }

    fn payer(&self) -> RemotePayer {
        // An emulated machine takes longer to start a retainer than a client waits for one that restarts.
        let begin = Instant::now();
        loop {
            match RemotePayer::connect(&self.socket(), "test") {
                Ok(payer) => return payer,
                Err(error) => assert!(begin.elapsed() < patience(), "{error}"),
            }
        }
    }

    fn owners(&self) -> Vec<CgroupId> {
        self.cgroups[0].memory().unwrap().subtree().unwrap()
    }

    fn hand_over(&self, payer: &dyn Payer) -> Outcome {
        let order = HandOver {
            layer: &self.volume(),
            stays: &|_| false,
            payer,
            payer_owners: &self.owners(),
            exclusive: true,
            slack: &Never,
            progress: &Progress::default(),
            until: None,
        };
        order.run().unwrap()
    }

    fn ledger(&self) -> Ledger {
        Ledger::of(&self.volume()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut retainer) = self.retainer.take() {
            let _ = retainer.kill();
            let _ = retainer.wait();
        }
        let _ = umount2(&self.volume(), MntFlags::MNT_DETACH);
        while let Some(cgroup) = self.cgroups.pop() {
            if let Err(error) = cgroup.remove() {
                eprintln!("left behind: {error}");
            }
        }
    }
}

struct Never;

impl Slack for Never {
    fn lend(&self, _bytes: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn take_back(&self, _bytes: u64) {}
}

fn content(size: u64) -> Vec<u8> {
    (0..size)
        .map(|byte| (byte % 251).to_le_bytes()[0])
        .collect()
}

fn sealed(path: &Path, size: u64) {
    fs::write(path, content(size)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

fn both(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

fn extent(length: u64) -> Extent {
    Extent { offset: 0, length }
}

#[test]
fn what_it_reserves_is_on_its_bill_and_what_it_should_not_touch_is_refused() {
    let Some(mut node) = Node::new() else {
        return;
    };
    node.start("first");
    let payer = node.payer();
    let mode = fs::metadata(node.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(payer.welcome().unwrap().max_descriptors, 200);

    let (small, large) = (
        both(&node.volume().join("small")),
        both(&node.volume().join("large")),
    );
    small.set_len(5000).unwrap();
    large.set_len(5 * MIB).unwrap();
    payer
        .reserve(&[
            (small.as_fd(), extent(5000)),
            (large.as_fd(), extent(5 * MIB)),
        ])
        .unwrap();
    small.write_all_at(&content(5000), 0).unwrap();
    let reserved = 5 * MIB + 8192;
    assert_eq!(node.ledger().billed(&node.owners()), reserved);
    assert!(payer.usage().unwrap().spent_bytes >= reserved);

    // A regular file that can be written, everywhere.
    let elsewhere = both(Path::new("/proc/self/oom_score_adj"));
    let on_tmpfs = File::open(node.volume().join("small")).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let folder = File::open(node.volume()).unwrap();
    for (what, file) in [
        ("not a tmpfs", elsewhere.as_fd()),
        ("read-only", on_tmpfs.as_fd()),
        ("a pipe", reader.as_fd()),
        ("a directory", folder.as_fd()),
    ] {
        let refused = payer.reserve(&[(file, extent(4096))]).unwrap_err();
        assert!(
            matches!(refused, ReserveError::Refused { .. }),
            "{what}: {refused}"
        );
    }
    let far = Extent {
        offset: 1,
        length: 4096,
    };
    assert!(payer.reserve(&[(small.as_fd(), far)]).is_err());
    let too_much = extent(9000 * REGION);
    let too_large = payer.reserve(&[(large.as_fd(), too_much)]).unwrap_err();
    assert!(matches!(too_large, ReserveError::Full(_)), "{too_large}");
    // It still serves.
    payer.reserve(&[(small.as_fd(), extent(5000))]).unwrap();
    assert_eq!(node.ledger().used, reserved);
}

#[test]
fn it_ends_when_told_and_its_clients_find_the_next_one() {
    let Some(mut node) = Node::new() else {
        return;
    };
    node.start("first");
    let payer = node.payer();
    let file = both(&node.volume().join("object"));
    file.set_len(4 * MIB).unwrap();
    payer.reserve(&[(file.as_fd(), extent(2 * MIB))]).unwrap();
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended().code(), Some(0));
    assert!(!node.socket().exists());

    node.start("second");
    let rest = Extent {
        offset: 2 * MIB,
        length: 2 * MIB,
    };
    payer.reserve(&[(file.as_fd(), rest)]).unwrap();
    // What the first container was charged counts for the pod, once the kernel is done with removing that.
    let begin = Instant::now();
    while node.ledger().billed(&node.owners()) != 4 * MIB {
        assert!(begin.elapsed() < patience());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(node.ledger().bills.len(), 2);

    node.signal(Signal::SIGKILL);
    node.ended();
    assert!(node.socket().exists(), "a stale one");
    node.start("third");
    payer.reserve(&[(file.as_fd(), rest)]).unwrap();
    let again = Command::new(env!("CARGO_BIN_EXE_vineyard-csi"))
        .args(["retainer", "--listen"])
        .arg(node.socket())
        .output()
        .unwrap();
    assert!(!again.status.success(), "two at one place");
    payer.usage().unwrap();
}

#[test]
fn a_hand_over_goes_on_after_the_retainer_was_killed_in_the_middle() {
    let Some(mut node) = Node::new() else {
        return;
    };
    for index in 0..1500 {
        sealed(&node.object(&format!("{index}.raw")), 3000);
    }
    sealed(&node.object("large.raw"), 30 * MIB + 5);
    let used = node.ledger().used;
    node.start("first");
    let pid = node.retainer.as_ref().unwrap().id();
    let payer = node.payer();
    let died = std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let order = HandOver {
                layer: &node.volume(),
                stays: &|_| false,
                payer: &payer,
                payer_owners: &node.owners(),
                exclusive: true,
                slack: &Never,
                progress: &Progress::default(),
                until: None,
            };
            order.run()
        });
        std::thread::sleep(Duration::from_millis(30));
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        working.join().unwrap()
    });
    // On a fast machine it may have been through.
    if let Err(error) = &died {
        assert!(error.to_string().contains("unreachable"), "{error}");
    }
    node.ended();
    assert_eq!(node.ledger().used, used);

    node.start("second");
    let outcome = node.hand_over(&payer);
    assert!(outcome.is_complete(), "{outcome:?}");
    let ledger = node.ledger();
    assert_eq!((ledger.billed(&node.owners()), ledger.used), (used, used));
    for index in 0..1500 {
        assert!(fs::read(node.object(&format!("{index}.raw"))).unwrap() == content(3000));
    }
    assert!(fs::read(node.object("large.raw")).unwrap() == content(30 * MIB + 5));
    let rest = fs::read_dir(node.volume().join(".vineyard/tmp")).unwrap();
    assert_eq!(rest.count(), 0);
}

/// What a stranger does: connects, says anything, and tells by its exit whether it heard something.
const STRANGER: &str = "VINEYARD_TEST_STRANGER";

#[test]
fn another_user_is_not_served_even_where_the_socket_lets_him_in() {
    if let Some(socket) = std::env::var_os(STRANGER) {
        let mut stream = UnixStream::connect(socket).unwrap();
        // A hello of version 1.
        let _ = stream.write_all(&[6, 0, 0, 0, 8, 1, 18, 2, 8, 1]);
        let heard = stream.read(&mut [0; 64]);
        assert!(!matches!(heard, Ok(1..)), "{heard:?}");
        return;
    }
    let Some(mut node) = Node::new() else {
        return;
    };
    node.start("first");
    node.payer();
    let stranger = |uid| {
        // A copy where everybody may run it.
        let program = node.directory.path().join("stranger");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Command::new(program)
            .args([
                "--exact",
                "another_user_is_not_served_even_where_the_socket_lets_him_in",
            ])
            .env(STRANGER, node.socket())
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .uid(uid)
            .gid(uid)
            .status()
            .unwrap()
    };
    fs::set_permissions(node.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!stranger(65534).success(), "the mode keeps him out");
    fs::set_permissions(node.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(stranger(65534).success(), "he hears nothing");
    assert!(!stranger(0).success(), "root hears a welcome");
}
