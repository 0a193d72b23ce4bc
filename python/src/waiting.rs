//! Waiting without the GIL, and with Ctrl-C.

use std::time::{Duration, Instant};

use pyo3::prelude::*;
use vineyard_store::Error;

use crate::errors::raise;
use crate::keys::seconds;

/// How long the store waits at a time; between two slices Python handles its signals.
const SLICE: Duration = Duration::from_millis(200);

/// Calls `attempt` with slices of `timeout` until it does something else than time out.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    timeout: Option<f64>,
    mut attempt: impl FnMut(Duration) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let until = seconds(timeout, "timeout")?.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = until.map_or(SLICE, |u| u.saturating_duration_since(Instant::now()));
        match py.detach(|| attempt(left.min(SLICE))) {
            Err(Error::Timeout { .. }) if left > SLICE || until.is_none() => py.check_signals()?,
            other => return other.map_err(|e| raise(py, &e)),
        }
    }
}
