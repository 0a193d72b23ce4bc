//! What the process says to its caller: one exit code per reason, documented in `--help` and docs/reference/cli.md.

use std::process::ExitCode;

use vineyard_store::Error;

/// The exit codes as `--help` prints them.
pub(crate) const CODES: &str = "\
Exit codes:
  0  done
  1  an error that has no code of its own
  2  wrong usage: arguments, an invalid name, a directory that is no volume
  3  a name or object is not there, or its object is lost
  4  no room: the volume, the allowance or a cgroup limit is full
  5  the time is over
  6  fsck, doctor or charges found something that needs a person
  7  not allowed, or not possible with these privileges or on this kernel";

/// Why a verb ended without an error of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was done.
    Done,
    /// A check found problems and reported them.
    ProblemsFound,
    /// The bytes or the privileges are not there; the report says why.
    NotPossible,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::ProblemsFound => 6,
            Outcome::NotPossible => 7,
        })
    }
}
