//! `Writer`: an object of unknown length, written from front to back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::types::PyString;

use crate::buffers::Buffer;
use crate::errors::raise;
use crate::keys::{Put, options, put_result};

/// An object that grows. Dropping it without `seal` leaves nothing.
#[pyclass(frozen, module = "vineyard._native")]
pub(crate) struct Writer(Mutex<Option<vineyard_store::Writer>>);

impl Writer {
    pub(crate) fn new(writer: vineyard_store::Writer) -> Self {
        Self(Mutex::new(Some(writer)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<vineyard_store::Writer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("I/O operation on a closed object: open() it again")
}

#[pymethods]
impl Writer {
    /// Writes all of a buffer at the position.
    fn write(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        let buffer = Buffer::of(buffer)?;
        let done = py.detach(|| self.lock().as_mut().map(|w| w.append(buffer.bytes())));
        done.ok_or_else(closed)?.map_err(|e| raise(py, &e))?;
        Ok(buffer.bytes().len())
    }

    /// Up to `size` bytes from `offset` on.
    fn read_at<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        offset: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut bytes = vec![0; size];
        let done = py.detach(|| self.lock().as_mut().map(|w| w.read_at(&mut bytes, offset)));
        let n = done.ok_or_else(closed)?.map_err(|e| raise(py, &e))?;
        Ok(PyBytes::new(py, &bytes[..n]))
    }

    /// Moves the position.
    fn seek(&self, position: u64) -> PyResult<()> {
        use std::io::{Seek, SeekFrom};
        self.lock()
            .as_mut()
            .ok_or_else(closed)?
            .seek(SeekFrom::Start(position))?;
        Ok(())
    }

    /// Cuts off, or adds zeros.
    fn truncate(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        let done = py.detach(|| self.lock().as_mut().map(|w| w.set_len(size)));
        done.ok_or_else(closed)?.map_err(|e| raise(py, &e))
    }

    /// Bytes so far.
    fn __len__(&self) -> PyResult<usize> {
        let len = self.lock().as_ref().ok_or_else(closed)?.len();
        usize::try_from(len).map_err(|_| PyValueError::new_err("too long"))
    }

    /// Makes the object visible and final.
    fn seal(
        &self,
        py: Python<'_>,
        name: Option<&Bound<'_, PyString>>,
        ttl: Option<f64>,
        overwrite: bool,
    ) -> PyResult<Put> {
        let options = options(py, name, ttl, overwrite)?;
        let done = py.detach(|| self.lock().take().map(|w| w.seal(&options)));
        done.ok_or_else(closed)?
            .map(|r| put_result(&r))
            .map_err(|e| raise(py, &e))
    }

    /// Throws away what was written.
    fn discard(&self, py: Python<'_>) {
        py.detach(|| drop(self.lock().take()));
    }
}
