//! Threads that work on batches side by side: while one waits for the payer, another copies.
//!
//! They change no result: each batch is whole in itself, and what became of it is told to the pass, which alone keeps the account.

use std::collections::VecDeque;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::panic;
use std::sync::{Arc, mpsc};
use std::thread::{self, Scope, ScopedJoinHandle};

use nix::sys::resource::{Resource, getrlimit};

use super::Stop;
use super::batch::{Done, Item, Terms};
use crate::recharge::{BATCH, Replace};
use crate::survey::Surveyor;

/// More threads than that only wait for each other, in the file system.
const MOST: usize = 4;

/// Descriptors that are left to the rest of the process, and to the batch that is being collected.
const SPARED: usize = 200 + 2 * BATCH;

/// A batch for another thread.
pub(super) struct Batch {
    pub(super) directory: OwnedFd,
    pub(super) scratch: Arc<OwnedFd>,
    pub(super) items: Vec<Item>,
}

/// `None` when there was nothing to do.
type Ended = Option<(Surveyor, Result<Done, Stop>)>;

pub(super) struct Crew<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    terms: Terms<'env>,
    /// Oldest first.
    at_work: VecDeque<ScopedJoinHandle<'scope, Ended>>,
    /// Of those who are done.
    surveyors: Vec<Surveyor>,
    most: usize,
}

impl<'scope, 'env: 'scope> Crew<'scope, 'env> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, terms: Terms<'env>) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
        // Each batch has its originals open, and as many copies.
        let affordable = open_files.saturating_sub(SPARED) / (2 * BATCH);
        Self {
            scope,
            terms,
            at_work: VecDeque::new(),
            surveyors: Vec::new(),
            most: match cores {
                1 => 0,
                cores => cores.min(MOST).min(affordable),
            },
        }
    }

    /// Batches that are being worked on.
    pub(super) fn at_work(&self) -> usize {
        self.at_work.len()
    }

    /// Whether anybody ever takes a batch.
    pub(super) fn is_there(&self) -> bool {
        self.most > 0
    }

    /// Whether one must be waited for before the next batch is handed out.
    pub(super) fn is_busy(&self) -> bool {
        self.at_work.len() >= self.most
    }

    /// Has a thread work on a batch. Returns it when there is no thread to be had.
    pub(super) fn hand_out(&mut self, batch: Batch) -> Result<(), Batch> {
        let Some(surveyor) = self.surveyors.pop().or_else(|| Surveyor::open().ok()) else {
            return Err(batch);
        };
        let terms = self.terms;
        // Told afterwards, so that a thread that cannot be made takes nothing with it.
        let (tell, told) = mpsc::channel();
        let begun = thread::Builder::new().spawn_scoped(self.scope, move || {
            let (mut surveyor, batch): (Surveyor, Batch) = told.recv().ok()?;
            let done = work(&terms, &mut surveyor, batch);
            Some((surveyor, done))
        });
        let Ok(thread) = begun else {
            self.most = 0;
            return Err(batch);
        };
        match tell.send((surveyor, batch)) {
            Ok(()) => self.at_work.push_back(thread),
            Err(mpsc::SendError((_, batch))) => return Err(batch),
        }
        Ok(())
    }

    /// Waits for the batch that was handed out first, and says what became of it.
    pub(super) fn wait(&mut self) -> Option<Result<Done, Stop>> {
        match self.at_work.pop_front()?.join() {
            Ok(ended) => {
                let (surveyor, done) = ended?;
                self.surveyors.push(surveyor);
                Some(done)
            }
            Err(panicked) => panic::resume_unwind(panicked),
        }
    }
}

fn work(terms: &Terms<'_>, surveyor: &mut Surveyor, batch: Batch) -> Result<Done, Stop> {
    let Batch {
        directory,
        scratch,
        items,
    } = batch;
    let judged = terms.judge(surveyor, &items)?;
    terms.in_time()?;
    let place = Replace {
        directory: directory.as_fd(),
        scratch: scratch.as_fd(),
    };
    let copied = terms.copy(surveyor, &place, &items, &judged, false);
    Ok(Done {
        items,
        judged,
        copied,
    })
}
