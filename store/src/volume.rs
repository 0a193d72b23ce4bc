//! The volume: a directory that is also a store. Everything else in this crate is a part of [`Volume`].

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use vineyard_charge::{Extent, Full, Limit, OwnPayer, Payer, ReserveError};

use crate::error::Error;
use crate::mapping::PAGE;
use crate::recycle::Recycling;
use crate::stock::{Stock, TakeError};
use crate::tree::Tree;

/// How a volume is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who is billed for what is put. `None`: nobody but the caller's own cgroup, as for any file.
    pub payer: Option<Arc<dyn Payer>>,
    /// Whether the tree is made when it is absent.
    pub create: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            payer: None,
            create: true,
        }
    }
}

/// A volume. Cheap to share by `Arc`; every method may be called from any thread.
#[derive(Debug)]
pub struct Volume {
    tree: Arc<Tree>,
    payer: Option<Arc<dyn Payer>>,
    stock: Stock,
    recycling: Recycling,
    /// Bills nobody but the caller, as any write does, but with huge pages.
    own: OwnPayer,
}

impl Volume {
    /// Opens the volume at `root`.
    ///
    /// # Errors
    /// [`Error::NotAVolume`] when the directory holds none and none may be made, [`Error::Format`] when it was written
    /// by a newer version.
    pub fn open(root: &Path, options: Options) -> Result<Self, Error> {
        let tree = Tree::open(root, options.create, options.payer.as_deref())?;
        let tree = Arc::new(tree);
        let stock = Stock::new(Arc::clone(&tree), options.payer.clone());
        let recycling = Recycling::new(Arc::clone(&tree), options.payer.clone());
        Ok(Self {
            tree,
            payer: options.payer,
            stock,
            recycling,
            own: OwnPayer::new(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.tree.path
    }

    /// Whether somebody is billed for what is put here.
    #[must_use]
    pub fn is_billed(&self) -> bool {
        self.payer.is_some()
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn payer(&self) -> Option<&Arc<dyn Payer>> {
        self.payer.as_ref()
    }

    pub(crate) fn recycling(&self) -> &Recycling {
        &self.recycling
    }

    /// Bytes that fit below the limits of whoever pays, as far as this process knows them.
    pub(crate) fn payable(&self) -> u64 {
        match self.payer {
            // A payer in another process has limits of its own.
            Some(_) => u64::MAX,
            None => self.own.free(),
        }
    }

    /// Allocates the pages of a range of `file` on the bill.
    pub(crate) fn reserve(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
    ) -> Result<(), Error> {
        if length == 0 {
            return Ok(());
        }
        let extents = [(file, Extent { offset, length })];
        let payer: &dyn Payer = self.payer.as_deref().unwrap_or(&self.own);
        match payer.reserve(&extents) {
            Err(ReserveError::Full(full)) => {
                // What nobody needs goes first.
                self.make_room(full.limit);
                payer.reserve(&extents).map_err(|e| self.refused(e, length))
            }
            other => other.map_err(|e| self.refused(e, length)),
        }
    }

    /// A file from the stock, with `pages` reserved pages if somebody is billed.
    pub(crate) fn stocked(&self, pages: usize) -> Result<OwnedFd, Error> {
        let taken = match self.stock.take(pages) {
            Err(TakeError::Reserve(ReserveError::Full(full))) => {
                self.make_room(full.limit);
                self.stock.take(pages)
            }
            taken => taken,
        };
        taken.map_err(|error| match error {
            TakeError::Open(error) => error,
            TakeError::Reserve(error) => self.refused(error, pages as u64 * PAGE),
        })
    }

    /// To be called in a child after `fork`, when the child lives on without `exec`: closes what it inherited from the
    /// parent's stock. Otherwise this happens at the child's first `put`.
    pub fn after_fork_in_child(&self) {
        self.stock.after_fork_in_child();
        self.recycling.after_fork_in_child();
    }

    /// Frees what this process holds in reserve and what nobody maps any more. In a full volume also the trash of other
    /// users goes, whether it is mapped or not: that cannot be asked, and its last view frees it either way.
    pub(crate) fn make_room(&self, limit: Limit) {
        self.stock.give_back();
        let _ = self.empty_trash(limit == Limit::Volume);
    }

    pub(crate) fn refused(&self, error: ReserveError, asked: u64) -> Error {
        match error {
            ReserveError::Full(full) => Error::Full {
                full,
                space: self.space(),
            },
            ReserveError::Io(e) if e.raw_os_error() == Some(libc::ENOSPC) => self.full(asked),
            other => Error::Payer(other),
        }
    }

    /// The error of an operation that the volume had no room for.
    pub(crate) fn full(&self, asked: u64) -> Error {
        let usage = self.usage().ok();
        let full = Full {
            asked,
            free: usage.map_or(0, |u| u.free),
            limit: Limit::Volume,
            limit_bytes: usage.map_or(0, |u| u.capacity),
        };
        Error::Full {
            full,
            space: self.space(),
        }
    }

    /// The error of a system call.
    pub(crate) fn failed(&self, path: &str, errno: Errno, asked: u64) -> Error {
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => self.full(asked),
            errno => Error::io(path, errno),
        }
    }
}
