//! A file that is being filled: unnamed, so that the kernel frees it with its last descriptor, and with a note of what
//! was reserved for it, so that the payer hears of it when nothing comes of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vineyard_charge::Payer;

use crate::error::Error;
use crate::volume::Volume;

/// An unnamed file and its bill. Dropped before it is sealed, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Fresh {
    // Closed first: only then the pages are free.
    file: OwnedFd,
    bill: Bill,
}

/// Reserved bytes that are given back unless they are settled.
#[derive(Debug)]
pub(crate) struct Bill {
    payer: Option<Arc<dyn Payer>>,
    bytes: AtomicU64,
}

impl Fresh {
    /// A file without any pages.
    pub(crate) fn new(volume: &Volume) -> Result<Self, Error> {
        Ok(Self::reserved(volume.tree().unnamed()?, volume, 0))
    }

    /// A file for which `bytes` are reserved already.
    pub(crate) fn reserved(file: OwnedFd, volume: &Volume, bytes: u64) -> Self {
        let bill = Bill {
            payer: volume.payer().cloned(),
            bytes: bytes.into(),
        };
        Self { file, bill }
    }

    /// Reserves the pages of a range.
    pub(crate) fn reserve(&self, volume: &Volume, offset: u64, length: u64) -> Result<(), Error> {
        volume.reserve(self.file.as_fd(), offset, length)?;
        self.bill.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// `bytes` of the file were freed.
    pub(crate) fn trimmed(&self, bytes: u64) {
        let held = self.bill.bytes.load(Ordering::Relaxed);
        let bytes = bytes.min(held);
        self.bill.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let (Some(payer), 1..) = (&self.bill.payer, bytes) {
            payer.give_back(bytes);
        }
    }

    /// The file is sealed and keeps its pages.
    pub(crate) fn settle(&self) {
        self.bill.settle();
    }

    /// The bill alone, for whoever holds the pages by a mapping.
    pub(crate) fn into_bill(self) -> Bill {
        self.bill
    }
}

impl Bill {
    /// The file is sealed and keeps its pages.
    pub(crate) fn settle(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl AsFd for Fresh {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if let (Some(payer), 1..) = (&self.payer, *self.bytes.get_mut()) {
            payer.give_back(*self.bytes.get_mut());
        }
    }
}
