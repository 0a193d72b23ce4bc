//! The store's errors as the package's own exceptions, each with what to do next.

use pyo3::prelude::*;
use vineyard_store::Error;

/// The exception for an error of the store.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    make(py, error, describe(error))
}

/// The exception when a volume cannot be opened.
pub(crate) fn raise_open(py: Python<'_>, error: &Error) -> PyErr {
    match error {
        Error::Io { source, .. } if source.kind() != std::io::ErrorKind::PermissionDenied => {
            let text = format!("{error}. Check the path, or the mount of the claim.");
            make(py, error, ("ConnectionFailed", text))
        }
        _ => raise(py, error),
    }
}

fn make(py: Python<'_>, error: &Error, (class, text): (&'static str, String)) -> PyErr {
    let made = py.import("vineyard.errors").and_then(|m| {
        let class = m.getattr(class)?;
        match error {
            Error::Full { full, .. } => {
                class.call1((text, full.asked, full.free, full.limit_bytes))
            }
            _ => class.call1((text,)),
        }
    });
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// Class in `vineyard.errors`, and the text that ends with what to do next.
fn describe(error: &Error) -> (&'static str, String) {
    use std::io::ErrorKind;
    use vineyard_charge::Limit;
    match error {
        Error::NotFound { key } => (
            "ObjectNotFound",
            format!(
                "{key}: no such object. ls() shows the names; get(name, timeout=60) waits for it."
            ),
        ),
        Error::Lost { .. } => (
            "ObjectLost",
            format!("{error}. Run the producer again, then put it anew."),
        ),
        Error::Exists { name } => (
            "ObjectExists",
            format!(
                "{name}: the name is taken. Pass overwrite=True, rm() it (a directory or stream: \
                 rm(prefix='{name}/')), or choose another name."
            ),
        ),
        Error::Full { full, .. } => {
            let quota = matches!(full.limit, Limit::Allowance | Limit::Cgroup);
            let next = if quota {
                "Raise the annotation vineyard.io/writes or the memory limit of the pod, or rm() what is not needed."
            } else {
                "rm() what is not needed, drop arrays that came from removed objects, or enlarge the volume."
            };
            (
                if quota { "QuotaExceeded" } else { "StoreFull" },
                format!("{error}. {next}"),
            )
        }
        Error::Timeout { .. } => (
            "GetTimeout",
            format!("{error}. Is the producer running? Pass a longer timeout."),
        ),
        Error::NotAVolume { .. } => (
            "ConnectionFailed",
            format!("{error}. Check the path, or the mount of the claim; create=True makes one."),
        ),
        Error::Format { .. } => (
            "ProtocolMismatch",
            format!("{error}. Upgrade vineyard-csi."),
        ),
        Error::InvalidName { .. } => (
            "InvalidName",
            format!(
                "{error}. Use a relative path like 'run/features' without '.', '..' or '.vineyard'."
            ),
        ),
        Error::Foreign { key, why } if *why == "it is a directory" => (
            "InvalidName",
            format!(
                "{error}. Read a stream with stream('{key}'); names below it with ls('{key}/'); \
                 rm(prefix='{key}/') removes all of them."
            ),
        ),
        Error::Foreign { .. } => (
            "InvalidName",
            format!("{error}. ls() shows the names; stream(name) reads a stream."),
        ),
        Error::ReadOnly => (
            "PermissionDenied",
            format!("{error}. Mount the claim writable (readOnly: false) where you put."),
        ),
        Error::Corrupt { .. } | Error::Holes { .. } => (
            "DeserializationError",
            format!("{error}. Put the object again; `vineyard fsck` checks the volume."),
        ),
        Error::StreamFailed { .. } => (
            "StoreError",
            format!("{error}. Look at the producer's log."),
        ),
        Error::Payer(_) => (
            "ConnectionFailed",
            format!("{error}. Is the sidecar running? `vineyard doctor` checks its socket."),
        ),
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => (
                "PermissionDenied",
                format!("{error}. Check who owns the volume's directory and its mode (0777)."),
            ),
            ErrorKind::OutOfMemory => (
                "StoreFull",
                format!("{error}. Drop what is not needed in this process."),
            ),
            _ => (
                "StoreError",
                format!("{error}. `vineyard doctor` checks the volume."),
            ),
        },
        _ => (
            "StoreError",
            format!("{error}. `vineyard doctor` checks the volume."),
        ),
    }
}
