//! Somebody looks at a huge page while it is to be split, as a survey does: then the kernel frees nothing of it, and does not say so.

use std::io::PipeReader;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use vineyard_charge::{Extent, Payer, REGION, ReserveError};

use crate::order::{Order, SEALED, furnish, object, pages, write};
use crate::support::ground::{Ground, MIB, assert_pattern};

/// The end of it fills a region in part.
const SIZE: u64 = REGION + 300_000;

/// A payer after whose work somebody looks at what it has pulled.
struct LookedAt<'a> {
    payer: &'a dyn Payer,
    look: &'a (dyn Fn(PipeReader) + Sync),
}

impl std::fmt::Debug for LookedAt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LookedAt")
    }
}

impl Payer for LookedAt<'_> {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        self.payer.reserve(extents)
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        let pulled = self.payer.pull(file, regions)?;
        for region in regions {
            (self.look)(hold(file, region.offset));
        }
        Ok(pulled)
    }

    fn give_back(&self, bytes: u64) {
        self.payer.give_back(bytes);
    }
}

/// A pipe that holds a page of a file.
fn hold(file: BorrowedFd<'_>, offset: u64) -> PipeReader {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut offset = i64::try_from(offset).unwrap();
    // SAFETY: the descriptors are open, and the offset is ours.
    let moved = unsafe {
        let (from, to) = (file.as_raw_fd(), writer.as_raw_fd());
        libc::splice(from, &raw mut offset, to, std::ptr::null_mut(), 4096, 0)
    };
    assert_eq!(moved, 4096);
    reader
}

#[test]
fn what_is_looked_at_for_a_moment_when_it_is_to_be_freed_is_freed() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let path = object(&ground, "a.raw");
    write(&path, SIZE, SEALED);
    let look = |held| {
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            drop(held);
        });
    };
    let payer = LookedAt {
        payer: &payer,
        look: &look,
    };
    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!((outcome.moved, outcome.unseen), (pages(SIZE), 0));
    ground.assert_used(pages(SIZE));
    assert_pattern(&path, SIZE);
}

#[test]
fn what_is_looked_at_all_the_time_is_freed_by_the_next_pass() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let path = object(&ground, "a.raw");
    write(&path, SIZE, SEALED);
    let held = Mutex::new(Vec::new());
    let looked_at = LookedAt {
        payer: &payer,
        look: &|pipe| held.lock().unwrap().push(pipe),
    };
    let outcome = Order::new(&ground, &looked_at, retainer).run().unwrap();
    let more = 2 * REGION - pages(SIZE);
    assert!(!outcome.is_complete(), "{outcome:?}");
    assert_eq!((outcome.unseen, outcome.unfreed), (more, more));
    ground.assert_used(2 * REGION);
    held.lock().unwrap().clear();

    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!((outcome.moved, outcome.unseen), (0, 0));
    ground.assert_used(pages(SIZE));
    assert_pattern(&path, SIZE);
}
