//! `charges`: the ledger, page by page.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::Serialize;
use vineyard_charge::survey::{Summary, Surveyor};
use vineyard_store::{ListOptions, Listing, Options, Volume};

use crate::args::Settings;
use crate::beneath;
use crate::bills::Bills;
use crate::bytes::human;
use crate::driver::{NodeBills, SOCKET};
use crate::exit::Outcome;
use crate::output::columns;
use crate::progress;

/// Who is charged for which bytes of a volume; needs root
#[derive(Debug, clap::Args)]
pub(crate) struct Charges {
    /// The volume's directory [default: --volume]
    #[arg(value_name = "VOLUME")]
    directory: Option<PathBuf>,
    /// Show every object
    #[arg(long)]
    objects: bool,
    /// Show every volume of this node, as its driver tells it: by its operator's socket [default: /run/vineyard/admin.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = SOCKET, conflicts_with_all = ["directory", "objects"])]
    driver: Option<PathBuf>,
}

#[derive(Serialize)]
struct ObjectRow {
    /// Its names; none for an unnamed object.
    names: Vec<String>,
    /// Below the volume's root.
    path: String,
    bytes: u64,
    owners: Vec<Share>,
}

#[derive(Serialize)]
struct Share {
    cgroup: u64,
    label: String,
    bytes: u64,
}

impl Charges {
    /// Surveys and prints.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        if let Some(socket) = &self.driver {
            let bar = progress::spinner("surveying");
            let bills = NodeBills::of(socket, true)?;
            bar.finish_and_clear();
            settings.format.print(&bills, NodeBills::table)?;
            return Ok(Outcome::Done);
        }
        let directory = self.directory.as_deref().unwrap_or(settings.directory());
        let bar = progress::spinner("surveying");
        let bills = Bills::of(directory)?;
        if !self.objects {
            bar.finish_and_clear();
            settings.format.print(&bills, Bills::table)?;
            return Ok(Outcome::Done);
        }
        let rows = objects(directory, &bills)?;
        bar.finish_and_clear();
        settings.format.print_rows(&rows, table)?;
        Ok(Outcome::Done)
    }
}

fn objects(directory: &Path, bills: &Bills) -> anyhow::Result<Vec<ObjectRow>> {
    let volume = std::sync::Arc::new(Volume::open(
        directory,
        Options {
            payer: None,
            create: false,
        },
    )?);
    let mut paths: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let sealed = Path::new(".vineyard/objects");
    for entry in std::fs::read_dir(directory.join(sealed))? {
        paths.insert(sealed.join(entry?.file_name()), Vec::new());
    }
    for entry in volume.list(&ListOptions::default())? {
        let entry = entry?;
        let path = match entry.what {
            Listing::Object(id, kind) => sealed.join(format!("{id}.{kind}")),
            Listing::Plain(_) => PathBuf::from(entry.name.as_str()),
            Listing::Stream | Listing::Foreign => continue,
        };
        paths.entry(path).or_default().push(entry.name.to_string());
    }
    let root = File::open(directory)?;
    let mut surveyor = Surveyor::open()?;
    let mut rows = Vec::with_capacity(paths.len());
    for (path, names) in paths {
        // Whoever writes to the volume may have put anything there; what is not a readable file has no bill.
        let Ok(file) = beneath::file(&root, &path, OFlag::O_RDONLY) else {
            continue;
        };
        let Summary {
            owners, present, ..
        } = surveyor.summary(file.as_fd())?;
        let share = |(owner, bytes): (vineyard_charge::CgroupId, u64)| Share {
            cgroup: owner.0,
            label: bills.label(owner.0),
            bytes,
        };
        rows.push(ObjectRow {
            names,
            path: path.display().to_string(),
            bytes: present,
            owners: owners.into_iter().map(share).collect(),
        });
    }
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
    Ok(rows)
}

fn table(rows: &[ObjectRow]) -> String {
    let cells = |row: &ObjectRow| {
        let name = if row.names.is_empty() {
            format!("({})", row.path)
        } else {
            row.names.join(", ")
        };
        let owners: Vec<String> = row
            .owners
            .iter()
            .map(|share| format!("{} {}", human(share.bytes), share.label))
            .collect();
        vec![name, human(row.bytes), owners.join(", ")]
    };
    columns(
        &["object", "bytes", "charged to"],
        &[1],
        rows.iter().map(cells),
    )
}
