//! `Reserve`: checks everything, draws the bytes from the grants, then allocates; whatever fails is undone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vineyard_charge::descriptor::{self, Access};
use vineyard_charge::{Extent, PAGE};
use vineyard_proto::payer::{Reserve, Reserved, refused::Reason, reply::Body as Reply};

use super::{failure, refuse};
use crate::bill::Refusal;
use crate::grants::Claim;
use crate::service::Service;

/// What a reserve draws; `None` when a range is not acceptable. Each is below 2⁶³, and so is the sum of 200 files that fit
/// on a volume; anything above is never granted.
pub(crate) fn bytes(ask: &Reserve) -> Option<u64> {
    ask.ranges.iter().try_fold(0_u64, |sum, range| {
        Some(sum.saturating_add(whole_pages(range.offset, range.length)?))
    })
}

/// Checks the descriptors and ranges of a reserve, and returns its extents and what it draws.
pub(crate) fn check<'a>(
    service: &Service,
    ask: &Reserve,
    descriptors: &'a [OwnedFd],
) -> Result<(Vec<(BorrowedFd<'a>, Extent)>, u64), Reply> {
    if ask.ranges.len() != descriptors.len() {
        let message = format!(
            "{} ranges for {} descriptors",
            ask.ranges.len(),
            descriptors.len()
        );
        return Err(refuse(Reason::Descriptor, message));
    }
    let devices = service.volumes.devices();
    let mut extents = Vec::with_capacity(descriptors.len());
    let mut bytes = 0_u64;
    for (index, (range, file)) in ask.ranges.iter().zip(descriptors).enumerate() {
        let checked = descriptor::check(file.as_fd(), &devices, Access::Reserve);
        if let Err(error) = checked {
            let message = format!("descriptor {index}: {error}");
            return Err(refuse(Reason::Descriptor, message));
        }
        let Some(pages) = whole_pages(range.offset, range.length) else {
            let message = format!(
                "range {index}: {} bytes at {} are no range of a file",
                range.length, range.offset
            );
            return Err(refuse(Reason::Range, message));
        };
        bytes = bytes.saturating_add(pages);
        let extent = Extent {
            offset: range.offset,
            length: range.length,
        };
        extents.push((file.as_fd(), extent));
    }
    Ok((extents, bytes))
}

pub(super) fn answer(
    service: &Service,
    ask: &Reserve,
    descriptors: &[OwnedFd],
    claim: &mut Claim,
) -> Reply {
    let (extents, bytes) = match check(service, ask, descriptors) {
        Ok(checked) => checked,
        Err(refusal) => return refusal,
    };
    if extents.is_empty() {
        return Reply::Reserved(Reserved {});
    }
    let draw = match service.bill.draw(bytes, claim) {
        Ok(draw) => draw,
        Err(Refusal::Full(full)) => return Reply::Full(full.into()),
        Err(Refusal::Failed(error)) => return refuse(Reason::Internal, error.to_string()),
    };
    match service.payer.reserve(&extents) {
        Ok(()) => {
            draw.keep(bytes);
            service.metrics.reserved(bytes);
            Reply::Reserved(Reserved {})
        }
        Err(error) => failure(error),
    }
}

/// The bytes of the pages that a range touches; `None` when it is empty or beyond the largest file.
fn whole_pages(offset: u64, length: u64) -> Option<u64> {
    let end = offset.checked_add(length)?.checked_next_multiple_of(PAGE)?;
    (length > 0 && i64::try_from(end).is_ok()).then(|| end - offset / PAGE * PAGE)
}

#[cfg(test)]
mod tests {
    use super::whole_pages;

    #[test]
    fn a_range_counts_every_page_that_it_touches() {
        assert_eq!(whole_pages(0, 1), Some(4096));
        assert_eq!(whole_pages(4095, 2), Some(8192));
        assert_eq!(whole_pages(4096, 4096), Some(4096));
    }

    #[test]
    fn empty_and_overflowing_ranges_are_none() {
        assert_eq!(whole_pages(7, 0), None);
        assert_eq!(whole_pages(u64::MAX, 1), None);
        assert_eq!(whole_pages(1, u64::MAX), None);
        assert_eq!(whole_pages(0, i64::MAX as u64), None);
        assert_eq!(whole_pages(i64::MAX as u64, 1), None);
    }
}
