//! `create`: an object that is built in place, in memory that is already its own.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags};

use crate::error::Error;
use crate::fresh::Fresh;
use crate::kind::Kind;
use crate::lease;
use crate::mapping::Mapping;
use crate::object::{PutOptions, Ref};
use crate::seal::refuse_holes;
use crate::volume::Volume;

const WRITABLE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// An object that is being built in place. Dropping it leaves nothing.
pub struct Draft {
    volume: Arc<Volume>,
    kind: Kind,
    mapping: Mapping,
    file: Fresh,
}

impl Volume {
    /// Makes an object of `len` bytes to be filled in place. All of its pages are reserved now, or were those of an object
    /// that this process has removed: below 1 MiB they are zeros, from there on what they contain is not specified.
    ///
    /// # Errors
    /// [`Error::Full`] when it does not fit.
    pub fn create(self: &Arc<Self>, kind: Kind, len: u64) -> Result<Draft, Error> {
        let at = |errno| self.failed("create", errno, len);
        let size = usize::try_from(len).map_err(|_| Error::io("create", Errno::EFBIG))?;
        let file = Fresh::sized(self, len)?;
        file.reserve(self, 0, len)?;
        let mapping =
            Mapping::new(file.as_fd(), size, WRITABLE, MapFlags::MAP_SHARED).map_err(at)?;
        Ok(Draft {
            volume: Arc::clone(self),
            kind,
            mapping,
            file,
        })
    }
}

impl Draft {
    /// The first byte of the memory to fill: shared with the file, at a multiple of 2 MiB when there are that many bytes.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.mapping.as_mut_ptr()
    }

    /// Writes to a part of the memory without touching it by its addresses: what is written before anything else costs no
    /// page fault.
    ///
    /// # Errors
    /// When the part does not lie inside.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.mapping.len() as u64) {
            return Err(Error::io("write", Errno::EINVAL));
        }
        let slices = [IoSlice::new(bytes)];
        self.volume.write_all(self.file.as_fd(), &slices, offset)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// The kind that it will have.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Seals what was filled. The same addresses stay mapped, now private: what is written there from now on does not
    /// change the object.
    ///
    /// When somebody else may still write to the file (a forked child that inherited the mapping), the content is
    /// copied into a file that nobody else has.
    ///
    /// # Errors
    /// [`Error::Holes`] when pages were freed meanwhile, [`Error::Exists`] when the name is taken; nothing remains of the
    /// object, but its memory comes back, since somebody may still look at it.
    pub fn seal(self, options: &PutOptions) -> Result<(Ref, Mapping), SealError> {
        let Self {
            volume,
            kind,
            mapping,
            file,
        } = self;
        match sealed(&volume, kind, &mapping, file, options) {
            Ok(object) => Ok((object, mapping)),
            Err(error) => Err(SealError {
                error,
                memory: mapping,
            }),
        }
    }
}

/// A seal that failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SealError {
    /// Why.
    #[source]
    pub error: Error,
    /// What was filled, at the same addresses.
    pub memory: Mapping,
}

impl From<SealError> for Error {
    fn from(failed: SealError) -> Self {
        failed.error
    }
}

fn sealed(
    volume: &Volume,
    kind: Kind,
    mapping: &Mapping,
    mut file: Fresh,
    options: &PutOptions,
) -> Result<Ref, Error> {
    let len = mapping.len() as u64;
    let at = |errno| Error::io("seal", errno);
    file.forbid_writing().map_err(at)?;
    mapping
        .replace(file.as_fd(), WRITABLE, MapFlags::MAP_PRIVATE)
        .map_err(at)?;
    // Where there are no leases nothing is proven, and a copy is safe.
    let alone = if file.is_recycled() {
        lease::nobody_uses(file.as_fd())
    } else {
        lease::nobody_writes(file.as_fd())
    };
    if alone.unwrap_or(false) {
        refuse_holes(file.as_fd(), len)?;
        return volume.seal_file(&file, kind, len, options);
    }
    let copy = volume.copied(mapping.as_slice())?;
    let object = volume.seal_file(&copy, kind, len, options)?;
    let file = volume
        .open_object(&crate::name::ObjectFile::new(object.id, object.kind))
        .map_err(at)?;
    mapping
        .replace(file.as_fd(), WRITABLE, MapFlags::MAP_PRIVATE)
        .map_err(at)?;
    Ok(object)
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft")
            .field("kind", &self.kind)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
