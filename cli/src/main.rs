//! The command line of Vineyard.

mod args;
mod bills;
mod bytes;
mod exit;
mod output;
mod progress;
mod utf8;
mod verb;

use std::process::ExitCode;

fn main() -> ExitCode {
    args::run()
}
