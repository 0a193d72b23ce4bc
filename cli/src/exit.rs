//! What the process says to its caller: one exit code per reason, documented in `--help` and docs/reference/cli.md.

use std::io;
use std::process::ExitCode;

use vineyard_charge::survey::SurveyError;
use vineyard_charge::{Limit, ReserveError};
use vineyard_store::Error;

use crate::output::Format;

/// The exit codes as `--help` prints them.
pub(crate) const CODES: &str = "\
Exit codes:
  0  done
  1  an error that has no code of its own
  2  wrong usage: arguments, an invalid name, a directory that is no volume
  3  a name or object is not there, or its object is lost
  4  no room: the volume, the allowance or a cgroup limit is full
  5  the time is over
  6  fsck, doctor or recharge left something that needs a person
  7  not possible with these privileges or on this kernel";

/// Why a verb ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was done.
    Done,
    /// A name or object was not there.
    NotFound,
    /// Something is left that a person has to look at; the report says what.
    ProblemsFound,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::NotFound => 3,
            Outcome::ProblemsFound => 6,
        })
    }
}

/// Prints `error` and what to do about it on standard error, and returns its code.
pub(crate) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    if is_closed_pipe(error) {
        // The reader, `head` for instance, has seen enough.
        return ExitCode::SUCCESS;
    }
    let (code, advice) = classify(error);
    match format {
        Format::Json => {
            let value = serde_json::json!({ "error": format!("{error:#}"), "advice": advice, "code": code });
            eprintln!("{value}");
        }
        Format::Table => {
            eprintln!(
                "vineyard: {}",
                crate::output::printable(&format!("{error:#}"))
            );
            if let Some(advice) = advice {
                eprintln!("          {advice}");
            }
        }
    }
    ExitCode::from(code)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
        || error
            .downcast_ref::<serde_json::Error>()
            .is_some_and(|e| e.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
}

fn classify(error: &anyhow::Error) -> (u8, Option<&'static str>) {
    let Some(error) = error.downcast_ref::<Error>() else {
        return match error.downcast_ref::<ReserveError>() {
            Some(error) => classify_payer(error),
            None if is_privilege(error) => {
                (7, Some("Run it as root on the node, not in a container."))
            }
            None => (1, None),
        };
    };
    match error {
        Error::NotFound { .. } => (
            3,
            Some("`vineyard ls` shows what is there, `vineyard wait` waits for it."),
        ),
        Error::Lost { .. } => (
            3,
            Some("Its bytes are gone; put it again. `vineyard fsck --repair` removes the name."),
        ),
        Error::Exists { .. } => (1, Some("Leave out --no-overwrite, or choose another name.")),
        Error::Foreign { why, .. } if why.contains("directory") => (
            2,
            Some(
                "`vineyard ls NAME/` lists it, `vineyard rm --prefix NAME/` removes what is in it.",
            ),
        ),
        Error::Full { full, .. } => (4, Some(room(full.limit))),
        Error::Timeout { .. } => (5, None),
        Error::NotAVolume { .. } => (
            2,
            Some(
                "Name the volume's directory with --volume or VINEYARD_VOLUME; `vineyard put` makes one.",
            ),
        ),
        Error::Format { .. } => (2, Some("Install a newer vineyard.")),
        Error::InvalidName { .. } | Error::Foreign { .. } => (2, None),
        Error::ReadOnly => (
            7,
            Some("Mount the volume writable, or put from a pod that may write."),
        ),
        Error::Payer(error) => classify_payer(error),
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => (
            7,
            Some("Run it as the user that owns the volume, or as root."),
        ),
        _ => (1, None),
    }
}

fn is_privilege(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<SurveyError>(),
        Some(SurveyError::Privilege { .. })
    )
}

fn classify_payer(error: &ReserveError) -> (u8, Option<&'static str>) {
    match error {
        ReserveError::Full(full) => (4, Some(room(full.limit))),
        ReserveError::Refused { .. } => (
            1,
            Some("Does the sidecar serve this volume? See its --volume."),
        ),
        ReserveError::Unreachable(_) => (
            1,
            Some("Is the sidecar running? `vineyard doctor` looks for it."),
        ),
        _ => (1, None),
    }
}

fn room(limit: Limit) -> &'static str {
    match limit {
        Limit::Allowance => {
            "Remove objects that this pod has put, or raise the sidecar's --allowance."
        }
        Limit::Cgroup => {
            "Raise the memory limit of the cgroup that pays, or remove objects that it pays for."
        }
        Limit::Volume => "Remove objects (`vineyard ls --sort size`), or make the volume larger.",
    }
}
