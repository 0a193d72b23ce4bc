//! One inotify instance per process tells everybody who waits that something changed. Where there is none (users have
//! few of them, and kubelet takes many) waiting becomes polling.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::per_process::{Abandon, PerProcess};

static WATCHER: PerProcess<Watcher> = PerProcess::new();

/// Even a watched directory is looked at this often: an event may get lost when too many come.
const LONGEST: Duration = Duration::from_secs(1);
/// Polling starts with this pause and doubles it.
const SHORTEST: Duration = Duration::from_millis(1);
/// Polling never pauses for longer.
const POLL: Duration = Duration::from_millis(50);

struct Watcher {
    inotify: Option<Arc<Inotify>>,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    /// Counts events, so that one between a look and a wait is not missed.
    events: u64,
    users: HashMap<WatchDescriptor, usize>,
}

impl Default for Watcher {
    fn default() -> Self {
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).ok().map(Arc::new);
        if let Some(inotify) = &inotify {
            let (inotify, state) = (Arc::clone(inotify), Arc::clone(&state));
            let started = std::thread::Builder::new()
                .name("vineyard-watch".into())
                .stack_size(64 << 10)
                .spawn(move || listen(&inotify, &state));
            if started.is_err() {
                return Self {
                    inotify: None,
                    state: Arc::default(),
                };
            }
        }
        Self { inotify, state }
    }
}

impl Abandon for Watcher {
    // The inherited descriptor stays open and unused: by the time that this is noticed, its number may be somebody else's.
    fn abandon(&self) {}
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads events for ever and wakes everybody: what they mean each waiter finds out for itself.
fn listen(inotify: &Inotify, state: &(Mutex<State>, Condvar)) {
    loop {
        match inotify.read_events() {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
        locked(&state.0).events += 1;
        state.1.notify_all();
    }
}

/// A watch on one directory, for as long as this lives.
pub(crate) struct Watch<'w> {
    watcher: &'w Watcher,
    descriptor: Option<WatchDescriptor>,
    pause: Duration,
}

/// The number of events so far: look at the directory after taking it and wait with it.
#[derive(Clone, Copy)]
pub(crate) struct Seen(u64);

impl Watch<'static> {
    /// Watches for what appears in, or moves into, `directory`.
    pub(crate) fn new(directory: BorrowedFd<'_>) -> Self {
        let watcher = WATCHER.get(Watcher::default);
        let mut state = locked(&watcher.state.0);
        let descriptor = watcher.inotify.as_ref().and_then(|inotify| {
            // Through the descriptor: no symlink can redirect it.
            let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
            let flags = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF;
            inotify.add_watch(path.as_str(), flags).ok()
        });
        if let Some(descriptor) = descriptor {
            *state.users.entry(descriptor).or_default() += 1;
        }
        drop(state);
        Self {
            watcher,
            descriptor,
            pause: SHORTEST,
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen(locked(&self.watcher.state.0).events)
    }

    /// Waits until something happened since `seen`, or `until`. False when the time is over.
    pub(crate) fn wait(&mut self, seen: Seen, until: Option<Instant>) -> bool {
        let left = until.map(|u| u.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return false;
        }
        let left = left.unwrap_or(Duration::MAX);
        if self.descriptor.is_none() {
            std::thread::sleep(self.pause.min(left));
            self.pause = (self.pause * 2).min(POLL);
            return true;
        }
        let state = locked(&self.watcher.state.0);
        let woken = self
            .watcher
            .state
            .1
            .wait_timeout_while(state, left.min(LONGEST), |s| s.events == seen.0);
        drop(woken);
        true
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(descriptor) = self.descriptor else {
            return;
        };
        let mut state = locked(&self.watcher.state.0);
        if let Some(users) = state.users.get_mut(&descriptor) {
            *users -= 1;
            if *users == 0 {
                state.users.remove(&descriptor);
                if let Some(inotify) = &self.watcher.inotify {
                    // It is gone already when the directory is.
                    let _ = inotify.rm_watch(descriptor);
                }
            }
        }
    }
}
