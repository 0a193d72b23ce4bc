//! `rm`: names and what they own.

use serde::Serialize;
use vineyard_store::{Key, Name, ObjectId};

use crate::args::Settings;
use crate::exit::Outcome;
use crate::progress;

/// Remove names and the objects that they own; views that somebody still has stay valid
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Names, plain files, or ids of objects
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Remove everything whose name starts so: `--prefix runs/17/`
    #[arg(long)]
    prefix: bool,
    /// A name that is not there is no error
    #[arg(short, long)]
    force: bool,
}

#[derive(Serialize)]
struct Removed {
    removed: u64,
    missing: Vec<String>,
}

impl Rm {
    /// Removes them.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let volume = settings.volume()?;
        let mut report = Removed {
            removed: 0,
            missing: Vec::new(),
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
        bar.finish_and_clear();
        settings.format.print(&report, |report| {
            let missing: String = report
                .missing
                .iter()
                .map(|name| format!("{name} is not there\n"))
                .collect();
            format!("{missing}{} removed\n", report.removed)
        })?;
        Ok(if report.missing.is_empty() || self.force {
            Outcome::Done
        } else {
            Outcome::NotFound
        })
    }
}
