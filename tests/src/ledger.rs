//! Who pays, as the kernel says, against who should.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use vineyard_charge::CgroupId;
use vineyard_charge::survey::Ledger;

use crate::process::poll;
use crate::volume_mount::VolumeMount;

/// Bytes by owner.
pub type Bill = BTreeMap<CgroupId, u64>;

/// How long a busy machine may take until everybody has closed what is gone.
const SETTLE: Duration = Duration::from_secs(10);

/// How often the kernel may name an owner that is just going away.
const TRIES: usize = 50;

/// Surveys the volume in `root`, page by page.
///
/// # Errors
/// When owners cannot be read, or there is anything that cannot be surveyed.
pub fn survey(root: &Path) -> Result<Bill> {
    let ledger = Ledger::of(root)?;
    let tree = ledger.tree;
    // What a client has recycled is out of everybody's reach, like a file that has no name yet.
    let recycled = tree
        .skipped
        .iter()
        .filter(|s| s.path.starts_with(".vineyard/trash") && s.reason.contains("lease"));
    ensure!(
        tree.skipped_count == recycled.count() as u64 && tree.unseen == 0,
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
        std::thread::sleep(Duration::from_millis(2));
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

/// Checks what the file system says is in use: `expected`, and what clients have `ahead` of need at most. A sidecar may
/// still hold for a moment what a client that was killed had just passed to it.
///
/// # Errors
/// When it stays less or more.
pub fn check_used(mount: &VolumeMount, expected: u64, ahead: u64) -> Result<()> {
    let mut used = mount.used()?;
    let right = poll(SETTLE, || {
        used = mount.used().unwrap_or(used);
        (expected..=expected + ahead).contains(&used)
    });
    ensure!(
        right,
        "{used} bytes are in use instead of {expected} and at most {ahead} reserved ahead"
    );
    Ok(())
}
