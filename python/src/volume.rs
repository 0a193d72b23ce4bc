//! `Volume`: the store's verbs, without any knowledge of types.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};
use vineyard_charge::{Payer, RemotePayer};
use vineyard_store::{Error, Mode, Name, Options};

use crate::buffers::Buffers;
use crate::draft::Draft;
use crate::errors::{raise, raise_open};
use crate::keys::{OwnedKey, Put, name_of, options, parse_kind, put_result, utf8};
use crate::listing::{self, List, Row};
use crate::memory::{Got, Memory, got};
use crate::pack::{Member, put_many};
use crate::stream::{StreamReader, StreamWriter};
use crate::waiting::wait;
use crate::writer::Writer;

/// Puts of fewer bytes keep the GIL: giving it up can cost a whole switch interval when other threads compute.
const DETACH: usize = 64 << 10;

/// A volume.
#[pyclass(frozen, module = "vineyard._native")]
pub(crate) struct Volume {
    store: Arc<vineyard_store::Volume>,
}

#[pymethods]
impl Volume {
    /// Opens the volume in the directory `path`; `socket` is the sidecar's, which is then billed.
    #[new]
    #[pyo3(signature = (path, create, socket = None))]
    fn new(py: Python<'_>, path: PathBuf, create: bool, socket: Option<PathBuf>) -> PyResult<Self> {
        let opened = py.detach(|| {
            let payer = socket.map(|s| connect(&s)).transpose()?;
            vineyard_store::Volume::open(&path, Options { payer, create })
        });
        let store = opened.map_err(|e| raise_open(py, &e))?;
        Ok(Self {
            store: Arc::new(store),
        })
    }

    /// Puts an object: the buffers, one after the other.
    fn put(
        &self,
        py: Python<'_>,
        kind: &str,
        content: &Bound<'_, PyList>,
        name: Option<&Bound<'_, PyString>>,
        ttl: Option<f64>,
        overwrite: bool,
    ) -> PyResult<Put> {
        let kind = parse_kind(kind)?;
        let options = options(py, name, ttl, overwrite)?;
        let buffers = Buffers::of(content)?;
        let slices = buffers.slices();
        let put = || self.store.put(kind, &slices, &options);
        let small = buffers.len() < DETACH && !self.store.is_billed();
        let done = if small { put() } else { py.detach(put) };
        done.map(|r| put_result(&r)).map_err(|e| raise(py, &e))
    }

    /// Puts many values as one object, a pack.
    fn put_many(
        &self,
        py: Python<'_>,
        members: Vec<Member<'_>>,
        name: Option<&Bound<'_, PyString>>,
        ttl: Option<f64>,
        overwrite: bool,
    ) -> PyResult<Put> {
        put_many(
            py,
            &self.store,
            &members,
            &options(py, name, ttl, overwrite)?,
        )
    }

    /// The kind and the bytes of an object: `bytes` for kind raw, `Memory` else. `key` is a name, or (id, kind).
    fn get<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        readonly: bool,
    ) -> PyResult<Got<'py>> {
        got(py, self.object(py, key, readonly)?, readonly)
    }

    /// The bytes of an object as `Memory`, whatever its kind.
    fn memory(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        readonly: bool,
    ) -> PyResult<(String, Memory)> {
        let object = self.object(py, key, readonly)?;
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

    /// An object that grows.
    fn writer(&self, py: Python<'_>, kind: &str) -> PyResult<Writer> {
        let kind = parse_kind(kind)?;
        self.store
            .writer(kind)
            .map(Writer::new)
            .map_err(|e| raise(py, &e))
    }

    /// Opens a stream for appending.
    fn stream_writer(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<StreamWriter> {
        let name = name_of(py, name)?;
        self.store
            .stream_writer(&name)
            .map(StreamWriter::new)
            .map_err(|e| raise(py, &e))
    }

    /// Opens a stream for reading, from part `start` on; `consume` removes each part as it is read.
    fn stream_reader(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        start: u64,
        consume: bool,
        readonly: bool,
    ) -> PyResult<StreamReader> {
        let name = name_of(py, name)?;
        let reader = self.store.stream_reader(&name).map_err(|e| raise(py, &e))?;
        Ok(StreamReader::new(reader, start, consume, readonly))
    }

    /// Whether `name` is a stream.
    fn is_stream(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<bool> {
        self.store
            .is_stream(&name_of(py, name)?)
            .map_err(|e| raise(py, &e))
    }

    /// Waits until all names can be got.
    fn wait(
        &self,
        py: Python<'_>,
        names: Vec<Bound<'_, PyString>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let names: Vec<Name> = names
            .iter()
            .map(|n| name_of(py, n))
            .collect::<PyResult<_>>()?;
        wait(py, timeout, |slice| self.store.wait(&names, Some(slice)))
    }

    /// Names, plain files and streams.
    fn list(
        &self,
        py: Python<'_>,
        prefix: Option<&Bound<'_, PyString>>,
        glob: Option<&Bound<'_, PyString>>,
        stat: bool,
    ) -> PyResult<List> {
        listing::list(py, &self.store, prefix, glob, stat)
    }

    /// Removes a name, or an object by (id, kind) and with it the name `known` if that still points to it. False when
    /// it was not there.
    #[pyo3(signature = (key, known = None))]
    fn remove(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        known: Option<&Bound<'_, PyString>>,
    ) -> PyResult<bool> {
        let key = OwnedKey::of(py, key)?;
        let known = known.map(|n| name_of(py, n)).transpose()?;
        py.detach(|| match &known {
            Some(known) => self.store.remove_known(key.borrow(), known),
            None => self.store.remove(key.borrow()),
        })
        .map_err(|e| raise(py, &e))
    }

    /// Removes every name that starts with `prefix`; how many there were.
    fn remove_prefix(&self, py: Python<'_>, prefix: &Bound<'_, PyString>) -> PyResult<u64> {
        let prefix = utf8(py, prefix)?;
        py.detach(|| self.store.remove_prefix(prefix))
            .map_err(|e| raise(py, &e))
    }

    /// Gives an object another name; `known`: the one that it was put under.
    #[pyo3(signature = (key, name, overwrite, known = None))]
    fn link(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        name: &Bound<'_, PyString>,
        overwrite: bool,
        known: Option<&Bound<'_, PyString>>,
    ) -> PyResult<()> {
        let key = OwnedKey::of(py, key)?;
        let name = name_of(py, name)?;
        let known = known.map(|n| name_of(py, n)).transpose()?;
        match &known {
            Some(known) => self.store.link_known(key.borrow(), known, &name, overwrite),
            None => self.store.link(key.borrow(), &name, overwrite),
        }
        .map_err(|e| raise(py, &e))
    }

    /// Whether a name is there.
    fn exists(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<bool> {
        self.store
            .exists(&name_of(py, name)?)
            .map_err(|e| raise(py, &e))
    }

    /// What an object is, without its bytes.
    fn stat(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Row> {
        let key = OwnedKey::of(py, key)?;
        py.detach(|| self.store.stat(key.borrow()))
            .map(Row::of)
            .map_err(|e| raise(py, &e))
    }

    /// (capacity, used, free, trash) in bytes.
    fn usage(&self, py: Python<'_>) -> PyResult<(u64, u64, u64, u64)> {
        let usage = py
            .detach(|| self.store.usage())
            .map_err(|e| raise(py, &e))?;
        Ok((usage.capacity, usage.used, usage.free, usage.trash))
    }

    /// Whether somebody is billed for what is put here.
    #[getter]
    fn billed(&self) -> bool {
        self.store.is_billed()
    }
}

impl Volume {
    fn object(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        readonly: bool,
    ) -> PyResult<vineyard_store::Object> {
        let key = OwnedKey::of(py, key)?;
        let mode = if readonly {
            Mode::ReadOnly
        } else {
            Mode::CopyOnWrite
        };
        py.detach(|| self.store.get(key.borrow(), mode))
            .map_err(|e| raise(py, &e))
    }
}

/// The payer behind the sidecar's socket.
fn connect(socket: &Path) -> Result<Arc<dyn Payer>, Error> {
    let client = format!("python, pid {}", std::process::id());
    let payer = RemotePayer::connect(socket, &client).map_err(Error::Payer)?;
    Ok(Arc::new(payer))
}
