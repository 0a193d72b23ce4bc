//! `fsck`: the whole volume against its format.

use serde::Serialize;
use vineyard_store::{FsckReport, Problem};

use crate::args::Settings;
use crate::bytes::human;
use crate::exit::Outcome;
use crate::output::printable;
use crate::progress;

/// Check the volume against its format
#[derive(Debug, clap::Args)]
pub(crate) struct Fsck {
    /// Remove litter and names whose object is gone, correct modes and targets; objects are never removed
    #[arg(long)]
    repair: bool,
}

#[derive(Serialize)]
struct Report {
    is_clean: bool,
    objects: u64,
    bytes: u64,
    names: u64,
    plain_files: u64,
    unnamed_objects: u64,
    problems: Vec<ProblemRow>,
}

#[derive(Serialize)]
struct ProblemRow {
    path: String,
    fault: String,
    detail: String,
    repaired: bool,
}

impl Fsck {
    /// Checks, and repairs when asked.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let bar = progress::spinner("checking");
        let found = settings.volume()?.fsck(self.repair)?;
        bar.finish_and_clear();
        let is_clean = found.is_clean();
        let FsckReport {
            objects,
            bytes,
            names,
            plain,
            unnamed,
            problems,
        } = found;
        let row = |Problem {
                       path,
                       fault,
                       detail,
                       repaired,
                   }| ProblemRow {
            path,
            fault: format!("{fault}"),
            detail,
            repaired,
        };
        let problems = problems.into_iter().map(row).collect();
        let report = Report {
            is_clean,
            objects,
            bytes,
            names,
            plain_files: plain,
            unnamed_objects: unnamed,
            problems,
        };
        settings.format.print(&report, table)?;
        Ok(if is_clean {
            Outcome::Done
        } else {
            Outcome::ProblemsFound
        })
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let repaired = if problem.repaired { " (repaired)" } else { "" };
        let ProblemRow {
            path,
            fault,
            detail,
            ..
        } = problem;
        text += &format!(
            "{}: {fault}: {}{repaired}\n",
            printable(path),
            printable(detail)
        );
    }
    text + &format!(
        "{} objects ({}), {} names, {} plain files, {} unnamed objects, {} problems\n",
        report.objects,
        human(report.bytes),
        report.names,
        report.plain_files,
        report.unnamed_objects,
        report.problems.len()
    )
}
