//! `doctor`: what this kernel, these privileges, this volume and its sidecar can do.

use serde::Serialize;

use crate::args::Settings;
use crate::checks::{self, Check, Status};
use crate::exit::Outcome;
use crate::output::{Format, printable};

/// Check kernel, privileges, volume and sidecar
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {}

/// What was found, area by area.
#[derive(Serialize)]
pub(crate) struct Report {
    is_healthy: bool,
    checks: Vec<Check>,
}

impl Report {
    /// A report of these.
    pub(crate) fn of(checks: Vec<Check>) -> Self {
        let is_healthy = checks.iter().all(|check| check.status != Status::Problem);
        Self { is_healthy, checks }
    }

    /// Prints it; the outcome says whether anything that is needed is missing.
    pub(crate) fn print(&self, format: Format) -> anyhow::Result<Outcome> {
        format.print(self, table)?;
        Ok(match self.is_healthy {
            true => Outcome::Done,
            false => Outcome::ProblemsFound,
        })
    }
}

impl Doctor {
    /// Checks everything and prints what it found.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let Self {} = self;
        let mut all = checks::kernel::checks(settings.directory());
        all.extend(checks::process::checks());
        all.extend(checks::volume::checks(settings.directory()));
        all.extend(checks::sidecar::checks(settings.socket()));
        Report::of(all).print(settings.format)
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut area = "";
    for check in &report.checks {
        if check.area != area {
            area = &check.area;
            text += &format!("{area}\n");
        }
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Problem => "PROBLEM",
        };
        text += &format!(
            "  {mark:<8} {:<20} {}\n",
            check.name,
            printable(&check.found)
        );
        if let Some(advice) = &check.advice {
            text += &format!("{:32}{advice}\n", "");
        }
    }
    text += if report.is_healthy {
        "\nnothing that is needed is missing\n"
    } else {
        "\nsomething that is needed is missing\n"
    };
    text
}
