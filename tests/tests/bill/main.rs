//! The bill of a node's volumes, from pod to retainer: the real driver, retainer, sidecars and clients, each in its cgroup.
#![cfg(test)]

mod hand_over;
#[expect(dead_code, reason = "the tests of the sockets use the rest")]
#[path = "../sockets/pod.rs"]
mod pod;
mod retainer;
mod sweep;
mod trouble;

/// Returns from the test, and says why, when the machine does not allow it. Builds what takes longer than any step may.
macro_rules! possible {
    () => {
        vineyard_tests::skip_unless_possible!();
        vineyard_tests::binaries::driver()?;
        vineyard_tests::binaries::command_line()?;
    };
}
pub(crate) use possible;

pub(crate) const MIB: u64 = 1 << 20;
/// How long a test may take on a busy machine.
pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_secs(300);
/// How long bytes may take to be on another bill.
pub(crate) const MOVED: std::time::Duration = std::time::Duration::from_secs(100);
