//! The command line of Vineyard.

mod args;
mod beneath;
mod bills;
mod bytes;
mod checks;
#[cfg(feature = "kubernetes")]
mod cluster;
mod driver;
mod exit;
mod output;
mod progress;
mod slack;
mod utf8;
mod verb;

use std::process::ExitCode;

fn main() -> ExitCode {
    args::run()
}
