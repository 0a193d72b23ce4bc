//! Names, kinds and options as Python gives them.

use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;
use vineyard_store::{Error, Key, Kind, Name, ObjectId, PutOptions, Ref};

use crate::errors::raise;

/// The id of what was put, and its length in bytes.
pub(crate) type Put = (String, u64);

pub(crate) fn put_result(object: &Ref) -> Put {
    (object.id.to_string(), object.len)
}

/// A key that owns its name.
pub(crate) enum OwnedKey {
    Name(Name),
    Object(ObjectId, Kind),
}

impl OwnedKey {
    pub(crate) fn of(py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(name) = key.cast::<PyString>() {
            return name_of(py, name).map(Self::Name);
        }
        let (id, kind): (String, String) = key.extract().map_err(|_| {
            PyTypeError::new_err("a key is a name (str) or a Ref that put() returned")
        })?;
        let id = ObjectId::parse(id.as_bytes())
            .ok_or_else(|| raise(py, &Error::NotFound { key: id }))?;
        Ok(Self::Object(id, parse_kind(&kind)?))
    }

    pub(crate) fn borrow(&self) -> Key<'_> {
        match self {
            Self::Name(name) => Key::Name(name),
            Self::Object(id, kind) => Key::Object(*id, *kind),
        }
    }
}

pub(crate) fn name_of(py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<Name> {
    Name::new(utf8(py, name)?).map_err(|e| raise(py, &e))
}

/// A name, or the beginning of one, as UTF-8. Python's strings may hold lone surrogates, which names cannot.
pub(crate) fn utf8<'n>(py: Python<'_>, name: &'n Bound<'_, PyString>) -> PyResult<&'n str> {
    name.to_str().map_err(|_| {
        raise(
            py,
            &Error::InvalidName {
                name: name.to_string_lossy().into_owned(),
                why: "it holds a lone surrogate, which is no character",
            },
        )
    })
}

pub(crate) fn parse_kind(kind: &str) -> PyResult<Kind> {
    Kind::parse(kind.as_bytes()).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{kind:?} is not a kind: 1 to 16 characters of a-z and 0-9"
        ))
    })
}

pub(crate) fn seconds(value: Option<f64>, what: &str) -> PyResult<Option<Duration>> {
    value
        .map(Duration::try_from_secs_f64)
        .transpose()
        .map_err(|_| {
            PyValueError::new_err(format!(
                "{what} is a number of seconds from 0 to 1.8e19: None is without limit"
            ))
        })
}

/// The store's options for a put.
pub(crate) fn options(
    py: Python<'_>,
    name: Option<&Bound<'_, PyString>>,
    ttl: Option<f64>,
    overwrite: bool,
) -> PyResult<PutOptions> {
    let name = name.map(|n| name_of(py, n)).transpose()?;
    Ok(PutOptions {
        name,
        ttl: seconds(ttl, "ttl")?,
        overwrite,
    })
}
