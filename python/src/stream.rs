//! Streams: parts that a producer appends and consumers read while it is still at work.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};
use vineyard_store::Mode;

use crate::buffers::Buffers;
use crate::errors::raise;
use crate::keys::{Put, parse_kind, put_result};
use crate::memory::{Got, got};
use crate::waiting::wait;

/// Appends parts. Dropping it ends nothing.
#[pyclass(frozen, module = "vineyard._native")]
pub(crate) struct StreamWriter(Mutex<Option<vineyard_store::StreamWriter>>);

impl StreamWriter {
    pub(crate) fn new(writer: vineyard_store::StreamWriter) -> Self {
        Self(Mutex::new(Some(writer)))
    }

    fn take(&self) -> Option<vineyard_store::StreamWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn ended() -> PyErr {
    PyValueError::new_err("this stream has ended: start another one")
}

#[pymethods]
impl StreamWriter {
    /// Puts the next part.
    fn append(&self, py: Python<'_>, kind: &str, content: &Bound<'_, PyList>) -> PyResult<Put> {
        let kind = parse_kind(kind)?;
        let buffers = Buffers::of(content)?;
        let slices = buffers.slices();
        let done = py.detach(|| {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slot.as_mut().map(|w| w.append(kind, &slices))
        });
        done.ok_or_else(ended)?
            .map(|r| put_result(&r))
            .map_err(|e| raise(py, &e))
    }

    /// Says that no part follows; how many there are.
    fn end(&self, py: Python<'_>) -> PyResult<u64> {
        let writer = self.take().ok_or_else(ended)?;
        py.detach(|| writer.end()).map_err(|e| raise(py, &e))
    }

    /// Says that the producer failed; how many parts there are.
    fn fail(&self, py: Python<'_>, message: &Bound<'_, PyString>) -> PyResult<u64> {
        let writer = self.take().ok_or_else(ended)?;
        // An error may quote a file's name that is no UTF-8.
        let message = message.to_string_lossy();
        py.detach(|| writer.fail(&message))
            .map_err(|e| raise(py, &e))
    }
}

/// Reads parts in order.
#[pyclass(frozen, module = "vineyard._native")]
pub(crate) struct StreamReader {
    reader: Mutex<vineyard_store::StreamReader>,
    readonly: bool,
}

impl StreamReader {
    pub(crate) fn new(
        reader: vineyard_store::StreamReader,
        start: u64,
        consume: bool,
        readonly: bool,
    ) -> Self {
        let mode = if readonly {
            Mode::ReadOnly
        } else {
            Mode::CopyOnWrite
        };
        let reader = reader.mode(mode).starting_at(start);
        let reader = if consume { reader.consuming() } else { reader };
        Self {
            reader: Mutex::new(reader),
            readonly,
        }
    }
}

#[pymethods]
impl StreamReader {
    /// Kind and bytes of the next part; None after the last one.
    fn next<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Option<Got<'py>>> {
        let part = wait(py, timeout, |slice| {
            self.reader
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next(Some(slice))
        })?;
        let Some(object) = part else {
            return Ok(None);
        };
        got(py, object, self.readonly).map(Some)
    }
}
