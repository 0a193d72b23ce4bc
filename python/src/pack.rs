//! `put_many`: masses of small values in one object.

use std::io::IoSlice;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};
use vineyard_store::{Kind, PutOptions};

use crate::buffers::Buffers;
use crate::errors::raise;
use crate::keys::{Put, parse_kind, put_result, utf8};

/// Key, kind and buffers of a member.
pub(crate) type Member<'py> = (Option<Bound<'py, PyString>>, String, Bound<'py, PyList>);

/// Puts a pack.
pub(crate) fn put_many(
    py: Python<'_>,
    store: &vineyard_store::Volume,
    members: &[Member<'_>],
    options: &PutOptions,
) -> PyResult<Put> {
    let kinds: Vec<Kind> = members
        .iter()
        .map(|(_, kind, _)| parse_kind(kind))
        .collect::<PyResult<_>>()?;
    let buffers: Vec<Buffers> = members
        .iter()
        .map(|(_, _, content)| Buffers::of(content))
        .collect::<PyResult<_>>()?;
    let slices: Vec<Vec<IoSlice<'_>>> = buffers.iter().map(Buffers::slices).collect();
    let keys: Vec<Option<&str>> = members
        .iter()
        .map(|(key, _, _)| key.as_ref().map(|key| utf8(py, key)).transpose())
        .collect::<PyResult<_>>()?;
    let done = py.detach(|| {
        let members: Vec<vineyard_store::Member<'_>> = keys
            .into_iter()
            .zip(kinds)
            .zip(&slices)
            .map(|((key, kind), content)| (key, kind, content.as_slice()))
            .collect();
        store.put_many(&members, options)
    });
    done.map(|r| put_result(&r)).map_err(|e| raise(py, &e))
}
