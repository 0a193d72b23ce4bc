//! How much may be allocated without anybody being OOM-killed.
//!
//! `fallocate` beyond a cgroup's limit kills; so it runs only on bytes that the room has vouched for: the limits of all
//! visible cgroups leave a margin, or, where limits are hidden or page cache would have to go first, a probe has shown
//! that the kernel finds the room.

use std::fs::File;
use std::io::{self, Read};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use super::probe::{Probe, Verdict};
use super::{Full, Limit};
use crate::cgroup::{CgroupError, MemoryCgroup};

/// What a reserve leaves free below every limit, for the other allocations of the processes there.
pub(super) const MARGIN: u64 = 4 << 20;

/// What it leaves free of the machine: other pods have no limit in between.
const MACHINE_MARGIN: u64 = 64 << 20;

/// What is vouched for at once.
const STEP: u64 = 16 << 20;

/// What one probe vouches for: less than the 2 MiB that it saw, the rest is margin.
const PROBED_STEP: u64 = 1 << 20;

/// A reading may be reused for so long if it showed at least [`PLENTY`] more than what is asked.
const FRESH: Duration = Duration::from_millis(5);
const PLENTY: u64 = 128 << 20;

/// How long the process is believed to stay in its cgroup, and the machine's memory to stay plenty.
const MEMBERSHIP: Duration = Duration::from_secs(1);
const MACHINE_FRESH: Duration = Duration::from_millis(50);
const MACHINE_PLENTY: u64 = 1 << 30;

/// The process' view of all limits above it, shared by its threads.
#[derive(Debug)]
pub(super) struct Room {
    process: u32,
    seen: Mutex<Option<Seen>>,
    probe: RwLock<Option<Probe>>,
    /// Bytes vouched for and perhaps not allocated yet, by all threads.
    pledged: AtomicU64,
}

/// Bytes that may be allocated now. Returned to the room when dropped.
#[derive(Debug)]
pub(super) struct Pledge<'a> {
    room: &'a Room,
    pub(super) bytes: u64,
    _turn: Turn<'a>,
}

impl Drop for Pledge<'_> {
    fn drop(&mut self) {
        self.room.pledged.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Far from every limit threads work side by side: each counts what the others were promised. Close to one, a thread
/// works alone: its probes take what another would rely on.
#[derive(Debug)]
enum Turn<'a> {
    Shared {
        _guard: Option<RwLockReadGuard<'a, Option<Probe>>>,
    },
    Alone {
        _guard: Option<RwLockWriteGuard<'a, Option<Probe>>>,
    },
    /// Only announced.
    None,
}

/// Regions about to be charged, which the kernel refuses if they do not fit.
#[derive(Debug)]
pub(super) struct Approach<'a> {
    _pledge: Pledge<'a>,
    /// Some limit may be hit: it is unseen, or not far.
    pub(super) near: bool,
}

/// The tightest limit at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tightest {
    /// Bytes free below it, after the margin.
    pub(super) free: u64,
    /// The limit.
    pub(super) limit: u64,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            process: process::id(),
            seen: Mutex::new(None),
            probe: RwLock::new(None),
            pledged: AtomicU64::new(0),
        }
    }

    /// Refuses what cannot fit even if all page cache went, before anything is allocated.
    pub(super) fn check(&self, asked: u64) -> Result<(), Full> {
        self.look(|seen| {
            let tightest = seen.strict(asked);
            if tightest.free >= asked {
                return Ok(());
            }
            let reachable = seen.with_reclaim(asked);
            if reachable.free >= asked {
                return Ok(());
            }
            Err(full(asked, reachable))
        })
    }

    /// Vouches for at most `wanted` bytes, at least one page of them.
    pub(super) fn pledge(&self, wanted: u64) -> Result<Pledge<'_>, Full> {
        let shared = Turn::Shared {
            _guard: self.shared(),
        };
        let (pledge, pledged) = self.reckon(wanted.min(STEP), shared);
        if self.is_far(pledged) {
            return Ok(pledge);
        }
        drop(pledge);
        let mut guard = self.alone();
        let bytes = wanted.min(PROBED_STEP);
        let (hidden, strict, reachable) =
            self.look(|seen| (seen.hidden, seen.strict(bytes), seen.with_reclaim(bytes)));
        let fits = strict.free >= bytes;
        if reachable.free < bytes {
            return Err(full(wanted, reachable));
        }
        let verdict = if fits && !hidden {
            Verdict::Room
        } else {
            on_probe(guard.as_deref_mut(), |probe| {
                probe.map_or(Verdict::Unknown, Probe::run)
            })
        };
        match verdict {
            Verdict::Full => return Err(full(wanted, strict)),
            // Without huge pages nothing can look beyond the cgroups that are visible.
            Verdict::Unknown if !fits => return Err(full(wanted, strict)),
            Verdict::Room | Verdict::Unknown => {}
        }
        Ok(self.reckon(bytes, Turn::Alone { _guard: guard }).0)
    }

    fn reckon<'a>(&'a self, bytes: u64, turn: Turn<'a>) -> (Pledge<'a>, u64) {
        let pledged = self.pledged.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let pledge = Pledge {
            room: self,
            bytes,
            _turn: turn,
        };
        (pledge, pledged)
    }

    /// Whether every limit is seen, and leaves room for all that was promised.
    fn is_far(&self, pledged: u64) -> bool {
        self.look(|seen| !seen.hidden && seen.strict(pledged).free >= pledged)
    }

    /// The room that is left now, for an error message.
    pub(super) fn full(&self, asked: u64) -> Full {
        full(asked, self.look(|seen| seen.with_reclaim(u64::MAX)))
    }

    /// Announces `bytes` of whole regions to the other threads.
    pub(super) fn approach(&self, bytes: u64) -> Approach<'_> {
        let (pledge, pledged) = self.reckon(bytes, Turn::None);
        Approach {
            near: !self.is_far(pledged.saturating_add(PLENTY)),
            _pledge: pledge,
        }
    }

    /// Does `work` that charges the whole regions that were announced. Close to a limit, 2 MiB are held meanwhile, so that
    /// nobody is left without a byte when it is hit. The caller has no pledge at the moment.
    pub(super) fn with_ballast<T>(
        &self,
        _announced: &Approach<'_>,
        work: impl FnOnce() -> T,
    ) -> Result<T, NoBallast> {
        let shared = self.shared();
        if self.is_far(self.pledged.load(Ordering::Acquire)) {
            return Ok(work());
        }
        drop(shared);
        on_probe(self.alone().as_deref_mut(), |probe| {
            let Some(probe) = probe else {
                return Ok(work());
            };
            probe.hold(|verdict| match verdict {
                Verdict::Full => Err(NoBallast),
                Verdict::Room | Verdict::Unknown => Ok(work()),
            })
        })
    }

    /// Whether the payer's own cgroup, not its ancestors, can take `bytes` of pages that exist already.
    pub(super) fn own_has(&self, bytes: u64) -> bool {
        self.look(|seen| {
            seen.cgroups.first().is_none_or(|own| {
                let free = own.free().ok().flatten().unwrap_or(u64::MAX);
                free >= bytes + MARGIN
                    || free.saturating_add(own.reclaimable().unwrap_or(0)) >= bytes + MARGIN
            })
        })
    }

    fn look<T>(&self, ask: impl FnOnce(&mut Seen) -> T) -> T {
        let slot = if self.may_wait() {
            Some(self.seen.lock().unwrap_or_else(PoisonError::into_inner))
        } else {
            self.seen.try_lock().ok()
        };
        let Some(mut slot) = slot else {
            return ask(&mut Seen::now());
        };
        let seen = match slot.take() {
            Some(seen) if seen.is_current() => seen,
            _ => Seen::now(),
        };
        ask(slot.insert(seen))
    }

    fn shared(&self) -> Option<RwLockReadGuard<'_, Option<Probe>>> {
        if self.may_wait() {
            return Some(self.probe.read().unwrap_or_else(PoisonError::into_inner));
        }
        self.probe.try_read().ok()
    }

    fn alone(&self) -> Option<RwLockWriteGuard<'_, Option<Probe>>> {
        if self.may_wait() {
            return Some(self.probe.write().unwrap_or_else(PoisonError::into_inner));
        }
        self.probe.try_write().ok()
    }

    /// A forked child may find a lock taken for ever by a thread that it does not have, so it never waits for one.
    fn may_wait(&self) -> bool {
        process::id() == self.process
    }
}

/// The probe of a slot, or one of its own; `None` where none can be made.
fn on_probe<T>(slot: Option<&mut Option<Probe>>, ask: impl FnOnce(Option<&Probe>) -> T) -> T {
    let Some(slot) = slot else {
        return ask(Probe::new().ok().as_ref());
    };
    if slot.is_none() {
        *slot = Probe::new().ok();
    }
    ask(slot.as_ref())
}

/// Not even 2 MiB are free.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoBallast;

fn full(asked: u64, tightest: Tightest) -> Full {
    Full {
        asked,
        free: tightest.free,
        limit: Limit::Cgroup,
        limit_bytes: tightest.limit,
    }
}

/// The cgroups above this process, and the last readings.
#[derive(Debug)]
struct Seen {
    process: u32,
    since: Instant,
    cgroups: Vec<MemoryCgroup>,
    hidden: bool,
    reading: Option<(Instant, Tightest)>,
    machine: Option<(Instant, Tightest)>,
}

impl Seen {
    fn now() -> Self {
        let (cgroups, hidden) = match MemoryCgroup::own() {
            Ok(own) => {
                let hidden = own.has_hidden_ancestors();
                let mut cgroups = own.ancestors();
                cgroups.insert(0, own);
                (cgroups, hidden)
            }
            // The machine itself has no other limit. Whatever else hides our cgroup may hide a limit, too.
            Err(error) => (Vec::new(), !matches!(error, CgroupError::Root)),
        };
        Self {
            process: process::id(),
            since: Instant::now(),
            cgroups,
            hidden,
            reading: None,
            machine: None,
        }
    }

    fn is_current(&self) -> bool {
        self.process == process::id() && self.since.elapsed() < MEMBERSHIP
    }

    /// What is free without the kernel dropping anything.
    fn strict(&mut self, needed: u64) -> Tightest {
        if let Some((at, reading)) = &mut self.reading
            && reading.free >= needed.saturating_add(PLENTY)
            && at.elapsed() < FRESH
        {
            // What is pledged now will not show in this reading.
            reading.free -= needed;
            return Tightest {
                free: reading.free + needed,
                ..*reading
            };
        }
        let tightest = self.tightest(|cgroup| cgroup.free().ok().flatten());
        self.reading = Some((Instant::now(), tightest));
        tightest
    }

    /// What is free if the kernel drops page cache where that helps.
    fn with_reclaim(&mut self, needed: u64) -> Tightest {
        self.tightest(|cgroup| {
            let free = cgroup.free().ok().flatten()?;
            if free >= needed.saturating_add(MARGIN) {
                return Some(free);
            }
            Some(free.saturating_add(cgroup.reclaimable().unwrap_or(0)))
        })
    }

    fn tightest(&mut self, free: impl Fn(&MemoryCgroup) -> Option<u64>) -> Tightest {
        let mut tightest = self.machine();
        for cgroup in &self.cgroups {
            let Some(free) = free(cgroup) else { continue };
            let free = free.saturating_sub(MARGIN);
            if free < tightest.free {
                let limit = cgroup.limit().ok().flatten().unwrap_or(0);
                tightest = Tightest { free, limit };
            }
        }
        tightest
    }

    fn machine(&mut self) -> Tightest {
        if let Some((at, machine)) = self.machine
            && machine.free > MACHINE_PLENTY
            && at.elapsed() < MACHINE_FRESH
        {
            return machine;
        }
        let machine = read_machine().unwrap_or(Tightest {
            free: u64::MAX,
            limit: 0,
        });
        self.machine = Some((Instant::now(), machine));
        machine
    }
}

fn read_machine() -> io::Result<Tightest> {
    let mut buffer = [0u8; 512];
    let length = File::open("/proc/meminfo")?.read(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let bytes = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    Ok(Tightest {
        free: bytes("MemAvailable:")?.saturating_sub(MACHINE_MARGIN),
        limit: bytes("MemTotal:")?,
    })
}
