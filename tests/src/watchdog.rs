//! A hang is a failure with a name: when a step takes too long, the children of the test are killed, so that whoever
//! waits for them gets an error; when that does not help, the test run is aborted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::random;

/// How long a hung thread has, after its children were killed, before the run is aborted.
const GRACE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Step {
    what: String,
    end: Instant,
    fired: bool,
}

#[derive(Debug, Default)]
struct Watch {
    steps: BTreeMap<u64, Step>,
    children: BTreeMap<u32, ThreadId>,
    threads: BTreeMap<u64, ThreadId>,
    next: u64,
}

fn watch_list() -> MutexGuard<'static, Watch> {
    static WATCH: OnceLock<Mutex<Watch>> = OnceLock::new();
    WATCH
        .get_or_init(|| {
            thread::spawn(look);
            Mutex::default()
        })
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// A step that must end in time. Dropped, it has.
#[derive(Debug)]
#[must_use]
pub struct Deadline(u64);

/// A limit of time on this machine: as many times longer as `VINEYARD_PATIENCE` says, for emulated ones.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| {
        let times = random::number("VINEYARD_PATIENCE");
        times.and_then(|n| n.try_into().ok()).unwrap_or(1)
    });
    limit.saturating_mul(*times)
}

/// Starts a step that ends within `limit`, or else the calling thread's children are killed and, if that does not help,
/// the run is aborted with `what` as message.
pub fn deadline(limit: Duration, what: impl Into<String>) -> Deadline {
    let mut watch = watch_list();
    let id = watch.next;
    watch.next += 1;
    let step = Step {
        what: what.into(),
        end: Instant::now() + patient(limit),
        fired: false,
    };
    watch.steps.insert(id, step);
    watch.threads.insert(id, thread::current().id());
    Deadline(id)
}

/// The same for the whole test that calls this.
pub fn test_deadline(limit: Duration) -> Deadline {
    deadline(limit, thread::current().name().unwrap_or_default())
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut watch = watch_list();
        watch.steps.remove(&self.0);
        watch.threads.remove(&self.0);
    }
}

/// Adds a child of the calling thread.
pub(crate) fn watch(pid: u32) {
    watch_list().children.insert(pid, thread::current().id());
}

/// Takes a child off the list, before it is reaped.
pub(crate) fn forget(pid: u32) {
    watch_list().children.remove(&pid);
}

fn look() {
    loop {
        thread::sleep(Duration::from_millis(200));
        let mut watch = watch_list();
        let now = Instant::now();
        let mut hung = Vec::new();
        for (id, step) in &mut watch.steps {
            if !step.fired && now > step.end {
                step.fired = true;
                eprintln!("hangs: {}", step.what);
                hung.push(*id);
            } else if step.fired && now > step.end + GRACE {
                eprintln!("still hangs: {}; the run is aborted", step.what);
                std::process::abort();
            }
        }
        for id in hung {
            let Some(thread) = watch.threads.get(&id).copied() else {
                continue;
            };
            for (pid, owner) in &watch.children {
                if *owner == thread
                    && let Ok(pid) = i32::try_from(*pid)
                {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
}
