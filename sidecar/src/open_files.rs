//! How many descriptors this process may hold, and so how many clients it can serve.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vineyard_charge::wire::MAX_DESCRIPTORS;

/// Standard streams, listeners, the runtime's own, cgroup files, HTTP clients.
const OWN: usize = 160;

/// Raises the limit of open files as far as needed and possible. Returns how many of `connections` it allows, beside
/// the descriptors of `large` requests and of one small one.
///
/// # Errors
/// When not even one connection fits, or the kernel refuses.
pub(crate) fn allow(connections: usize, large: usize) -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let beside = OWN.saturating_add(large.saturating_add(1).saturating_mul(MAX_DESCRIPTORS));
    let wanted = beside.saturating_add(connections) as u64;
    let limit = wanted.clamp(soft, hard.max(soft));
    if limit > soft {
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    }
    let usable = usize::try_from(limit).unwrap_or(usize::MAX);
    let allowed = usable.saturating_sub(beside).min(connections);
    if allowed == 0 {
        return Err(io::Error::other(format!(
            "a limit of {limit} open files leaves no room for a client; {} are needed",
            beside + 1
        )));
    }
    if allowed < connections {
        tracing::warn!(
            limit,
            allowed,
            connections,
            "the limit of open files allows fewer clients"
        );
    }
    Ok(allowed)
}
