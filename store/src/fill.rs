//! Filling a large file: its pages are reserved window by window, and each window is filled as soon as it is there, while
//! the next one is being reserved.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::statfs::fstatfs;
use vineyard_charge::{Full, Limit};

use crate::copy;
use crate::error::Error;
use crate::fresh::Fresh;
use crate::mapping::HUGE;
use crate::volume::Volume;

/// Bytes that are reserved and then written at once. Every reserve makes all CPUs drain their lists once, so not too few;
/// and few enough that the threads finish together.
const SMALLEST_WINDOW: u64 = 8 << 20;
const LARGEST_WINDOW: u64 = 64 << 20;
/// How many windows a put has, between these limits.
const WINDOWS: u64 = 4;
/// Threads that take turns: one reserves while another copies. Two saturate the memory.
const WORKERS: usize = 2;

impl Volume {
    /// Reserves what `file`, which is `len` bytes long, lacks of its pages, and writes `content` to it.
    pub(crate) fn fill(
        &self,
        file: &Fresh,
        content: &[IoSlice<'_>],
        len: u64,
    ) -> Result<(), Error> {
        self.refuse_too_large(len, len.saturating_sub(file.resident()))?;
        let window = (len / WINDOWS)
            .clamp(SMALLEST_WINDOW, LARGEST_WINDOW)
            .next_multiple_of(HUGE as u64);
        if len <= window {
            file.reserve(self, 0, len)?;
            return self.write_window(file, 0, content, len);
        }
        let cursor = Mutex::new(Cursor::new(content));
        let failed = Mutex::new(None);
        let reserved = AtomicU64::new(0);
        // A function of its own: in the head of the loop the lock would be held while the window is filled.
        let next = || lock(&cursor).take(window);
        let work = || {
            while let Some((offset, window)) = next() {
                let length = window.iter().map(|s| s.len() as u64).sum();
                let done = file.reserve(self, offset, length).and_then(|()| {
                    reserved.fetch_add(length, Ordering::Relaxed);
                    self.write_window(file, offset, &window, length)
                });
                if let Err(error) = done {
                    lock(&cursor).stop();
                    lock(&failed).get_or_insert(error);
                    return;
                }
            }
        };
        let workers = std::thread::available_parallelism()
            .map_or(1, Into::into)
            .min(WORKERS);
        std::thread::scope(|scope| {
            for _ in 1..workers {
                // Without another thread it only takes longer.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(error) => Err(of_the_whole(error, len, reserved.into_inner())),
        }
    }

    fn write_window(
        &self,
        file: &Fresh,
        offset: u64,
        slices: &[IoSlice<'_>],
        length: u64,
    ) -> Result<(), Error> {
        let size = usize::try_from(length).map_err(|_| Error::io("put", Errno::EFBIG))?;
        if copy::to_pages(file.as_fd(), offset, slices, size).is_err() {
            self.write_all(file.as_fd(), slices, offset)?;
        }
        Ok(())
    }

    /// Says so at once when it cannot fit, rather than after having filled the volume.
    fn refuse_too_large(&self, len: u64, missing: u64) -> Result<(), Error> {
        let free = || {
            let fs = fstatfs(self.tree().objects.as_fd()).ok()?;
            let unlimited = fs.blocks() == 0;
            (!unlimited)
                .then(|| fs.blocks_available() * u64::try_from(fs.block_size()).unwrap_or(4096))
        };
        if free().is_some_and(|free| free < missing) {
            self.make_room(Limit::Volume);
            if free().is_some_and(|free| free < missing) {
                return Err(self.full(len));
            }
        }
        Ok(())
    }
}

/// What the user asked for is the whole put, not the window that did not fit any more.
fn of_the_whole(error: Error, asked: u64, reserved: u64) -> Error {
    match error {
        Error::Full { full, space } => Error::Full {
            full: Full {
                asked,
                free: full.free.saturating_add(reserved),
                ..full
            },
            space,
        },
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where in the content the next window starts.
struct Cursor<'a> {
    rest: &'a [IoSlice<'a>],
    /// Bytes of the first slice that are taken already.
    taken: usize,
    offset: u64,
}

impl<'a> Cursor<'a> {
    fn new(content: &'a [IoSlice<'a>]) -> Self {
        Self {
            rest: content,
            taken: 0,
            offset: 0,
        }
    }

    fn stop(&mut self) {
        self.rest = &[];
    }

    /// The next `window` bytes and their place in the file.
    fn take(&mut self, window: u64) -> Option<(u64, Vec<IoSlice<'a>>)> {
        let offset = self.offset;
        let mut slices = Vec::new();
        let mut missing = usize::try_from(window).unwrap_or(usize::MAX);
        while let Some((first, rest)) = self.rest.split_first() {
            if missing == 0 {
                break;
            }
            let first: &'a [u8] = first;
            let part = &first[self.taken..];
            if part.len() > missing {
                slices.push(IoSlice::new(&part[..missing]));
                self.taken += missing;
                missing = 0;
            } else {
                if !part.is_empty() {
                    slices.push(IoSlice::new(part));
                }
                missing -= part.len();
                self.taken = 0;
                self.rest = rest;
            }
        }
        self.offset += slices.iter().map(|s| s.len() as u64).sum::<u64>();
        (!slices.is_empty()).then_some((offset, slices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_content_once_and_in_order() {
        let parts: Vec<Vec<u8>> = [0, 5, 0, 100, 1, 33]
            .iter()
            .map(|n| vec![u8::try_from(*n).unwrap(); *n])
            .collect();
        let content: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        for window in [1, 7, 64, 139, 1000] {
            let mut cursor = Cursor::new(&content);
            let mut all = Vec::new();
            while let Some((offset, slices)) = cursor.take(window) {
                assert_eq!(offset, all.len() as u64);
                let bytes: Vec<u8> = slices.iter().flat_map(|s| s.to_vec()).collect();
                assert!(bytes.len() as u64 == window || cursor.rest.is_empty());
                all.extend(bytes);
            }
            assert_eq!(all, parts.concat());
        }
    }
}
