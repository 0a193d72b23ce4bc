//! What a run has shown, step by step: printed, and written into the pages that the environment names.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::MIB;
use crate::bills::Bill;

/// The steps of one test.
pub(crate) struct Table {
    name: &'static str,
    rows: Vec<[String; 4]>,
    begin: Instant,
}

impl Table {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
            begin: Instant::now(),
        }
    }

    /// Adds a step that has just been seen.
    pub(crate) fn row(&mut self, step: &str, bill: Option<&Bill>, seen: impl Into<String>) {
        let seconds = format!("{:.1}", self.begin.elapsed().as_secs_f64());
        let bill = bill.map_or_else(|| "–".into(), shown);
        let row = [step.to_owned(), seconds, bill, seen.into()];
        eprintln!("{}: {}", self.name, row.join(" | "));
        self.rows.push(row);
        self.begin = Instant::now();
    }

    /// Writes it into the page of what a cluster shows.
    pub(crate) fn write(&self) -> Result<()> {
        write("cluster.md", self.name, &self.markdown())
    }

    fn markdown(&self) -> String {
        let mut text = String::from("| step | s | billed, by survey | seen |\n|---|---|---|---|\n");
        for row in &self.rows {
            text += &format!("| {} |\n", row.join(" | "));
        }
        text
    }
}

/// Writes what a run has shown into a page, between the marks of its name, if the environment says where the pages are.
pub(crate) fn write(page: &str, name: &str, shown: &str) -> Result<()> {
    let Some(folder) = std::env::var_os("VINEYARD_CLUSTER_PAGES") else {
        return Ok(());
    };
    let folder = PathBuf::from(folder);
    // The other half of the tests writes there, too.
    let lock = File::open(&folder)?;
    lock.lock()?;
    let page = folder.join(page);
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) =
        parts.with_context(|| format!("{} has no place for {name}", page.display()))?;
    fs::write(&page, format!("{before}{begin}{shown}{end}{after}"))?;
    Ok(())
}

/// A bill in one line.
fn shown(bill: &Bill) -> String {
    if bill.is_empty() {
        return "nobody".into();
    }
    let one = |(who, bytes): (&String, &u64)| format!("{who} {}", mib(*bytes));
    bill.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
    let mib = bytes as f64 / MIB as f64;
    format!("{mib:.2} MiB")
}
