//! Who pays, as the kernel says, against who should.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use vineyard_charge::CgroupId;
use vineyard_charge::survey::Ledger;

/// Bytes by owner.
pub type Bill = BTreeMap<CgroupId, u64>;

/// How often the kernel may name an owner that is just going away.
const TRIES: usize = 50;

/// Surveys the volume in `root`, page by page.
///
/// # Errors
/// When owners cannot be read, or there is anything that cannot be surveyed.
pub fn survey(root: &Path) -> Result<Bill> {
    let ledger = Ledger::of(root)?;
    let tree = ledger.tree;
    ensure!(
        tree.skipped_count == 0 && tree.unseen == 0,
        "{} bytes unseen, skipped {:?}",
        tree.unseen,
        tree.skipped
    );
    Ok(tree.owners)
}

/// Checks that the kernel charges everybody what `expected` says.
///
/// # Errors
/// The first bill that differs.
pub fn check(root: &Path, expected: &Bill) -> Result<()> {
    let mut result = Ok(());
    for _ in 0..TRIES {
        result = compare(&survey(root)?, expected);
        if result.is_ok() {
            break;
        }
        // A removed cgroup goes offline a little later.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    result
}

fn compare(found: &Bill, expected: &Bill) -> Result<()> {
    for owner in found.keys().chain(expected.keys()) {
        let (is, should) = (
            found.get(owner).unwrap_or(&0),
            expected.get(owner).unwrap_or(&0),
        );
        if is != should {
            bail!("{owner} is charged {is} bytes instead of {should}: {found:?}, not {expected:?}");
        }
    }
    Ok(())
}

/// Checks what the file system says is in use: `expected`, and what clients have `ahead` of need at most.
///
/// # Errors
/// When it is less or more.
pub fn compare_used(used: u64, expected: u64, ahead: u64) -> Result<()> {
    ensure!(
        (expected..=expected + ahead).contains(&used),
        "{used} bytes are in use instead of {expected} and at most {ahead} reserved ahead"
    );
    Ok(())
}
