//! `kubectl vineyard`: the same questions, asked of the whole cluster. The answers are in the driver's custom resources.
//!
//! kubectl runs any program of this name on its path, so this binary need only be there once more, as `kubectl-vineyard`.

mod charges;
mod connection;
mod doctor;
mod records;
mod top;
mod volumes;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{self, Outcome};
use crate::output::Format;
use connection::{Cluster, ConnectionFlags};

/// The name that kubectl looks for.
const PLUGIN: &str = "kubectl-vineyard";

/// Volumes of memory in this cluster: where they are, and who is billed for them.
#[derive(Debug, Parser)]
#[command(name = "kubectl vineyard", version, after_help = exit::CODES, max_term_width = 100)]
struct Args {
    #[command(flatten)]
    connection: ConnectionFlags,

    /// Print JSON for programs: one value a line
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Top(top::Top),
    Charges(charges::Charges),
    Volumes(volumes::Volumes),
    Doctor(doctor::Doctor),
}

/// Whether kubectl called, or somebody who wants the same.
pub(crate) fn is_called(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(PLUGIN))
}

/// Runs the verb that the command line names.
pub(crate) fn run() -> ExitCode {
    let Args {
        connection,
        json,
        verb,
    } = Args::parse();
    let format = if json { Format::Json } else { Format::Table };
    let outcome = answer(connection, &verb, format);
    outcome.map_or_else(|error| exit::report(&error, format), Outcome::into)
}

fn answer(flags: ConnectionFlags, verb: &Verb, format: Format) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect(flags).await?;
        match verb {
            Verb::Top(verb) => verb.run(&cluster, format).await,
            Verb::Charges(verb) => verb.run(&cluster, format).await,
            Verb::Volumes(verb) => verb.run(&cluster, format).await,
            Verb::Doctor(verb) => verb.run(&cluster, format).await,
        }
    })
}
