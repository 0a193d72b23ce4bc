//! `Volume`: the store's verbs, without any knowledge of types.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use vineyard_store::{Content, Error, Key, Kind, Mode, Name, ObjectId, Options, PutOptions, Ref};

use crate::buffers::Buffers;
use crate::draft::Draft;
use crate::errors::raise;
use crate::memory::Memory;

/// Puts of fewer bytes keep the GIL: giving it up can cost a whole switch interval when other threads compute.
const DETACH: usize = 64 << 10;

/// The id of what was put, and its length in bytes.
pub(crate) type Put = (String, u64);

/// A volume.
#[pyclass(frozen, module = "vineyard._native")]
pub(crate) struct Volume {
    store: Arc<vineyard_store::Volume>,
}

#[pymethods]
impl Volume {
    /// Opens the volume in the directory `path`.
    #[new]
    #[pyo3(signature = (path, create, socket = None))]
    fn new(py: Python<'_>, path: PathBuf, create: bool, socket: Option<PathBuf>) -> PyResult<Self> {
        let options = Options {
            payer: None,
            create,
        };
        let opened = py.detach(|| vineyard_store::Volume::open(&path, options));
        let store = opened.map_err(|e| raise(py, &e))?;
        Ok(Self {
            store: Arc::new(store),
        })
    }

    /// Puts an object: the buffers, one after the other.
    #[pyo3(signature = (kind, content, name, ttl, overwrite))]
    fn put(
        &self,
        py: Python<'_>,
        kind: &str,
        content: &Bound<'_, PyList>,
        name: Option<&str>,
        ttl: Option<f64>,
        overwrite: bool,
    ) -> PyResult<Put> {
        let kind = parse_kind(kind)?;
        let options = options(py, name, ttl, overwrite)?;
        let buffers = Buffers::of(content)?;
        let slices = buffers.slices();
        let put = || self.store.put(kind, &slices, &options);
        let done = if buffers.len() < DETACH && !self.store.is_billed() {
            put()
        } else {
            py.detach(put)
        };
        done.map(|r| put_result(&r)).map_err(|e| raise(py, &e))
    }

    /// The kind and the bytes of an object: `bytes` for kind raw, `Memory` else. `key` is a name, or (id, kind).
    #[pyo3(signature = (key, readonly))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        readonly: bool,
    ) -> PyResult<(String, Bound<'py, PyAny>)> {
        let key = OwnedKey::of(py, key)?;
        let mode = if readonly {
            Mode::ReadOnly
        } else {
            Mode::CopyOnWrite
        };
        let object = py
            .detach(|| self.store.get(key.borrow(), mode))
            .map_err(|e| raise(py, &e))?;
        let kind = object.kind.as_str().to_owned();
        let value = match (object.kind, object.content) {
            (Kind::Raw, content) => raw(py, &content)?.into_any(),
            (_, content) => Bound::new(py, Memory::of(content, readonly))?.into_any(),
        };
        Ok((kind, value))
    }

    /// The bytes of an object as `Memory`, whatever its kind.
    #[pyo3(signature = (key, readonly))]
    fn memory(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        readonly: bool,
    ) -> PyResult<(String, Memory)> {
        let key = OwnedKey::of(py, key)?;
        let mode = if readonly {
            Mode::ReadOnly
        } else {
            Mode::CopyOnWrite
        };
        let object = py
            .detach(|| self.store.get(key.borrow(), mode))
            .map_err(|e| raise(py, &e))?;
        Ok((
            object.kind.as_str().to_owned(),
            Memory::of(object.content, readonly),
        ))
    }

    /// An object of `size` zero bytes, to be filled in place.
    fn create(&self, py: Python<'_>, kind: &str, size: u64) -> PyResult<Draft> {
        let kind = parse_kind(kind)?;
        py.detach(|| self.store.create(kind, size))
            .map(Draft::new)
            .map_err(|e| raise(py, &e))
    }

    /// Removes a name, or an object by (id, kind). False when it was not there.
    fn remove(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let key = OwnedKey::of(py, key)?;
        py.detach(|| self.store.remove(key.borrow()))
            .map_err(|e| raise(py, &e))
    }

    /// Whether a name is there.
    fn exists(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        let name = Name::new(name).map_err(|e| raise(py, &e))?;
        self.store.exists(&name).map_err(|e| raise(py, &e))
    }

    /// (id, kind, bytes, allocated bytes, seconds since 1970, uid); the id is None for a plain file.
    #[expect(clippy::type_complexity, reason = "a tuple for Python")]
    fn stat(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
    ) -> PyResult<(Option<String>, String, u64, u64, f64, u32)> {
        let key = OwnedKey::of(py, key)?;
        let stat = py
            .detach(|| self.store.stat(key.borrow()))
            .map_err(|e| raise(py, &e))?;
        let age = stat
            .modified
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Ok((
            stat.id.map(|id| id.to_string()),
            stat.kind.as_str().to_owned(),
            stat.len,
            stat.allocated,
            age.as_secs_f64(),
            stat.uid,
        ))
    }

    /// (capacity, used, free, trash) in bytes.
    fn usage(&self, py: Python<'_>) -> PyResult<(u64, u64, u64, u64)> {
        let usage = py
            .detach(|| self.store.usage())
            .map_err(|e| raise(py, &e))?;
        Ok((usage.capacity, usage.used, usage.free, usage.trash))
    }

    /// The directory.
    #[getter]
    fn path(&self) -> PathBuf {
        self.store.root().to_owned()
    }

    /// Whether somebody is billed for what is put here.
    #[getter]
    fn billed(&self) -> bool {
        self.store.is_billed()
    }
}

/// A key that owns its name.
enum OwnedKey {
    Name(Name),
    Object(ObjectId, Kind),
}

impl OwnedKey {
    fn of(py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(name) = key.extract::<&str>() {
            return Name::new(name).map(Self::Name).map_err(|e| raise(py, &e));
        }
        let (id, kind): (String, String) = key.extract().map_err(|_| {
            PyTypeError::new_err("a key is a name (str) or a Ref that put() returned")
        })?;
        let id = ObjectId::parse(id.as_bytes())
            .ok_or_else(|| raise(py, &Error::NotFound { key: id }))?;
        Ok(Self::Object(id, parse_kind(&kind)?))
    }

    fn borrow(&self) -> Key<'_> {
        match self {
            Self::Name(name) => Key::Name(name),
            Self::Object(id, kind) => Key::Object(*id, *kind),
        }
    }
}

fn parse_kind(kind: &str) -> PyResult<Kind> {
    Kind::parse(kind.as_bytes()).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{kind:?} is not a kind: 1 to 16 characters of a-z and 0-9"
        ))
    })
}

pub(crate) fn put_result(object: &Ref) -> Put {
    (object.id.to_string(), object.len)
}

/// The store's options for a put.
pub(crate) fn options(
    py: Python<'_>,
    name: Option<&str>,
    ttl: Option<f64>,
    overwrite: bool,
) -> PyResult<PutOptions> {
    let name = name.map(Name::new).transpose().map_err(|e| raise(py, &e))?;
    let ttl = ttl
        .map(Duration::try_from_secs_f64)
        .transpose()
        .map_err(|_| PyValueError::new_err("ttl is a positive number of seconds"))?;
    Ok(PutOptions {
        name,
        ttl,
        overwrite,
    })
}

/// The content as `bytes`.
fn raw<'py>(py: Python<'py>, content: &Content) -> PyResult<Bound<'py, PyBytes>> {
    match content {
        Content::Small(bytes) if bytes.len() < DETACH => Ok(PyBytes::new(py, bytes)),
        Content::Small(bytes) => copied(py, bytes),
        Content::Mapped(mapping) => copied(py, mapping.as_slice()),
    }
}

fn copied<'py>(py: Python<'py>, from: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, from.len(), |to| {
        // Nobody else has the new object yet.
        py.detach(|| to.copy_from_slice(from));
        Ok(())
    })
}
