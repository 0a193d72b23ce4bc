//! Borrowing the memory of Python objects for as long as bytes are written from it.

use std::io::IoSlice;
use std::mem::MaybeUninit;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// A contiguous buffer of a Python object. It stays exported, so it neither moves nor goes, until this is dropped.
pub(crate) struct Buffer(ffi::Py_buffer);

// SAFETY: the exporter keeps the memory valid until release; this type only reads it, and releases under the GIL.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut view = MaybeUninit::<ffi::Py_buffer>::uninit();
        // SAFETY: the GIL is held; on success the call fills the whole struct.
        let code = unsafe {
            ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), ffi::PyBUF_SIMPLE)
        };
        if code != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: filled, as the code says.
        Ok(Self(unsafe { view.assume_init() }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let len = usize::try_from(self.0.len).unwrap_or(0);
        if len == 0 {
            return &[];
        }
        // SAFETY: a simple buffer is `len` contiguous bytes. Python code that changes them meanwhile breaks its own
        // object's content, as with any write of a buffer.
        unsafe { std::slice::from_raw_parts(self.0.buf.cast(), len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: taken once by `of`, released once here; `Buffers` lives where the GIL is held again.
        Python::attach(|_| unsafe { ffi::PyBuffer_Release(&raw mut self.0) });
    }
}

/// The buffers of a list.
pub(crate) struct Buffers(Vec<Buffer>);

impl Buffers {
    pub(crate) fn of(list: &Bound<'_, PyList>) -> PyResult<Self> {
        list.iter()
            .map(|item| Buffer::of(&item))
            .collect::<PyResult<_>>()
            .map(Self)
    }

    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        self.0.iter().map(|b| IoSlice::new(b.bytes())).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|b| b.bytes().len()).sum()
    }
}
