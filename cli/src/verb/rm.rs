//! `rm`: names and what they own.

use serde::Serialize;
use vineyard_store::{Key, Name, ObjectId, SweepReport};

use crate::args::Settings;
use crate::exit::Outcome;
use crate::progress;

/// Remove names and the objects that they own; views that somebody still has stay valid
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Names, plain files, or ids of objects
    #[arg(required_unless_present = "expired", value_name = "NAME")]
    names: Vec<String>,
    /// Remove everything whose name starts so: `--prefix runs/17/`
    #[arg(long)]
    prefix: bool,
    /// Also what is past its time to live, and what dead processes and finished views have left
    #[arg(long)]
    expired: bool,
    /// A name that is not there is no error
    #[arg(short, long)]
    force: bool,
}

#[derive(Serialize)]
struct Removed {
    removed: u64,
    missing: Vec<String>,
    /// Past their time to live.
    expired: u64,
    /// Left by processes that died, and removed objects whose last view is gone.
    swept: u64,
}

impl Rm {
    /// Removes them.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let volume = settings.volume()?;
        let mut report = Removed {
            removed: 0,
            missing: Vec::new(),
            expired: 0,
            swept: 0,
        };
        let bar = progress::spinner("removing");
        for name in self.names {
            let gone = if self.prefix {
                volume.remove_prefix(&name)?
            } else {
                match (Name::new(name.as_str()), name.parse::<ObjectId>()) {
                    (Ok(named), _) if volume.exists(&named)? => {
                        u64::from(volume.remove(Key::Name(&named))?)
                    }
                    (_, Ok(id)) => u64::from(volume.remove(Key::Id(id))?),
                    (named, _) => u64::from(volume.remove(Key::Name(&named?))?),
                }
            };
            report.removed += gone;
            if gone == 0 {
                report.missing.push(name);
            }
        }
        if self.expired {
            let SweepReport {
                expired,
                trash,
                unnamed,
                litter,
                ..
            } = volume.sweep()?;
            report.expired = expired;
            report.swept = trash + unnamed + litter;
        }
        bar.finish_and_clear();
        settings.format.print(&report, |report| {
            let missing: String = report
                .missing
                .iter()
                .map(|name| format!("{name} is not there\n"))
                .collect();
            let swept = match report.expired + report.swept {
                0 => String::new(),
                _ => format!(", {} expired, {} leftovers", report.expired, report.swept),
            };
            format!("{missing}{} removed{swept}\n", report.removed)
        })?;
        Ok(if report.missing.is_empty() || self.force {
            Outcome::Done
        } else {
            Outcome::NotFound
        })
    }
}
