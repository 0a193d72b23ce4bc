//! What the operations of a store take and return.

use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags};

use crate::id::ObjectId;
use crate::kind::Kind;
use crate::mapping::Mapping;
use crate::name::Name;

/// A sealed object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ref {
    /// Its identity.
    pub id: ObjectId,
    /// How its bytes are decoded.
    pub kind: Kind,
    /// Its length in bytes.
    pub len: u64,
    /// The name that it was given, or found by.
    pub name: Option<Name>,
}

/// How an object is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    /// By name; `pack/key` finds a member of a pack.
    Name(&'a Name),
    /// By id and kind: one system call less than by id alone.
    Object(ObjectId, Kind),
    /// By id.
    Id(ObjectId),
}

impl<'a> From<&'a Name> for Key<'a> {
    fn from(name: &'a Name) -> Self {
        Self::Name(name)
    }
}

impl From<&Ref> for Key<'static> {
    fn from(object: &Ref) -> Self {
        Self::Object(object.id, object.kind)
    }
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Object(id, kind) => write!(f, "{id}.{kind}"),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

/// How a large object is mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Writable; what is written stays private to this mapping.
    #[default]
    CopyOnWrite,
    /// Writing ends the process with SIGSEGV.
    ReadOnly,
}

impl Mode {
    pub(crate) fn protection(self) -> (ProtFlags, MapFlags) {
        match self {
            Self::CopyOnWrite => (
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            ),
            Self::ReadOnly => (ProtFlags::PROT_READ, MapFlags::MAP_SHARED),
        }
    }
}

/// An object that was got.
#[derive(Debug)]
pub struct Object {
    /// The object's id; `None` for a plain file.
    pub id: Option<ObjectId>,
    /// How the bytes are decoded.
    pub kind: Kind,
    /// The bytes.
    pub content: Content,
}

impl Object {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Small(bytes) => bytes,
            Content::Mapped(mapping) => mapping.as_slice(),
        }
    }
}

/// The bytes of an object.
#[derive(Debug)]
pub enum Content {
    /// Copied: small objects, members of packs and plain files, or when no more mappings can be had.
    Small(Vec<u8>),
    /// Mapped: no copy was made.
    Mapped(Mapping),
}

impl Content {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Small(bytes) => bytes.len(),
            Self::Mapped(mapping) => mapping.len(),
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How an object is named and how long it lives.
#[derive(Clone, Debug)]
pub struct PutOptions {
    /// Its name.
    pub name: Option<Name>,
    /// How long it is needed; after that `sweep` removes it.
    pub ttl: Option<Duration>,
    /// Whether a name that exists is re-pointed, which removes its old object.
    pub overwrite: bool,
}

impl Default for PutOptions {
    fn default() -> Self {
        Self {
            name: None,
            ttl: None,
            overwrite: true,
        }
    }
}

impl PutOptions {
    /// Options that name the object and replace what has that name.
    #[must_use]
    pub fn named(name: Name) -> Self {
        Self {
            name: Some(name),
            ..Self::default()
        }
    }
}
