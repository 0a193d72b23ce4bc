//! A whole node under a replayed kubelet: the driver, its retainer, and pods of a sidecar and clients under several users, each a
//! process in a cgroup of its own. Whoever of them is killed, every byte must come to the right bill.

mod bill;
mod pod;
mod retainer;
mod schedule;

pub use schedule::play;
