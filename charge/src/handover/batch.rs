//! Small files that have come together: surveyed at one look, and those that others pay for copied at once.
//!
//! Nothing here changes the pass, so that several batches can be worked on side by side ([`Crew`](super::crew::Crew)).

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use super::{HandOver, Progress, Stop};
use crate::PAGE;
use crate::cgroup::CgroupId;
use crate::payer::Payer;
use crate::recharge::{Check, Copied, Original, RechargeError, Replace};
use crate::survey::{Small, Surveyor, Whose};

/// Bytes of small files that are copied at once: what a full volume lends for a moment.
pub(super) const BATCH_BYTES: u64 = 8 << 20;

/// What of an order every thread may know.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    stays: &'a (dyn Fn(CgroupId) -> bool + Sync),
    pub(super) payer: &'a dyn Payer,
    payer_owners: &'a [CgroupId],
    progress: &'a Progress,
    until: Option<Instant>,
}

/// A small file.
pub(super) struct Item {
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    pub(super) file: OwnedFd,
    pub(super) size: u64,
    pub(super) allocated: u64,
    /// Nobody writes to it, so that it may be moved in place whatever its size.
    pub(super) still: bool,
}

/// What a survey says of one.
pub(super) struct Judged {
    pub(super) whose: Whose,
    /// Who is charged and should not be, and for how many bytes.
    pub(super) foreign: Option<(CgroupId, u64)>,
}

/// A batch that was worked on.
pub(super) struct Done {
    pub(super) items: Vec<Item>,
    /// One for each item.
    pub(super) judged: Vec<Judged>,
    /// One for each item that is foreign.
    pub(super) copied: Vec<Result<Copied, RechargeError>>,
}

impl<'a> Terms<'a> {
    pub(super) fn of(order: &HandOver<'a>) -> Self {
        Self {
            stays: order.stays,
            payer: order.payer,
            payer_owners: order.payer_owners,
            progress: order.progress,
            until: order.until,
        }
    }

    pub(super) fn rightly(&self, owner: CgroupId) -> bool {
        self.payer_owners.contains(&owner) || (self.stays)(owner)
    }

    pub(super) fn in_time(&self) -> Result<(), Stop> {
        if self.progress.is_stopped() {
            return Err(Stop::TimeUp);
        }
        match self.until {
            Some(until) if Instant::now() >= until => Err(Stop::TimeUp),
            _ => Ok(()),
        }
    }

    /// Surveys all of them.
    pub(super) fn judge(
        &self,
        surveyor: &mut Surveyor,
        items: &[Item],
    ) -> Result<Vec<Judged>, Stop> {
        let row: Vec<Small<'_>> = items.iter().map(Item::small).collect();
        let found = surveyor.row(&row).map_err(Stop::survey)?;
        let judge = |whose: Whose| Judged {
            foreign: whose.foreign(&|owner| self.rightly(owner)),
            whose,
        };
        Ok(found.into_iter().map(judge).collect())
    }

    /// Copies those that are foreign. In a volume that is `full` only those that take no room of it for good: what somebody may
    /// view and somebody else write to would.
    pub(super) fn copy(
        &self,
        surveyor: &mut Surveyor,
        place: &Replace<'_>,
        items: &[Item],
        judged: &[Judged],
        full: bool,
    ) -> Vec<Result<Copied, RechargeError>> {
        let foreign: Vec<&Item> = foreign(items, judged).collect();
        let originals: Vec<Original<'_>> = foreign
            .iter()
            .filter(|item| !full || item.still)
            .map(|item| Original {
                name: &item.name,
                file: item.file.as_fd(),
                spare_viewed: item.still,
            })
            .collect();
        let check = Check {
            surveyor,
            owners: self.payer_owners,
        };
        let copied = place.copy_opened(&originals, self.payer, Some(check));
        let mut copied = copied.into_iter();
        let refused = || RechargeError::Unsuitable("the volume is full, and somebody may view it");
        let result = |item: &&Item| {
            if full && !item.still {
                return Err(refused());
            }
            copied.next().unwrap_or_else(|| Err(refused()))
        };
        foreign.iter().map(result).collect()
    }
}

impl Item {
    /// Bytes that a copy takes.
    pub(super) fn bytes(&self) -> u64 {
        self.size.next_multiple_of(PAGE)
    }

    fn small(&self) -> Small<'_> {
        Small {
            file: self.file.as_fd(),
            size: self.size,
            allocated: self.allocated,
            is_whole: false,
        }
    }
}

/// The items that are charged to somebody who should not pay.
pub(super) fn foreign<'b>(
    items: &'b [Item],
    judged: &'b [Judged],
) -> impl Iterator<Item = &'b Item> {
    let pairs = items.iter().zip(judged);
    pairs.filter_map(|(item, judged)| judged.foreign.map(|_| item))
}
