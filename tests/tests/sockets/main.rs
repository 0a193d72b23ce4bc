//! Pods whose sidecars ask the node driver: grants, restarts of either, leaving, and pods that misuse their sockets.
#![cfg(test)]

mod hostile;
mod lives;
mod pod;
mod restarts;
mod retained;
mod volumes;

/// Returns from the test, and says why, when the machine does not allow it. Builds what takes longer than any step may.
macro_rules! possible {
    () => {
        vineyard_tests::skip_unless_possible!();
        vineyard_tests::binaries::driver()?;
    };
}
pub(crate) use possible;

pub(crate) const MIB: u64 = 1 << 20;
