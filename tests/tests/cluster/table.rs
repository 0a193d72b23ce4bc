//! What a run has shown, step by step: printed, and written into the page that the environment names.

use std::fs;
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

    /// Writes it into the page, between the marks of its name.
    pub(crate) fn write(&self) -> Result<()> {
        let Some(page) = std::env::var_os("VINEYARD_CLUSTER_PAGE") else {
            return Ok(());
        };
        let text = fs::read_to_string(&page)?;
        let (begin, end) = (
            format!("<!-- {}: begin -->\n", self.name),
            format!("<!-- {}: end -->", self.name),
        );
        let (before, rest) = text
            .split_once(&begin)
            .context("the page has no such mark")?;
        let (_, after) = rest.split_once(&end).context("the page has no such mark")?;
        fs::write(
            &page,
            format!("{before}{begin}{}{end}{after}", self.markdown()),
        )?;
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = String::from("| step | s | billed, by survey | seen |\n|---|---|---|---|\n");
        for row in &self.rows {
            text += &format!("| {} |\n", row.join(" | "));
        }
        text
    }
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
