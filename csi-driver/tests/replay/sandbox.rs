//! A mount namespace and a tmpfs for one thread and the drivers that it starts: nothing of them is left when they end.

use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Whether the driver under test has fail points. Says so when it has none.
pub(crate) fn has_fail_points() -> bool {
    let has = cfg!(feature = "failpoints");
    if !has {
        eprintln!("skipped: built without --features failpoints");
    }
    has
}

/// Runs `work` with an empty folder of its own. Says so and does nothing where that is not possible.
pub(crate) fn run(work: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let inside = || {
        // A thread may have a mount namespace of its own, and its children, the drivers, have it too.
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS) {
            eprintln!("skipped: no mount namespace of our own: {errno}");
            return;
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let folder = tempfile::Builder::new()
            .prefix("vineyard-test-replay.")
            .tempdir()
            .unwrap();
        let flags = MsFlags::empty();
        mount(
            Some("vineyard-test"),
            folder.path(),
            Some("tmpfs"),
            flags,
            none,
        )
        .unwrap();
        work(folder.path());
        umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(inside).join() {
            resume_unwind(panic);
        }
    });
}

/// Runs `work` with the numbers below `count`, each with an empty folder, several at a time, until it says that this was all.
pub(crate) fn each(count: u64, work: impl Fn(u64, &Path) -> ControlFlow<()> + Sync) {
    let next = AtomicU64::new(0);
    let worker = || {
        run(|folder| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let own = folder.join(number.to_string());
                fs::create_dir(&own).unwrap();
                let flow = catch_unwind(AssertUnwindSafe(|| work(number, &own)));
                // Nobody begins anything more when one fails.
                if !matches!(flow, Ok(ControlFlow::Continue(()))) {
                    next.store(count, Ordering::Relaxed);
                }
                if let Err(panic) = flow {
                    resume_unwind(panic);
                }
                fs::remove_dir_all(own).unwrap();
            }
        });
    };
    // What is waited for is mostly the kernel, which unmounts: one a processor would leave it idle.
    let workers = 2 * std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
}

/// What drives the calls of one thread.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
