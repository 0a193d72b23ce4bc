//! What the kernel says about the bytes on this pod's bill.
//!
//! Two facts bound them from above, whatever clients say:
//! - what is charged to this process' own cgroup, plus what earlier containers of the pod may have left elsewhere;
//! - what all volumes hold together: every byte on the bill is a page of one of them.
//!
//! One bounds them from below: a cgroup that holds nobody but this process holds its reserved pages and little else.

use std::fs;
use std::sync::Arc;

use vineyard_charge::MemoryCgroup;

use crate::volumes::Volumes;

/// Measures the bytes that are really charged.
pub(crate) trait Gauge: Send + Sync + std::fmt::Debug {
    /// An upper bound of what is charged, when at most `carried` bytes are charged to earlier cgroups. `None` if
    /// nothing can be said.
    fn at_most(&self, carried: u64) -> Option<u64>;

    /// A lower bound of what is charged; 0 when it is not above `relevant`, which saves work.
    fn at_least(&self, relevant: u64) -> u64;
}

/// More than this process ever uses for itself: stacks, heap, its binary, page tables.
const OWN_MEMORY: u64 = 16 << 20;

/// The kernel charges ahead by up to 64 pages per processor.
const CHARGED_AHEAD: u64 = 64 * 4096;

/// Reads this process' cgroup and the volumes' file systems.
#[derive(Debug)]
pub(crate) struct KernelGauge {
    cgroup: Option<MemoryCgroup>,
    volumes: Arc<Volumes>,
    own_memory: u64,
}

impl KernelGauge {
    /// A gauge for `cgroup`, the own one if it can be seen, and `volumes`.
    pub(crate) fn new(cgroup: Option<MemoryCgroup>, volumes: Arc<Volumes>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Self {
            cgroup,
            volumes,
            own_memory: OWN_MEMORY + CHARGED_AHEAD * processors,
        }
    }

    fn charged(&self) -> Option<u64> {
        self.cgroup.as_ref()?.usage().ok()
    }

    /// Whether no other process' memory can be in the measured usage.
    fn alone(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| {
            fs::read_to_string(cgroup.directory().join("cgroup.procs"))
                .is_ok_and(|processes| processes.lines().count() == 1)
        })
    }
}

impl Gauge for KernelGauge {
    fn at_most(&self, carried: u64) -> Option<u64> {
        let by_cgroup = self.charged().map(|bytes| bytes.saturating_add(carried));
        let by_volumes = self.volumes.used();
        match (by_cgroup, by_volumes) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn at_least(&self, relevant: u64) -> u64 {
        let charged = self.charged().unwrap_or(0);
        match charged.checked_sub(self.own_memory) {
            Some(bytes) if bytes > relevant && self.alone() => bytes,
            _ => 0,
        }
    }
}
