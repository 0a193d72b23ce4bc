//! `vineyard._native`: the store for Python. Only what needs Rust is here; the package around it is Python.

mod buffers;
mod draft;
mod errors;
mod keys;
mod listing;
mod memory;
mod pack;
mod stream;
mod volume;
mod waiting;
mod writer;

use pyo3::prelude::*;

/// The native part of the package `vineyard`.
#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use crate::draft::Draft;
    #[pymodule_export]
    use crate::listing::{List, Row};
    #[pymodule_export]
    use crate::memory::Memory;
    #[pymodule_export]
    use crate::stream::{StreamReader, StreamWriter};
    #[pymodule_export]
    use crate::volume::Volume;
    #[pymodule_export]
    use crate::writer::Writer;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
