//! Who is charged for a volume, as rows.

use std::path::Path;

use serde::Serialize;
use vineyard_charge::CgroupId;
use vineyard_charge::survey::{Ledger, Skipped, SurveyError};

use crate::bytes::human;
use crate::output::columns;

/// What one memory cgroup is charged.
#[derive(Debug, Serialize)]
pub(crate) struct BillRow {
    /// The inode of the cgroup's directory; 0 is nobody.
    cgroup: u64,
    /// Below the hierarchy's mount; nothing when the cgroup is gone.
    path: Option<String>,
    is_gone: bool,
    bytes: u64,
    /// Of what is used.
    percent: f64,
}

/// The ledger of a volume.
#[derive(Debug, Serialize)]
pub(crate) struct Bills {
    volume: String,
    capacity_bytes: u64,
    used_bytes: u64,
    /// What no path reaches: removed but still mapped or open, or not sealed yet.
    unreached_bytes: u64,
    /// Allocated, but the kernel does not show for whom.
    unseen_bytes: u64,
    files: u64,
    /// Largest first.
    pub(crate) bills: Vec<BillRow>,
    skipped: Vec<String>,
    skipped_entries: u64,
}

impl Bills {
    /// Surveys the volume at `directory`.
    pub(crate) fn of(directory: &Path) -> Result<Self, SurveyError> {
        let Ledger {
            bills,
            tree,
            used,
            capacity,
            unreached,
        } = Ledger::of(directory)?;
        let row = |bill: vineyard_charge::survey::Bill| BillRow {
            cgroup: bill.owner.0,
            is_gone: bill.path.is_none() && bill.owner != CgroupId(0),
            path: bill.path.map(|path| format!("/{}", path.display())),
            bytes: bill.bytes,
            percent: percent(bill.bytes, used),
        };
        let skipped = |entry: &Skipped| format!("{}: {}", entry.path.display(), entry.reason);
        Ok(Self {
            volume: directory.display().to_string(),
            capacity_bytes: capacity,
            used_bytes: used,
            unreached_bytes: unreached,
            unseen_bytes: tree.unseen,
            files: tree.files,
            bills: bills.into_iter().map(row).collect(),
            skipped: tree.skipped.iter().map(skipped).collect(),
            skipped_entries: tree.skipped_count,
        })
    }

    /// How the cgroup `owner` is called.
    pub(crate) fn label(&self, owner: u64) -> String {
        self.bills
            .iter()
            .find(|row| row.cgroup == owner)
            .map_or_else(|| label(owner, None), BillRow::label)
    }

    /// The ledger for people, and what it adds up to.
    pub(crate) fn table(&self) -> String {
        let (used, capacity) = (human(self.used_bytes), human(self.capacity_bytes));
        let mut text = self.ledger();
        text += &format!("\n{used} of {capacity} used, {} files\n", self.files);
        for entry in &self.skipped {
            text += &format!("skipped {}\n", crate::output::printable(entry));
        }
        text
    }

    /// Who is charged how much, for people.
    pub(crate) fn ledger(&self) -> String {
        let mut rows: Vec<Vec<String>> = self
            .bills
            .iter()
            .map(|row| vec![row.label(), human(row.bytes), format!("{:.1}", row.percent)])
            .collect();
        for (what, bytes) in [
            (
                "(no path reaches it: removed but mapped, or not sealed yet)",
                self.unreached_bytes,
            ),
            ("(the kernel does not show for whom)", self.unseen_bytes),
        ] {
            if bytes > 0 {
                rows.push(vec![
                    what.into(),
                    human(bytes),
                    format!("{:.1}", percent(bytes, self.used_bytes)),
                ]);
            }
        }
        columns(&["charged to", "bytes", "%"], &[1, 2], rows)
    }
}

impl BillRow {
    fn label(&self) -> String {
        label(self.cgroup, self.path.as_deref())
    }
}

fn label(cgroup: u64, path: Option<&str>) -> String {
    match path {
        Some(path) => path.to_owned(),
        None if cgroup == 0 => "(nobody)".into(),
        None => format!("(a cgroup that is gone: {cgroup})"),
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let (part, whole) = (part as f64, whole as f64);
    if whole == 0.0 {
        0.0
    } else {
        100.0 * part / whole
    }
}
