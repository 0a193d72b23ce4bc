//! `ls` and `stat`: rows for Python.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use pyo3::prelude::*;
use pyo3::types::PyString;
use vineyard_store::{Kind, ListOptions, Listing, ObjectId, Stat};

use crate::errors::raise;
use crate::keys::utf8;

/// Rows that are read from the volume at a time, without the GIL.
const BATCH: usize = 1000;

/// What an object is.
#[pyclass(frozen, get_all, module = "vineyard._native")]
pub(crate) struct Row {
    /// The name; None from `stat`.
    name: Option<String>,
    /// The object's id; None for a plain file or a stream.
    id: Option<String>,
    /// How the bytes are decoded; "stream" for a stream; None for what is no object.
    kind: Option<String>,
    /// Length in bytes; None when it was not asked for, or the object is lost.
    nbytes: Option<u64>,
    /// Allocated bytes.
    allocated: Option<u64>,
    /// When it was written, in seconds since 1970.
    modified: Option<f64>,
    /// Who made it.
    uid: Option<u32>,
}

impl Row {
    pub(crate) fn of(stat: Stat) -> Self {
        let row = Self::empty(None, stat.id, Some(stat.kind));
        row.with(Some(stat))
    }

    fn empty(name: Option<String>, id: Option<ObjectId>, kind: Option<Kind>) -> Self {
        Self {
            name,
            id: id.map(|id| id.to_string()),
            kind: kind.map(|k| k.as_str().to_owned()),
            nbytes: None,
            allocated: None,
            modified: None,
            uid: None,
        }
    }

    fn with(mut self, stat: Option<Stat>) -> Self {
        if let Some(stat) = stat {
            self.nbytes = Some(stat.len);
            self.allocated = Some(stat.allocated);
            let age = stat.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.modified = Some(age.as_secs_f64());
            self.uid = Some(stat.uid);
        }
        self
    }
}

/// A running listing: an iterator of lists of rows.
#[pyclass(frozen, module = "vineyard._native")]
pub(crate) struct List(Mutex<vineyard_store::List>);

pub(crate) fn list(
    py: Python<'_>,
    store: &Arc<vineyard_store::Volume>,
    prefix: Option<&Bound<'_, PyString>>,
    glob: Option<&Bound<'_, PyString>>,
    stat: bool,
) -> PyResult<List> {
    let owned = |text: &Bound<'_, PyString>| utf8(py, text).map(ToOwned::to_owned);
    let options = ListOptions {
        prefix: prefix.map(owned).transpose()?,
        glob: glob.map(owned).transpose()?,
        stat,
    };
    store
        .list(&options)
        .map(|l| List(Mutex::new(l)))
        .map_err(|e| raise(py, &e))
}

#[pymethods]
impl List {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Vec<Row>>> {
        let batch = py.detach(|| {
            let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut rows = Vec::new();
            for listed in list.by_ref().take(BATCH) {
                let listed = listed?;
                let name = Some(listed.name.as_str().to_owned());
                let row = match listed.what {
                    Listing::Object(id, kind) => Row::empty(name, Some(id), Some(kind)),
                    Listing::Plain(kind) => Row::empty(name, None, Some(kind)),
                    Listing::Stream => Row {
                        kind: Some("stream".to_owned()),
                        ..Row::empty(name, None, None)
                    },
                    Listing::Foreign => continue,
                };
                rows.push(row.with(listed.stat));
            }
            Ok(rows)
        });
        let rows = batch.map_err(|e| raise(py, &e))?;
        Ok((!rows.is_empty()).then_some(rows))
    }
}
