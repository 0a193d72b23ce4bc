//! `stat`: what an object is, and the volume as a whole.

use std::time::UNIX_EPOCH;

use serde::Serialize;
use vineyard_store::{Key, Name, ObjectId, Usage};

use crate::args::Settings;
use crate::bytes::{age, human};
use crate::exit::Outcome;
use crate::output::columns;

/// Say what an object is; without a name, what the volume holds
#[derive(Debug, clap::Args)]
pub(crate) struct Stat {
    /// A name or an object's id
    names: Vec<String>,
}

#[derive(Serialize)]
struct ObjectRow {
    name: String,
    id: Option<String>,
    kind: String,
    bytes: u64,
    allocated_bytes: u64,
    /// Seconds since 1970.
    modified: f64,
    uid: u32,
    #[serde(skip)]
    age: String,
}

#[derive(Serialize)]
struct VolumeRow {
    volume: String,
    capacity_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    trash_bytes: u64,
    trash_objects: u64,
    free_files: u64,
}

impl Stat {
    /// Prints it.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let volume = settings.volume()?;
        if self.names.is_empty() {
            let Usage {
                capacity,
                used,
                free,
                trash,
                trash_objects,
                free_files,
            } = volume.usage()?;
            let row = VolumeRow {
                volume: volume.root().display().to_string(),
                capacity_bytes: capacity,
                used_bytes: used,
                free_bytes: free,
                trash_bytes: trash,
                trash_objects,
                free_files,
            };
            settings.format.print(&row, |row| {
                let pairs = [
                    ("volume", row.volume.clone()),
                    ("capacity", human(row.capacity_bytes)),
                    ("used", human(row.used_bytes)),
                    ("free", human(row.free_bytes)),
                    (
                        "removed, still mapped",
                        format!(
                            "{} in {} objects",
                            human(row.trash_bytes),
                            row.trash_objects
                        ),
                    ),
                    ("files that can be made", row.free_files.to_string()),
                ];
                pairs
                    .iter()
                    .map(|(key, value)| format!("{key:<24}{value}\n"))
                    .collect()
            })?;
            return Ok(Outcome::Done);
        }
        let mut rows = Vec::new();
        for name in self.names {
            let stat = match (Name::new(name.as_str()), name.parse::<ObjectId>()) {
                (Ok(named), _) if volume.exists(&named)? => volume.stat(Key::Name(&named))?,
                (_, Ok(id)) => volume.stat(Key::Id(id))?,
                (named, _) => volume.stat(Key::Name(&named?))?,
            };
            rows.push(ObjectRow {
                name,
                id: stat.id.map(|id| id.to_string()),
                kind: stat.kind.to_string(),
                bytes: stat.len,
                allocated_bytes: stat.allocated,
                modified: stat
                    .modified
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs_f64(),
                uid: stat.uid,
                age: age(stat.modified),
            });
        }
        settings.format.print_rows(&rows, |rows| {
            columns(
                &["name", "id", "kind", "bytes", "allocated", "age", "uid"],
                &[3, 4, 5, 6],
                rows.iter().map(|row| {
                    vec![
                        row.name.clone(),
                        row.id.clone().unwrap_or_else(|| "(plain file)".into()),
                        row.kind.clone(),
                        row.bytes.to_string(),
                        human(row.allocated_bytes),
                        row.age.clone(),
                        row.uid.to_string(),
                    ]
                }),
            )
        })?;
        Ok(Outcome::Done)
    }
}
