//! A volume as a store of immutable objects.
//!
//! A volume is a tmpfs directory. An object is one sealed file in it, a name is a relative symlink to it; the format is
//! `docs/design/volume.md`. [`Volume`] is the entry: `put` and `create` make objects, `get` reads or maps them. No
//! daemon takes part in a `get`, and in a `put` only the payer that reserves pages ahead of need.
//!
//! ```
//! use std::io::IoSlice;
//! use vineyard_store::{Key, Kind, Mode, Name, Options, PutOptions, Volume};
//! # let directory = tempfile::tempdir()?;
//! # let root = directory.path();
//! let volume = Volume::open(root, Options::default())?;
//! let name = Name::new("run-7/scores")?;
//! let content = [IoSlice::new(b"one "), IoSlice::new(b"two")];
//! volume.put(Kind::Text, &content, &PutOptions::named(name.clone()))?;
//! let scores = volume.get(Key::Name(&name), Mode::CopyOnWrite)?;
//! assert_eq!(scores.bytes(), b"one two");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Invariants: nothing half-written is ever visible; a sealed object never changes and has no holes; nothing outside
//! the volume is ever followed.

mod at_fork;
mod consumed;
mod copy;
mod draft;
mod error;
mod fill;
pub mod format;
mod fresh;
mod fsck;
mod get;
mod id;
mod keeper;
mod kind;
mod lease;
mod links;
mod list;
mod mapping;
mod name;
mod naming;
mod object;
mod pace;
mod pack;
mod per_process;
mod put;
mod recycle;
mod remove;
mod seal;
mod stat;
mod stock;
mod stream;
mod sweep;
mod tree;
mod usage;
mod volume;
mod wait;
mod watch;
mod writer;

pub use draft::{Draft, SealError};
pub use error::Error;
pub use fsck::{Fault, FsckReport, Problem};
pub use id::{ObjectId, ParseIdError};
pub use kind::{Kind, Tag};
pub use list::{List, ListOptions, Listed, Listing};
pub use mapping::Mapping;
pub use name::Name;
pub use object::{Content, Key, Mode, Object, PutOptions, Ref};
pub use pack::{Member, Pack};
pub use stat::Stat;
pub use stream::{StreamReader, StreamWriter};
pub use sweep::{SweepLimits, SweepReport};
pub use usage::{Space, Usage};
pub use volume::{Options, Volume};
pub use writer::Writer;
