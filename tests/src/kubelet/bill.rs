//! Who must pay for what, and who does.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use vineyard_charge::CgroupId;
use vineyard_charge::survey::Ledger;

use crate::model::PAGE;
use crate::node::Node;
use crate::process::poll;

use super::retainer::POD;

/// How long hand-overs may take on a busy machine, with processes that come back meanwhile.
const SETTLE: Duration = Duration::from_secs(90);

/// Bytes by the uid of the pod, and what is on no pod's bill by the name of the cgroup.
pub(super) type Bill = BTreeMap<String, u64>;

/// What a volume must cost whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// Exactly that.
    pub(super) exact: Bill,
    /// At most that; the rest of it is the retainer's.
    pub(super) at_most: Bill,
    /// The retainer's.
    pub(super) retained: u64,
}

impl Expected {
    /// Adds an object of `len` bytes.
    pub(super) fn add(&mut self, payer: Option<&str>, is_exact: bool, len: u64) {
        let bytes = len.next_multiple_of(PAGE);
        match payer {
            None => self.retained += bytes,
            Some(pod) => {
                let bill = if is_exact {
                    &mut self.exact
                } else {
                    &mut self.at_most
                };
                *bill.entry(pod.to_owned()).or_default() += bytes;
            }
        }
    }

    fn total(&self) -> u64 {
        self.retained
            + self
                .exact
                .values()
                .chain(self.at_most.values())
                .sum::<u64>()
    }

    /// What differs, if anything.
    fn against(&self, found: &Bill) -> Option<String> {
        let sum: u64 = found.values().sum();
        if sum != self.total() {
            return Some(format!(
                "{sum} bytes are charged instead of {}",
                self.total()
            ));
        }
        for (pod, bytes) in found {
            let is_right = match (self.exact.get(pod), self.at_most.get(pod)) {
                _ if pod == POD => *bytes >= self.retained,
                (exact, Some(most)) => *bytes <= most + exact.unwrap_or(&0),
                (Some(exact), None) => bytes == exact,
                (None, None) => false,
            };
            if !is_right {
                return Some(format!("{bytes} bytes are charged to {pod}"));
            }
        }
        let missing = self
            .exact
            .iter()
            .find(|(pod, bytes)| found.get(*pod).unwrap_or(&0) < *bytes);
        missing.map(|(pod, bytes)| format!("{pod} does not pay its {bytes} bytes"))
    }
}

/// Who is charged for the volume in `layer`. Everything that it holds is reached, when nobody has anything open.
pub(super) fn survey(node: &Node, layer: &Path, nobody: bool) -> Result<Bill> {
    let ledger = Ledger::of(layer)?;
    let tree = ledger.tree;
    ensure!(
        tree.skipped_count == 0 && tree.unseen == 0,
        "{} bytes unseen, skipped {:?}",
        tree.unseen,
        tree.skipped
    );
    if nobody {
        ensure!(
            ledger.unreached == 0,
            "{} bytes unreached",
            ledger.unreached
        );
    }
    let mut bill = Bill::new();
    for (owner, bytes) in tree.owners {
        *bill.entry(owner_of(node, owner)?).or_default() += bytes;
    }
    Ok(bill)
}

/// The uid of the pod that a cgroup belongs to, or what else it is.
fn owner_of(node: &Node, owner: CgroupId) -> Result<String> {
    Ok(match node.pods().uid_of(owner)? {
        Some(uid) => uid,
        None if node.driver_cgroup().id() == owner => "the driver".into(),
        None if node.cgroup().memory().subtree()?.contains(&owner) => "nobody that still is".into(),
        None => owner.to_string(),
    })
}

/// Waits until everybody pays what they must.
///
/// # Errors
/// What still differs when everything had the time to settle.
pub(super) fn settle(node: &Node, layer: &Path, expected: &Expected, nobody: bool) -> Result<()> {
    let mut last = String::new();
    let right = poll(SETTLE, || {
        // What was removed while a hand-over had it open lies in the trash until the driver sweeps.
        match survey(node, layer, nobody) {
            Ok(found) => {
                let wrong = expected.against(&found);
                last = format!("{wrong:?}: {found:?}");
                wrong.is_none()
            }
            // A cgroup may go while it is looked at.
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        }
    });
    match right {
        true => Ok(()),
        false => bail!("{}: {last}, expected {expected:?}", layer.display()),
    }
}
