//! The CSI driver: memory volumes that kubelet provisions and mounts. `docs/design/csi.md` says how; `args` puts it together.

mod args;
mod bill;
mod bytes;
mod clone;
mod controller;
mod edge;
mod failpoint;
mod http;
mod identity;
mod keyed_lock;
mod metrics;
mod mount;
mod node;
mod records;
mod registration;
mod report;
#[cfg(feature = "kubernetes")]
mod resources;
mod retainer;
mod server;
mod socket;
mod sockets;
mod sweep;
mod validation;
mod volume;
#[cfg(feature = "kubernetes")]
mod webhook;

fn main() -> std::process::ExitCode {
    <args::Args as clap::Parser>::parse().run()
}
