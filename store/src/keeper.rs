//! The thread that hears when somebody wants to open a recycled file, and that frees what nobody takes.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::gettid;

use crate::recycle::Bin;

/// How late an idle file may go.
const TICK: Duration = Duration::from_millis(250);
/// How long the thread waits for more when nothing is left to keep.
const LINGER: Duration = Duration::from_secs(2);

/// Runs while there are recycled files.
#[derive(Debug, Default)]
pub(crate) struct Keeper(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The thread's number, if it runs.
    thread: Option<libc::pid_t>,
    /// So many are about to bring a file.
    expected: usize,
}

/// Keeps the thread running until what it is to watch is in its place.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    keeper: &'a Keeper,
    pub(crate) thread: libc::pid_t,
}

impl Keeper {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread, started if need be. `None` when it cannot be.
    pub(crate) fn watch(&self, bin: &Arc<Bin>) -> Option<Watch<'_>> {
        let mut state = self.state();
        let thread = match state.thread {
            Some(thread) => thread,
            None => start(Arc::downgrade(bin))?,
        };
        state.thread = Some(thread);
        state.expected += 1;
        Some(Watch {
            keeper: self,
            thread,
        })
    }

    /// Whether the thread may end, and then it counts as ended.
    fn end(&self) -> bool {
        let mut state = self.state();
        if state.expected == 0 {
            state.thread = None;
        }
        state.thread.is_none()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.keeper.state().expected -= 1;
    }
}

fn start(bin: Weak<Bin>) -> Option<libc::pid_t> {
    let (say, hear) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("vineyard-recycle".into())
        .stack_size(128 << 10)
        .spawn(move || {
            let signals = SigSet::from(Signal::SIGURG);
            // Blocked, a signal to this thread waits until it is asked for; no other thread ever gets it.
            if signals.thread_block().is_ok() && say.send(gettid().as_raw()).is_ok() {
                keep(&bin, &signals);
            }
        })
        .ok()?;
    hear.recv().ok()
}

fn keep(bin: &Weak<Bin>, signals: &SigSet) {
    let mut needed = Instant::now();
    loop {
        wait(signals);
        let Some(bin) = bin.upgrade() else { return };
        if bin.tend() {
            needed = Instant::now();
        } else if needed.elapsed() > LINGER && bin.keeper.end() {
            return;
        }
    }
}

/// Waits for a signal, but not for long.
fn wait(signals: &SigSet) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::c_long::from(TICK.subsec_nanos()),
    };
    let mut about = MaybeUninit::<libc::siginfo_t>::uninit();
    // SAFETY: the set and the time are valid, and the kernel only writes to `about`.
    let _ = Errno::result(unsafe {
        libc::sigtimedwait(signals.as_ref(), about.as_mut_ptr(), &raw const time)
    });
}
