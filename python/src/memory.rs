//! `Memory`: an object's bytes as a Python buffer. NumPy, pandas, pyarrow and torch make views of it without a copy; it
//! lives until the last of them is gone.

use std::ffi::c_int;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use vineyard_store::{Content, Kind, Mapping, Object};

use crate::draft::Shared;

/// Where the bytes are.
enum Backing {
    /// Read into memory of our own.
    Owned(*mut [u8]),
    Mapped(Mapping),
    /// An object that is being built, and the same memory after it was sealed.
    Draft(Arc<Shared>),
}

// SAFETY: `Owned` is a box that only this value frees; the other variants are Send and Sync themselves. Python's
// consumers of the buffer synchronise their writes as for any buffer.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Self::Owned(bytes) = self {
            // SAFETY: made by `Box::into_raw` in `Memory::of`, freed once.
            drop(unsafe { Box::from_raw(*bytes) });
        }
    }
}

/// An object's bytes. Use `memoryview(memory)`.
#[pyclass(frozen, weakref, module = "vineyard._native")]
pub(crate) struct Memory {
    backing: Backing,
    readonly: bool,
}

impl Memory {
    pub(crate) fn of(content: Content, readonly: bool) -> Self {
        let backing = match content {
            Content::Small(bytes) => Backing::Owned(Box::into_raw(bytes.into_boxed_slice())),
            Content::Mapped(mapping) => Backing::Mapped(mapping),
        };
        Self { backing, readonly }
    }

    pub(crate) fn draft(shared: Arc<Shared>) -> Self {
        Self {
            backing: Backing::Draft(shared),
            readonly: false,
        }
    }

    fn place(&self) -> (*mut u8, usize) {
        match &self.backing {
            Backing::Owned(bytes) => (bytes.cast(), bytes.len()),
            Backing::Mapped(mapping) => (mapping.as_mut_ptr(), mapping.len()),
            Backing::Draft(shared) => shared.place(),
        }
    }
}

#[pymethods]
impl Memory {
    /// Address of the first byte.
    #[getter]
    fn address(&self) -> usize {
        self.place().0 as usize
    }

    /// Whether the bytes are mapped, so that no copy of them was made.
    #[getter]
    fn mapped(&self) -> bool {
        !matches!(self.backing, Backing::Owned(_))
    }

    /// The first `size` bytes, or all.
    fn head<'py>(&self, py: Python<'py>, size: usize) -> Bound<'py, PyBytes> {
        let (start, len) = self.place();
        let size = size.min(len);
        if size == 0 {
            return PyBytes::new(py, &[]);
        }
        // SAFETY: the first `size` bytes are readable as long as `self` lives. Python may write to them meanwhile only
        // from another thread without the GIL, which is the caller's race, as with any buffer.
        PyBytes::new(py, unsafe { std::slice::from_raw_parts(start, size) })
    }

    /// Whether writing is refused.
    #[getter]
    fn readonly(&self) -> bool {
        self.readonly
    }

    fn __len__(&self) -> usize {
        self.place().1
    }

    fn __repr__(&self) -> String {
        let (start, len) = self.place();
        format!("<vineyard.Memory of {len} bytes at {start:p}>")
    }

    // SAFETY: called by the interpreter with a valid view; `PyBuffer_FillInfo` sets every field and takes a reference to
    // `slf`, which keeps the memory until the buffer is released.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view"));
        }
        let (start, len) = slf.get().place();
        let len = isize::try_from(len).map_err(|_| PyBufferError::new_err("too long"))?;
        // SAFETY: see above.
        let code = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                start.cast(),
                len,
                slf.get().readonly.into(),
                flags,
            )
        };
        if code == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// Objects of fewer bytes are copied with the GIL held.
const DETACH: usize = 64 << 10;

/// Kind and value of an object: `bytes` for kind raw, `Memory` else.
pub(crate) type Got<'py> = (Bound<'py, PyString>, Bound<'py, PyAny>);

pub(crate) fn got(py: Python<'_>, object: Object, readonly: bool) -> PyResult<Got<'_>> {
    let value = match (object.kind, object.content) {
        (Kind::Raw, content) => raw(py, &content)?.into_any(),
        (_, content) => Bound::new(py, Memory::of(content, readonly))?.into_any(),
    };
    Ok((kind_str(py, object.kind), value))
}

/// The kind as a string that exists once, which makes dict lookups of it cheap.
fn kind_str(py: Python<'_>, kind: Kind) -> Bound<'_, PyString> {
    match kind {
        Kind::Raw => intern!(py, "raw").clone(),
        Kind::Text => intern!(py, "text").clone(),
        Kind::Npy => intern!(py, "npy").clone(),
        Kind::Arrow => intern!(py, "arrow").clone(),
        Kind::Pickle => intern!(py, "pickle").clone(),
        other => PyString::new(py, other.as_str()),
    }
}

/// The content as `bytes`.
fn raw<'py>(py: Python<'py>, content: &Content) -> PyResult<Bound<'py, PyBytes>> {
    let from = match content {
        Content::Small(bytes) if bytes.len() < DETACH => return Ok(PyBytes::new(py, bytes)),
        Content::Small(bytes) => bytes.as_slice(),
        Content::Mapped(mapping) => mapping.as_slice(),
    };
    PyBytes::new_with(py, from.len(), |to| {
        // Nobody else has the new object yet.
        py.detach(|| to.copy_from_slice(from));
        Ok(())
    })
}
