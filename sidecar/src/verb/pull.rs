//! `Pull`: moves the charge of resident 2 MiB regions of one file to this pod.

use std::os::fd::{AsFd, OwnedFd};

use vineyard_charge::descriptor::{self, Access};
use vineyard_charge::{Extent, REGION};
use vineyard_proto::payer::{Pull, Pulled, Range, refused::Reason, reply::Body as Reply};

use super::{failure, refuse};
use crate::bill::Refusal;
use crate::grants::Claim;
use crate::service::Service;

/// Their refused offsets always fit into one reply.
const MAX_REGIONS: u64 = 4096;

/// What a pull draws; `None` when it is not acceptable.
pub(crate) fn bytes(ask: &Pull) -> Option<u64> {
    regions(&ask.ranges).map(|(_, regions)| regions * REGION)
}

pub(super) fn answer(
    service: &Service,
    ask: &Pull,
    descriptors: &[OwnedFd],
    claim: &mut Claim,
) -> Reply {
    let [file] = descriptors else {
        let message = format!("a pull takes one descriptor, not {}", descriptors.len());
        return refuse(Reason::Descriptor, message);
    };
    let checked = descriptor::check(file.as_fd(), &service.volumes.devices(), Access::Pull);
    if let Err(error) = checked {
        return refuse(Reason::Descriptor, error.to_string());
    }
    let Some((extents, regions)) = regions(&ask.ranges) else {
        let message = format!("not at most {MAX_REGIONS} regions of 2 MiB at multiples of 2 MiB");
        return refuse(Reason::Range, message);
    };
    let draw = match service.bill.draw(regions * REGION, claim) {
        Ok(draw) => draw,
        Err(Refusal::Full(full)) => return refuse(Reason::Busy, full.to_string()),
        Err(Refusal::Failed(error)) => return refuse(Reason::Internal, error.to_string()),
    };
    match service.payer.pull(file.as_fd(), &extents) {
        Ok(refused) => {
            let moved = regions.saturating_sub(refused.len() as u64);
            draw.keep(moved * REGION);
            service.metrics.pulled(moved * REGION);
            // Regions that were billed here before have now been counted twice.
            service.settle.notify_one();
            Reply::Pulled(Pulled { refused })
        }
        Err(error) => failure(error),
    }
}

/// The ranges as extents and the number of their regions, `None` when they are not acceptable.
fn regions(ranges: &[Range]) -> Option<(Vec<Extent>, u64)> {
    let mut count = 0_u64;
    let mut extents = Vec::with_capacity(ranges.len());
    for Range { offset, length } in ranges.iter().copied() {
        let end = offset
            .checked_add(length)?
            .checked_next_multiple_of(REGION)?;
        if !offset.is_multiple_of(REGION) || length == 0 || i64::try_from(end).is_err() {
            return None;
        }
        count = count.checked_add(length.div_ceil(REGION))?;
        extents.push(Extent { offset, length });
    }
    (count <= MAX_REGIONS).then_some((extents, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn count(ranges: &[(u64, u64)]) -> Option<u64> {
        let ranges: Vec<Range> = ranges
            .iter()
            .map(|&(offset, length)| Range { offset, length })
            .collect();
        regions(&ranges).map(|(_, count)| count)
    }

    #[test]
    fn regions_are_counted_with_the_tail_as_a_whole_one() {
        assert_eq!(count(&[(0, 2 * MIB), (4 * MIB, 3 * MIB)]), Some(3));
        assert_eq!(count(&[]), Some(0));
    }

    #[test]
    fn unaligned_empty_overflowing_and_too_many_regions_are_refused() {
        assert_eq!(count(&[(MIB, 2 * MIB)]), None);
        assert_eq!(count(&[(0, 0)]), None);
        assert_eq!(count(&[(2 * MIB, u64::MAX)]), None);
        assert_eq!(count(&[(0, i64::MAX as u64)]), None);
        assert_eq!(count(&[(0, 4096 * REGION), (0, 1)]), None);
    }
}
