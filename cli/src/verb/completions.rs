//! `completions`: what a shell needs to complete our arguments.

use std::io;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::exit::Outcome;

/// Print the completions of a shell: `vineyard completions bash >/etc/bash_completion.d/vineyard`
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        clap_complete::generate(
            self.shell,
            &mut Args::command(),
            "vineyard",
            &mut io::stdout(),
        );
        Ok(Outcome::Done)
    }
}
