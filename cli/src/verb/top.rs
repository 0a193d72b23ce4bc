//! `top`: the volume's use, its largest objects and who is charged, again and again.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use vineyard_store::{ListOptions, Volume};

use crate::args::Settings;
use crate::bills::Bills;
use crate::bytes::{age, human, parse_duration};
use crate::driver::{NodeBills, SOCKET};
use crate::exit::Outcome;
use crate::output::{Format, columns};

/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show the volume's use, its largest objects and, as root, who is charged; again and again
#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    /// Look once
    #[arg(long)]
    once: bool,
    /// Time between two looks; longer when looking is expensive
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = parse_duration)]
    interval: Duration,
    /// How many objects
    #[arg(long, default_value_t = 20)]
    rows: usize,
    /// Show every volume of this node, as its driver tells it: by its operator's socket [default: /run/vineyard/admin.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = SOCKET)]
    driver: Option<PathBuf>,
}

#[derive(Serialize)]
struct Look {
    volume: String,
    capacity_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    trash_bytes: u64,
    trash_objects: u64,
    names: usize,
    /// Largest first.
    objects: Vec<ObjectRow>,
    bills: Option<Bills>,
    /// Why there are no bills.
    no_bills: Option<String>,
}

#[derive(Serialize)]
struct ObjectRow {
    name: String,
    kind: String,
    bytes: u64,
    #[serde(skip)]
    age: String,
}

impl Top {
    /// Looks until it is stopped.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        if let Some(socket) = &self.driver {
            // The last surveys: nobody should be surveyed again and again.
            return self.again(settings, || NodeBills::of(socket, false), NodeBills::table);
        }
        let volume = settings.volume()?;
        let look = || look(&volume, settings.directory(), self.rows);
        self.again(settings, look, table)
    }

    fn again<T: Serialize>(
        &self,
        settings: &Settings,
        look: impl Fn() -> anyhow::Result<T>,
        table: impl Fn(&T) -> String,
    ) -> anyhow::Result<Outcome> {
        loop {
            let start = Instant::now();
            let seen = look()?;
            let cost = start.elapsed();
            if settings.format == Format::Table && !self.once && io::stdout().is_terminal() {
                io::stdout().write_all(CLEAR.as_bytes())?;
            }
            settings.format.print(&seen, &table)?;
            io::stdout().flush()?;
            if self.once {
                return Ok(Outcome::Done);
            }
            // Looking at a large volume must not become its main load.
            thread::sleep(self.interval.max(4 * cost));
        }
    }
}

fn look(volume: &Arc<Volume>, directory: &Path, rows: usize) -> anyhow::Result<Look> {
    let usage = volume.usage()?;
    let mut objects = Vec::new();
    for entry in volume.list(&ListOptions {
        stat: true,
        ..ListOptions::default()
    })? {
        let entry = entry?;
        if let Some(stat) = entry.stat {
            objects.push((stat.len, entry.name, stat.kind, stat.modified));
        }
    }
    let names = objects.len();
    objects.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.as_str().cmp(b.1.as_str())));
    objects.truncate(rows);
    let (bills, no_bills) = match Bills::of(directory) {
        Ok(bills) => (Some(bills), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Ok(Look {
        volume: directory.display().to_string(),
        capacity_bytes: usage.capacity,
        used_bytes: usage.used,
        free_bytes: usage.free,
        trash_bytes: usage.trash,
        trash_objects: usage.trash_objects,
        names,
        objects: objects
            .into_iter()
            .map(|(bytes, name, kind, modified)| ObjectRow {
                name: name.to_string(),
                kind: kind.to_string(),
                bytes,
                age: age(modified),
            })
            .collect(),
        bills,
        no_bills,
    })
}

fn table(look: &Look) -> String {
    let mut text = format!(
        "{}: {} of {} used, {} free, {} names\n",
        look.volume,
        human(look.used_bytes),
        human(look.capacity_bytes),
        human(look.free_bytes),
        look.names
    );
    if look.trash_objects > 0 {
        text += &format!(
            "{} in {} removed objects that are still mapped\n",
            human(look.trash_bytes),
            look.trash_objects
        );
    }
    text.push('\n');
    match (&look.bills, &look.no_bills) {
        (Some(bills), _) => text += &bills.ledger(),
        (None, Some(why)) => text += &format!("no bill: {why}\n"),
        (None, None) => {}
    }
    text.push('\n');
    text += &columns(
        &["object", "kind", "size", "age"],
        &[2, 3],
        look.objects.iter().map(|row| {
            vec![
                row.name.clone(),
                row.kind.clone(),
                human(row.bytes),
                row.age.clone(),
            ]
        }),
    );
    text
}
