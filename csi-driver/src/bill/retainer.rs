//! The driver's side of the retainer: its payer, and the cgroups that it pays with.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use vineyard_charge::payer::{Payer, RemotePayer, ReserveError};
use vineyard_charge::{CgroupError, CgroupId, MemoryCgroup};

/// After a failure nobody else waits for the retainer for so long, and twice as long after each further one.
const BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Finds the pod-level cgroup directory of a process.
type PodDirectoryOf = dyn Fn(u32) -> Option<PathBuf> + Send + Sync;

/// Why the retainer cannot be billed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// It does not answer, or refuses.
    #[error("retainer at {}: {source}", socket.display())]
    Payer {
        /// Where it should listen.
        socket: PathBuf,
        /// What it said.
        source: ReserveError,
    },
    /// It did not answer a moment ago, and is not asked again yet.
    #[error("retainer at {}: unreachable, next attempt in {} ms", socket.display(), wait.as_millis())]
    Waiting {
        /// Where it should listen.
        socket: PathBuf,
        /// Time until then.
        wait: Duration,
    },
    /// Its process is not visible: another pid namespace.
    #[error(
        "the retainer's process is not visible from here: the driver needs the host's process ids"
    )]
    Hidden,
    /// Its cgroup cannot be read.
    #[error("the retainer's cgroup: {0}")]
    Cgroup(#[from] CgroupError),
}

/// The retainer of this node, connected to when it is needed. Blocking: never called on the executor.
pub(crate) struct Retainer {
    socket: PathBuf,
    pod_directory_of: Box<PodDirectoryOf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    payer: Option<Arc<RemotePayer>>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Retainer {
    /// The retainer that listens at `socket`. `pod_directory_of` finds the cgroup directory of the pod that a process is in;
    /// without an answer the process' own cgroup counts.
    pub(crate) fn new(
        socket: PathBuf,
        pod_directory_of: impl Fn(u32) -> Option<PathBuf> + Send + Sync + 'static,
    ) -> Self {
        Self {
            socket,
            pod_directory_of: Box::new(pod_directory_of),
            state: Mutex::default(),
        }
    }

    /// The payer. The first call waits up to five seconds for it; it reconnects by itself when the retainer restarts.
    ///
    /// # Errors
    /// [`Error::Payer`] when nobody answers, and [`Error::Waiting`] right after that.
    pub(crate) fn payer(&self) -> Result<Arc<dyn Payer>, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(payer) = &state.payer {
            return Ok(Arc::clone(payer) as Arc<dyn Payer>);
        }
        let now = Instant::now();
        if let Some(wait) = state
            .not_before
            .and_then(|at| at.checked_duration_since(now))
        {
            return Err(Error::Waiting {
                socket: self.socket.clone(),
                wait,
            });
        }
        match RemotePayer::connect(&self.socket, "node driver") {
            Ok(payer) => {
                let payer = Arc::new(payer);
                *state = State {
                    payer: Some(Arc::clone(&payer)),
                    ..State::default()
                };
                Ok(payer)
            }
            Err(source) => {
                let pause = BACKOFF.saturating_mul(1 << state.failures.min(16));
                state.failures = state.failures.saturating_add(1);
                state.not_before = Some(Instant::now() + pause.min(LONGEST_BACKOFF));
                Err(Error::Payer {
                    socket: self.socket.clone(),
                    source,
                })
            }
        }
    }

    /// Who is charged when the retainer allocates: the cgroup subtree of its pod, as it is now.
    ///
    /// # Errors
    /// When nobody listens, or the process or its cgroup cannot be seen.
    pub(crate) fn owners(&self) -> Result<Vec<CgroupId>, Error> {
        let pid = self.pid()?;
        let cgroup = match (self.pod_directory_of)(pid) {
            Some(directory) => MemoryCgroup::open(directory)?,
            None => MemoryCgroup::of_pid(pid)?,
        };
        Ok(cgroup.subtree()?)
    }

    /// The process that listens.
    fn pid(&self) -> Result<u32, Error> {
        let asked = UnixStream::connect(&self.socket)
            .and_then(|stream| getsockopt(&stream, PeerCredentials).map_err(io::Error::from));
        let peer = asked.map_err(|source| Error::Payer {
            socket: self.socket.clone(),
            source: ReserveError::Unreachable(source),
        })?;
        match u32::try_from(peer.pid()) {
            Ok(pid) if pid > 0 => Ok(pid),
            _ => Err(Error::Hidden),
        }
    }
}

impl std::fmt::Debug for Retainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retainer")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
