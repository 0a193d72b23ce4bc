//! The payer that is injected into each workload pod. `docs/design/payer.md` is its protocol; `args` puts it together.

mod args;
mod bill;
mod bytes;
mod driver;
mod grants;
mod http;
mod metrics;
mod open_files;
mod server;
mod service;
mod signals;
mod socket;
mod verb;
mod volumes;

fn main() -> std::process::ExitCode {
    <args::Args as clap::Parser>::parse().run()
}
