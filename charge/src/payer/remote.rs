//! The client's side of a payer in another process: the sidecar of its pod, or the retainer.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use vineyard_proto::payer::{
    GetUsage, GiveBack, Pull, Range, Reserve, Usage, Welcome, reply, request,
};

use super::connection::{Connection, Lost};
use super::{Extent, Payer, ReserveError};
use crate::wire::MAX_DESCRIPTORS;
use crate::{PAGE, REGION};

/// How often a request is sent before a payer that goes away each time counts as unreachable.
const ATTEMPTS: u32 = 4;

/// Bytes pulled by one request: bounds how long the payer is busy with one client.
const PULL_STEP: u64 = 1 << 30;

/// Ranges of one pull request, so that the frame stays small.
const PULL_RANGES: usize = 1000;

/// A payer behind a Unix socket. Cheap to share; one request is in flight at a time.
///
/// When the payer restarts, it connects again (for about five seconds) and repeats the request that was under way:
/// reserving fresh extents twice allocates them once. A forked child gets a connection of its own.
pub struct RemotePayer {
    path: PathBuf,
    client: String,
    first: Generation,
}

/// The state of one process. A lock that was held while forking stays locked in the child for ever, so a child never
/// touches its parent's: it appends its own generation.
struct Generation {
    process: u32,
    held: AtomicU64,
    connection: Mutex<Option<Connection>>,
    child: OnceLock<Box<Generation>>,
}

impl Generation {
    fn new() -> Self {
        Self {
            process: process::id(),
            held: AtomicU64::new(0),
            connection: Mutex::new(None),
            child: OnceLock::new(),
        }
    }
}

impl RemotePayer {
    /// Connects to the payer that listens at `path`. `client` names this process in its logs and metrics.
    ///
    /// # Errors
    /// [`ReserveError::Unreachable`] when nobody accepts within five seconds, [`ReserveError::Refused`] when the payer
    /// speaks another version or is not for us.
    pub fn connect(path: &Path, client: &str) -> Result<Self, ReserveError> {
        let payer = Self {
            path: path.to_owned(),
            client: client.to_owned(),
            first: Generation::new(),
        };
        payer.welcome()?;
        Ok(payer)
    }

    /// What the payer said when this process connected: the most descriptors of one reserve, the bytes of a stock.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), when it has to connect again.
    pub fn welcome(&self) -> Result<Welcome, ReserveError> {
        let generation = self.generation();
        let mut slot = lock(generation);
        Ok(*self.connected(&mut slot, generation)?.welcome())
    }

    /// Records the bytes that this process holds reserved but not sealed. A payer that restarts learns them.
    pub fn set_held(&self, bytes: u64) {
        self.generation().held.store(bytes, Ordering::Relaxed);
    }

    /// The allowance and what is spent of it.
    ///
    /// # Errors
    /// When the payer is unreachable or refuses.
    pub fn usage(&self) -> Result<Usage, ReserveError> {
        match self.call(request::Body::GetUsage(GetUsage {}), &[], 0)? {
            reply::Body::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    fn generation(&self) -> &Generation {
        let own = process::id();
        let mut generation = &self.first;
        while generation.process != own {
            generation = generation.child.get_or_init(|| {
                // The inherited socket would keep the payer believing in a parent that has gone.
                if let Ok(mut inherited) = generation.connection.try_lock() {
                    inherited.take();
                }
                Box::new(Generation::new())
            });
        }
        generation
    }

    fn connected<'a>(
        &self,
        slot: &'a mut Option<Connection>,
        generation: &Generation,
    ) -> Result<&'a mut Connection, ReserveError> {
        if slot.is_none() {
            let held = generation.held.load(Ordering::Relaxed);
            *slot = Some(Connection::open(&self.path, &self.client, held)?);
        }
        slot.as_mut()
            .ok_or_else(|| ReserveError::Unreachable(io::ErrorKind::NotConnected.into()))
    }

    /// Sends a request and waits for its reply, again if the payer went away in between: the first time it may only be
    /// the connection to an earlier payer that turns out to be gone.
    fn call(
        &self,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
        bytes: u64,
    ) -> Result<reply::Body, ReserveError> {
        let generation = self.generation();
        let mut slot = lock(generation);
        let mut left = ATTEMPTS;
        loop {
            let connection = self.connected(&mut slot, generation)?;
            match connection.exchange(body.clone(), descriptors, bytes) {
                Ok(reply::Body::Refused(refused)) => {
                    return Err(ReserveError::Refused {
                        message: refused.message,
                    });
                }
                Ok(reply) => return Ok(reply),
                Err(Lost::Invalid(error)) => {
                    *slot = None;
                    return Err(ReserveError::Io(error));
                }
                Err(Lost::Gone(error)) => {
                    *slot = None;
                    left -= 1;
                    if left == 0 {
                        return Err(ReserveError::Unreachable(error));
                    }
                }
                Err(Lost::Silent(error)) => {
                    // It may still be at work: asking again would only queue behind it.
                    *slot = None;
                    return Err(ReserveError::Unreachable(error));
                }
            }
        }
    }

    fn reserve_batch(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        let ranges = extents.iter().map(|(_, e)| range(*e)).collect();
        let descriptors: Vec<BorrowedFd<'_>> = extents.iter().map(|(fd, _)| *fd).collect();
        let bytes = extents.iter().map(|(_, e)| e.length).sum();
        let body = request::Body::Reserve(Reserve { ranges });
        match self.call(body, &descriptors, bytes)? {
            reply::Body::Reserved(_) => Ok(()),
            reply::Body::Full(full) => Err(ReserveError::Full((&full).into())),
            other => Err(unexpected(&other)),
        }
    }
}

impl Payer for RemotePayer {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        // Payers refuse ranges that are empty.
        let extents: Vec<_> = extents
            .iter()
            .copied()
            .filter(|(_, e)| e.length > 0)
            .collect();
        if extents.is_empty() {
            return Ok(());
        }
        let most = usize::try_from(self.welcome()?.max_descriptors).unwrap_or(MAX_DESCRIPTORS);
        let mut done = 0u64;
        let mut kept = 0;
        for batch in extents.chunks(most.clamp(1, MAX_DESCRIPTORS)) {
            if let Err(error) = self.reserve_batch(batch) {
                if kept > 0 {
                    for (fd, extent) in extents.iter().take(kept) {
                        super::fill::free(*fd, *extent);
                    }
                    self.give_back(done);
                }
                return Err(error);
            }
            kept += batch.len();
            done += batch
                .iter()
                .map(|(_, e)| e.length.next_multiple_of(PAGE))
                .sum::<u64>();
        }
        Ok(())
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        let mut refused = Vec::new();
        let steps: Vec<Extent> = regions.iter().flat_map(|r| steps(*r)).collect();
        let mut rest = steps.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take(PULL_RANGES)
                .take_while(|step| {
                    bytes += step.length;
                    bytes <= PULL_STEP
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(count);
            let ranges = now.iter().map(|step| range(*step)).collect();
            match self.call(request::Body::Pull(Pull { ranges }), &[file], bytes)? {
                reply::Body::Pulled(pulled) => refused.extend(pulled.refused),
                other => return Err(unexpected(&other)),
            }
            rest = later;
        }
        Ok(refused)
    }

    fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut slot = lock(self.generation());
        // A payer that is away learns what is held when we connect again, so nothing is lost by not waiting for it.
        if let Some(connection) = slot.as_mut()
            && connection
                .tell(request::Body::GiveBack(GiveBack { bytes }))
                .is_err()
        {
            *slot = None;
        }
    }
}

impl fmt::Debug for RemotePayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemotePayer")
            .field("path", &self.path)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// A panic elsewhere cannot leave a half-sent request: the connection is dropped on every error.
fn lock(generation: &Generation) -> MutexGuard<'_, Option<Connection>> {
    generation
        .connection
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn steps(region: Extent) -> impl Iterator<Item = Extent> {
    let step = PULL_STEP.next_multiple_of(REGION);
    (0..region.length.div_ceil(step)).map(move |index| Extent {
        offset: region.offset + index * step,
        length: step.min(region.length - index * step),
    })
}

fn range(extent: Extent) -> Range {
    Range {
        offset: extent.offset,
        length: extent.length,
    }
}

fn unexpected(reply: &reply::Body) -> ReserveError {
    let error = io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the payer answered with {reply:?}"),
    );
    ReserveError::Io(error)
}
