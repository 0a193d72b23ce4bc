mod hostile;
mod store;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::sys::stat::Mode;
use tempfile::TempDir;
use vineyard_charge::{Extent, Limit, OwnPayer};
use xattr::FileExt as _;

use super::*;

/// Two directories on a tmpfs; `None` where there is none, or where owners cannot be set.
struct Bench {
    _folder: TempDir,
    from: PathBuf,
    to: PathBuf,
    payer: Noting,
}

/// Notes what it is asked to reserve, by inode.
#[derive(Debug, Default)]
struct Noting {
    own: OwnPayer,
    reserved: Mutex<BTreeMap<u64, u64>>,
    /// Refuses from then on.
    most: Option<u64>,
}

impl Payer for Noting {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        let mut reserved = self.reserved.lock().unwrap();
        assert!(extents.len() <= vineyard_charge::wire::MAX_DESCRIPTORS);
        for (file, extent) in extents {
            let stat = nix::sys::stat::fstat(file).unwrap();
            *reserved.entry(stat.st_ino).or_default() += extent.length;
        }
        let total: u64 = reserved.values().sum();
        if self.most.is_some_and(|most| total > most) {
            return Err(ReserveError::Full(Full {
                asked: total,
                free: 0,
                limit: Limit::Cgroup,
                limit_bytes: 0,
            }));
        }
        self.own.reserve(extents)
    }

    fn pull(&self, _: BorrowedFd<'_>, _: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        unreachable!("nothing is pulled into a copy")
    }

    fn give_back(&self, _: u64) {}
}

impl Bench {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: owners can only be set by root");
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("vineyard-test-clone.")
            .tempdir_in("/dev/shm")
            .ok()?;
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        Some(Self {
            _folder: folder,
            from,
            to,
            payer: Noting::default(),
        })
    }

    fn copy(&self) -> Result<Report, Error> {
        let (from, to) = (
            File::open(&self.from).unwrap(),
            File::open(&self.to).unwrap(),
        );
        copy(from.as_fd(), to.as_fd(), &self.payer, &Progress::default())
    }

    /// Nothing was allocated but by the payer.
    fn assert_billed(&self) {
        let reserved = self.payer.reserved.lock().unwrap();
        for (path, entry) in picture(&self.to) {
            if let Some((ino, allocated)) = entry.file {
                let billed = reserved.get(&ino).copied().unwrap_or(0);
                assert_eq!(allocated, billed, "{}", path.display());
            }
        }
    }
}

/// What can be seen of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    links: u64,
    content: Vec<u8>,
    extended: Vec<(String, Vec<u8>)>,
    allocated: u64,
}

#[derive(Debug)]
struct Entry {
    seen: Seen,
    file: Option<(u64, u64)>,
}

fn picture(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let (mut content, mut extended) = (Vec::new(), Vec::new());
        if stat.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
        } else if stat.is_symlink() {
            content = fs::read_link(&path)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec();
        } else {
            content = fs::read(&path).unwrap();
        }
        if !stat.is_symlink() {
            let file = File::open(&path).unwrap();
            for name in file.list_xattr().unwrap() {
                let value = file.get_xattr(&name).unwrap().unwrap();
                extended.push((name.to_str().unwrap().to_owned(), value));
            }
        }
        let allocated = if stat.is_file() {
            stat.blocks() * 512
        } else {
            0
        };
        let entry = Entry {
            file: stat.is_file().then_some((stat.ino(), allocated)),
            seen: Seen {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                modified: (stat.mtime(), stat.mtime_nsec()),
                links: if stat.is_dir() { 0 } else { stat.nlink() },
                content,
                extended,
                allocated,
            },
        };
        found.insert(path.strip_prefix(root).unwrap().to_owned(), entry);
    }
    found
}

fn seen(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let all = picture(root).into_iter();
    all.map(|(path, entry)| (path, entry.seen)).collect()
}

#[test]
fn everything_is_kept_but_what_is_no_file() {
    let Some(bench) = Bench::new() else { return };
    let at = |path: &str| bench.from.join(path);
    fs::create_dir_all(at("deep/er/est")).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("deep/small"), "small").unwrap();
    fs::write(at("deep/er/large"), vec![7; (3 << 20) + 17]).unwrap();
    // 5 bytes at the begin, 1 MiB in the middle, and a hole at the end.
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(&vec![9; 1 << 20], 5 << 20).unwrap();
    sparse.set_len(9 << 20).unwrap();
    // Allocated and never written: neither a hole nor data.
    let reserved = File::create(at("reserved")).unwrap();
    reserved.set_len(10_000).unwrap();
    nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, 10_000).unwrap();
    for number in 0..250 {
        let path = at("deep").join(format!("many-{number}"));
        fs::write(path, number.to_string()).unwrap();
    }
    fs::hard_link(at("deep/er/large"), at("other name")).unwrap();
    fs::hard_link(at("deep/er/large"), at("deep/er/est/third name")).unwrap();
    fs::hard_link(at("empty"), at("deep/empty")).unwrap();
    symlink("/etc/passwd", at("absolute")).unwrap();
    symlink("../nowhere", at("deep/dangling")).unwrap();
    symlink("x".repeat(300), at("long")).unwrap();
    std::os::unix::fs::lchown(at("absolute"), Some(3), Some(4)).unwrap();
    std::os::unix::fs::chown(at("deep/small"), Some(1234), Some(4321)).unwrap();
    for (path, mode) in [
        ("deep/small", 0o4755),
        ("empty", 0),
        ("deep/er", 0o2770),
        ("deep/er/est", 0o555),
        (".", 0o751),
    ] {
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    for path in ["deep/small", "deep/er"] {
        let file = File::open(at(path)).unwrap();
        file.set_xattr("user.note", b"kept").unwrap();
        file.set_xattr("trusted.note", &[0, 255]).unwrap();
    }
    let fifo = CString::new(at("deep/fifo").as_os_str().as_bytes()).unwrap();
    nix::unistd::mkfifo(fifo.as_c_str(), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    // An age that no copy has by chance.
    for path in ["deep/er/large", "deep/er", "deep", "."] {
        let old =
            std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123_456_789);
        File::open(at(path)).unwrap().set_modified(old).unwrap();
    }
    let report = bench.copy().unwrap();
    assert_eq!(
        (report.skipped, report.directories, report.symlinks),
        (2, 3, 3)
    );
    assert_eq!(report.files, 255);
    let deep = fs::metadata(at("deep")).unwrap().modified().unwrap();
    let root = fs::metadata(&bench.from).unwrap().modified().unwrap();
    for special in ["deep/fifo", "socket"] {
        fs::remove_file(at(special)).unwrap();
    }
    for (path, modified) in [("deep", deep), (".", root)] {
        File::open(at(path))
            .unwrap()
            .set_modified(modified)
            .unwrap();
    }
    let (from, to) = (seen(&bench.from), seen(&bench.to));
    for (path, seen) in &from {
        assert_eq!(Some(seen), to.get(path), "{}", path.display());
    }
    assert_eq!(from.len(), to.len());
    bench.assert_billed();
}

#[test]
fn a_file_with_more_extents_than_one_reserve_takes_is_copied() {
    let Some(bench) = Bench::new() else { return };
    for (name, step, size) in [("small", 8192, 1 << 20), ("large", 8192, 8 << 20)] {
        let file = File::create(bench.from.join(name)).unwrap();
        file.set_len(size).unwrap();
        for offset in (0..size).step_by(step) {
            file.write_all_at(&offset.to_le_bytes(), offset).unwrap();
        }
    }
    bench.copy().unwrap();
    let (from, to) = (seen(&bench.from), seen(&bench.to));
    assert_eq!(from, to);
    assert_eq!(from[Path::new("large")].allocated, 4 << 20);
    bench.assert_billed();
}

#[test]
fn a_copy_that_is_told_to_stop_or_does_not_fit_says_so() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    fs::write(bench.from.join("file"), vec![1; 1 << 20]).unwrap();
    let progress = Progress::default();
    progress.stop();
    let (from, to) = (
        File::open(&bench.from).unwrap(),
        File::open(&bench.to).unwrap(),
    );
    let stopped = copy(from.as_fd(), to.as_fd(), &bench.payer, &progress);
    assert!(matches!(stopped, Err(Error::Stopped)));
    bench.payer.most = Some(4096);
    assert!(matches!(bench.copy(), Err(Error::Full(_))));
}

#[test]
fn a_tree_that_no_path_reaches_is_an_error_and_not_left_out() {
    let Some(bench) = Bench::new() else { return };
    let mut directory = File::open(&bench.from).unwrap();
    let name = "d".repeat(250);
    for _ in 0..20 {
        nix::sys::stat::mkdirat(&directory, name.as_str(), Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        let below = nix::fcntl::openat(&directory, name.as_str(), flags, Mode::empty());
        directory = below.unwrap().into();
    }
    assert!(matches!(bench.copy(), Err(Error::TooDeep { .. })));
}
