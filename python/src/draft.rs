//! `Draft`: an object that Python fills in place.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use vineyard_store::{Draft as StoreDraft, Mapping};

use crate::errors::raise;
use crate::keys::{Put, options, put_result};
use crate::memory::Memory;

/// Memory that stays at one address while it turns from a draft into a private view of the sealed object.
pub(crate) struct Shared {
    start: usize,
    len: usize,
    state: Mutex<State>,
}

enum State {
    Draft(StoreDraft),
    /// Sealing consumes the draft; nobody looks at this.
    Sealing,
    #[expect(dead_code, reason = "held for the memory, not for access")]
    Sealed(Mapping),
}

impl Shared {
    pub(crate) fn new(draft: StoreDraft) -> Self {
        Self {
            start: draft.as_mut_ptr() as usize,
            len: draft.len(),
            state: Mutex::new(State::Draft(draft)),
        }
    }

    pub(crate) fn place(&self) -> (*mut u8, usize) {
        (std::ptr::with_exposed_provenance_mut(self.start), self.len)
    }
}

/// An object that is being filled in place. Dropping it without `seal` leaves nothing in the volume.
#[pyclass(frozen, module = "vineyard._native")]
pub(crate) struct Draft(Arc<Shared>);

impl Draft {
    pub(crate) fn new(draft: StoreDraft) -> Self {
        Self(Arc::new(Shared::new(draft)))
    }
}

#[pymethods]
impl Draft {
    /// The memory to fill. Views of it stay valid after `seal`, then private.
    #[getter]
    fn memory(&self) -> Memory {
        Memory::draft(Arc::clone(&self.0))
    }

    /// Writes the first bytes.
    fn write_head(&self, py: Python<'_>, head: &[u8]) -> PyResult<()> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Draft(draft) => draft.write_at(head, 0).map_err(|e| raise(py, &e)),
            _ => Err(sealed_already()),
        }
    }

    /// Makes the object visible and final.
    #[pyo3(signature = (name, ttl, overwrite))]
    fn seal(
        &self,
        py: Python<'_>,
        name: Option<&Bound<'_, PyString>>,
        ttl: Option<f64>,
        overwrite: bool,
    ) -> PyResult<Put> {
        let options = options(py, name, ttl, overwrite)?;
        let done = py.detach(|| {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(&mut *state, State::Sealing) {
                State::Draft(draft) => match draft.seal(&options) {
                    Ok((object, mapping)) => {
                        *state = State::Sealed(mapping);
                        Some(Ok(object))
                    }
                    Err(failed) => {
                        *state = State::Sealed(failed.memory);
                        Some(Err(failed.error))
                    }
                },
                other => {
                    *state = other;
                    None
                }
            }
        });
        match done {
            Some(Ok(object)) => Ok(put_result(&object)),
            Some(Err(error)) => Err(raise(py, &error)),
            None => Err(sealed_already()),
        }
    }
}

fn sealed_already() -> PyErr {
    PyValueError::new_err("this draft is sealed already: create() another one")
}
