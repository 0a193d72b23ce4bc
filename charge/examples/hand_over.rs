//! Measures what `docs/design/retainer.md` reports: hand-over and survey of whole volumes, with a real retainer.
//!
//! `cargo run --release -p vineyard-charge --features control --example hand_over -- DIRECTORY VINEYARD_CSI [RUNS [OBJECTS]]` as
//! root: mounts a tmpfs of its own in DIRECTORY, makes cgroups named `vineyard-test-…`, and starts the retainer of the driver
//! VINEYARD_CSI. Medians of RUNS runs (5), in time and in processor time of both processes, which other work on the machine
//! changes less; compare them with each other, not with other machines.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement ends where something fails"
)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use vineyard_charge::cgroup::Hierarchy;
use vineyard_charge::cgroup::control::ControlledCgroup;
use vineyard_charge::handover::{HandOver, Progress};
use vineyard_charge::recharge::{Large, Replace, Slack};
use vineyard_charge::survey::{Ledger, Surveyor};
use vineyard_charge::{CgroupId, Extent, OwnPayer, Payer, RemotePayer};

const GIB: u64 = 1 << 30;
const FILES: u64 = 4;
const OBJECTS: usize = 100_000;
const PASSES: u32 = 20;

/// There is room enough.
struct Never;

impl Slack for Never {
    fn lend(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn take_back(&self, _bytes: u64) {}
}

struct Bench {
    volume: PathBuf,
    socket: PathBuf,
    retainer: Child,
    payer: RemotePayer,
    pod: CgroupId,
    cgroups: Vec<ControlledCgroup>,
}

impl Bench {
    fn new(directory: &Path, driver: &Path) -> Self {
        let volume = directory.join(format!("vineyard-test-{}", std::process::id()));
        fs::create_dir(&volume).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = Some("size=4g,nr_inodes=1m,huge=never,noswap");
        mount(
            Some("vineyard-test"),
            &volume,
            Some("tmpfs"),
            flags,
            options,
        )
        .unwrap();
        for name in ["objects", "trash", "tmp"] {
            fs::create_dir_all(volume.join(".vineyard").join(name)).unwrap();
        }
        let top = Hierarchy::detect().unwrap().mount;
        let name = format!("vineyard-test-{}", std::process::id());
        let top = ControlledCgroup::create(&top, &name).unwrap();
        let below = |name: &str| ControlledCgroup::create(top.directory(), name).unwrap();
        let cgroups = vec![below("retainer"), below("driver"), top];
        let socket = directory.join(format!("{name}.sock"));
        let retainer = Command::new(driver)
            .args(["retainer", "--listen"])
            .arg(&socket)
            .env("RUST_LOG", "warn")
            .spawn()
            .unwrap();
        cgroups[0].join(retainer.id()).unwrap();
        let payer = RemotePayer::connect(&socket, "measurement").unwrap();
        Self {
            volume,
            socket,
            retainer,
            payer,
            pod: cgroups[0].memory().unwrap().id(),
            cgroups,
        }
    }

    fn objects(&self) -> PathBuf {
        self.volume.join(".vineyard/objects")
    }

    fn clear(&self) {
        for entry in fs::read_dir(self.objects()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }

    fn large(&self, huge: bool) {
        for index in 0..FILES {
            let size = GIB / FILES;
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o444)
                .open(self.objects().join(format!("{index}.npy")))
                .unwrap();
            if huge {
                file.set_len(size).unwrap();
                let all = Extent {
                    offset: 0,
                    length: size,
                };
                OwnPayer::new().reserve(&[(file.as_fd(), all)]).unwrap();
            }
            let part: Vec<u8> = (0..1u32 << 20).map(|byte| byte.to_le_bytes()[0]).collect();
            for offset in (0..size).step_by(part.len()) {
                file.write_all_at(&part, offset).unwrap();
            }
        }
    }

    fn small(&self, objects: usize, bytes: usize) {
        let content = vec![7; bytes];
        for index in 0..objects {
            let path = self.objects().join(format!("{index:026}.raw"));
            fs::write(&path, &content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        }
    }

    fn hand_over(&self) {
        let progress = Progress::default();
        let order = HandOver {
            layer: &self.volume,
            stays: &|_| false,
            payer: &self.payer,
            payer_owners: &[self.pod],
            exclusive: false,
            slack: &Never,
            progress: &progress,
            until: None,
        };
        // Memory in pieces: what finds no 2 MiB is asked for again, as the driver does.
        for pass in 0..PASSES {
            let outcome = order.run().unwrap();
            if outcome.is_complete() {
                return;
            }
            eprintln!("pass {pass}: {} bytes left", outcome.left_bytes);
        }
        panic!("not complete after {PASSES} passes");
    }

    /// What the hand-over does of it, without looking for it.
    fn only_large(&self) {
        let mut surveyor = Surveyor::open().unwrap();
        for entry in fs::read_dir(self.objects()).unwrap() {
            let path = entry.unwrap().path();
            let file = File::open(&path).unwrap();
            let writable = File::options().read(true).write(true).open(&path).unwrap();
            let large = Large {
                file: file.as_fd(),
                exclusive: Some(writable.as_fd()),
                stays: &|owner| owner == self.pod,
                slack: None,
            };
            let all =
                (0..PASSES).any(|_| large.recharge(&mut surveyor, &self.payer).unwrap().left == 0);
            assert!(all, "not complete after {PASSES} passes");
        }
    }

    fn only_copy(&self) {
        let names: Vec<_> = fs::read_dir(self.objects())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        let directory = File::open(self.objects()).unwrap();
        let scratch = File::open(self.volume.join(".vineyard/tmp")).unwrap();
        let replace = Replace {
            directory: directory.as_fd(),
            scratch: scratch.as_fd(),
        };
        let copied = replace.copy(&names, &self.payer);
        assert!(copied.iter().all(Result::is_ok));
    }

    fn survey(&self) {
        let ledger = Ledger::of(&self.volume).unwrap();
        assert_eq!(ledger.billed(&[self.pod]), ledger.used);
    }

    /// Processor time of this process and of the retainer.
    fn processor(&self) -> Duration {
        let own = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let seconds = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.retainer.id())).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .map(|it| it.parse::<u64>().unwrap())
            .sum();
        seconds(own.user_time()) + seconds(own.system_time()) + Duration::from_millis(ticks * 10)
    }

    /// Of the retainer, in KiB.
    fn resident(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.retainer.id())).unwrap();
        let lines = status.lines().filter(|line| line.contains("Rss"));
        let lines: Vec<String> = lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines.join(", ")
    }

    /// Kernel memory that our own cgroup is charged, where the kernel says it (version 1).
    fn kernel_bytes(&self) -> Option<u64> {
        let path = self.cgroups[1]
            .directory()
            .join("memory.kmem.usage_in_bytes");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.retainer.id().try_into().unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.retainer.wait();
        let _ = umount2(&self.volume, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.volume);
        let _ = fs::remove_file(&self.socket);
        for cgroup in self.cgroups.drain(..) {
            if let Err(error) = cgroup.remove() {
                eprintln!("left behind: {error}");
            }
        }
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split_whitespace().take(1).collect()
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Prepares, hands over, surveys; the same by what the hand-over is made of. In turns, so that all see the same load.
fn compare(
    bench: &Bench,
    runs: usize,
    name: &str,
    prepare: &dyn Fn(),
    only: &dyn Fn(),
    unit: &dyn Fn(f64) -> String,
) {
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut busy: [Vec<Duration>; 3] = Default::default();
    for run in 0..=runs {
        // Which comes first finds colder memory: by turns.
        let mut order: [(usize, &dyn Fn()); 2] = [(0, &|| bench.hand_over()), (2, only)];
        order.rotate_left(run % 2);
        let [first, second] = order;
        for (slot, work) in [first, second, (1, &|| bench.survey())] {
            if slot != 1 {
                bench.clear();
                prepare();
            }
            let (begin, cpu) = (Instant::now(), bench.processor());
            work();
            // The first run warms up.
            if run > 0 {
                times[slot].push(begin.elapsed());
                busy[slot].push(bench.processor() - cpu);
            }
        }
    }
    bench.clear();
    let (times, busy) = (times.map(middle), busy.map(middle));
    for (slot, what) in ["hand-over", "survey afterwards", "its parts alone"]
        .iter()
        .enumerate()
    {
        println!(
            "{name:<24} {what:<18} {:>7.0} ms {:>18}   processor {:>6.0} ms {:>18}",
            times[slot].as_secs_f64() * 1e3,
            unit(times[slot].as_secs_f64()),
            busy[slot].as_secs_f64() * 1e3,
            unit(busy[slot].as_secs_f64()),
        );
    }
    let ratio = |of: [Duration; 3]| of[2].as_secs_f64() / of[0].as_secs_f64() * 100.0;
    println!(
        "{name:<24} hand-over at {:.0} % of its parts, by processor time {:.0} %; load {}",
        ratio(times),
        ratio(busy),
        load()
    );
}

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(directory), Some(driver)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: hand_over DIRECTORY VINEYARD_CSI");
        std::process::exit(2);
    };
    let mut number = |usual| {
        arguments
            .next()
            .map_or(usual, |it| it.to_str().unwrap().parse().unwrap())
    };
    let (runs, objects) = (number(5), number(OBJECTS));
    let bench = Bench::new(&directory, &driver);
    std::thread::sleep(Duration::from_millis(300));
    println!("retainer, idle:  {}; load {}", bench.resident(), load());
    let gbs = |time: f64| format!("{:.2} GB/s", GIB as f64 / time / 1e9);
    let each = |time: f64| format!("{:.0} objects/s", objects as f64 / time);
    for bytes in [1024, 16 << 10] {
        let name = format!("{objects} of {bytes} B");
        let prepare = || bench.small(objects, bytes);
        compare(&bench, runs, &name, &prepare, &|| bench.only_copy(), &each);
    }
    for (name, huge) in [
        ("1 GiB of 4 KiB pages", false),
        ("1 GiB of 2 MiB pages", true),
    ] {
        let prepare = || bench.large(huge);
        compare(&bench, runs, name, &prepare, &|| bench.only_large(), &gbs);
    }
    println!("retainer, after: {}", bench.resident());
    bench.small(objects, 1024);
    bench.cgroups[1].join(std::process::id()).unwrap();
    let before = bench.kernel_bytes();
    bench.hand_over();
    if let (Some(before), Some(after)) = (before, bench.kernel_bytes()) {
        let per = (after.saturating_sub(before)) / objects as u64;
        println!("kernel memory that a copied object takes of the driver: {per} B");
    }
    // Back, so that its cgroup can go.
    let top = Hierarchy::detect().unwrap().mount.join("cgroup.procs");
    let _ = fs::write(top, std::process::id().to_string());
}
