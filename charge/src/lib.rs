//! Who pays for a page of tmpfs, and how to change it: reserve, pull, survey, recharge and hand over.
//!
//! A page is billed to the memory cgroup of the process that allocates it, and stays there whoever writes or reads it
//! later. So a *payer*, a process in the paying pod, allocates pages on file descriptors that it is handed
//! ([`Payer`]: [`OwnPayer`] in process, [`RemotePayer`] over a socket).

pub mod cgroup;
pub mod descriptor;
pub mod handover;
mod mapping;
pub mod payer;
pub mod probe;
pub mod recharge;
pub mod survey;
mod tree;
pub mod wire;

pub use cgroup::{CgroupError, CgroupId, MemoryCgroup};
pub use payer::{Extent, Full, Limit, OwnPayer, Payer, RemotePayer, ReserveError};

/// Bytes of a page, the unit of billing.
pub const PAGE: u64 = 4096;

/// Bytes of a region: what the kernel re-charges in place, in one step.
pub const REGION: u64 = 2 << 20;
