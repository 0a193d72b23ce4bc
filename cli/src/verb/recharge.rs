//! `recharge`: another payer takes over the bill of a volume's objects.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use nix::fcntl::OFlag;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use vineyard_charge::recharge::{Large, Replace, SMALL};
use vineyard_charge::survey::Surveyor;
use vineyard_charge::{CgroupId, MemoryCgroup, Payer};

use crate::args::{self, Settings};
use crate::bytes::human;
use crate::exit::Outcome;
use crate::output::printable;
use crate::slack::Remount;
use crate::{beneath, progress};

const OBJECTS: &str = ".vineyard/objects";
const SCRATCH: &str = ".vineyard/tmp";
/// Small objects that are copied by one call.
const BATCH: usize = 1024;
/// Of how many errors the text is kept.
const NAMED: usize = 100;

/// Move the charge of a volume's sealed objects to the payer behind a socket; needs root
#[derive(Debug, clap::Args)]
pub(crate) struct Recharge {
    /// The socket of the payer that shall be charged
    #[arg(long, value_name = "SOCKET")]
    to: PathBuf,
    /// The cgroup directory of the payer's pod [default: the one of the process behind the socket]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

#[derive(Default, Serialize)]
struct Report {
    volume: String,
    payer_cgroup: String,
    objects: u64,
    /// Moved in place: every mapping stays valid.
    pulled_bytes: u64,
    /// Copied into new files: views of the old ones keep those.
    copied_bytes: u64,
    /// Objects that were copied while somebody had them open or mapped.
    still_viewed: u64,
    /// Still charged to somebody else.
    left_bytes: u64,
    /// The first hundred.
    errors: Vec<String>,
    failed: u64,
}

impl Report {
    fn fail(&mut self, object: &str, error: &dyn std::fmt::Display) {
        self.failed += 1;
        if self.errors.len() < NAMED {
            self.errors.push(format!("{object}: {error}"));
        }
    }
}

impl Recharge {
    /// Moves what can be moved.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let cgroup = match &self.cgroup {
            Some(directory) => MemoryCgroup::open(directory)?,
            None => peer_cgroup(&self.to)?,
        };
        let payer = args::payer(&self.to)?;
        let directory = settings.directory();
        // That it is a volume, and of which format.
        settings.volume()?;
        let root = File::open(directory)?;
        let mut work = Work {
            objects: beneath::directory(&root, Path::new(OBJECTS))?,
            scratch: beneath::directory(&root, Path::new(SCRATCH))?,
            payer: payer.as_ref(),
            owners: cgroup.subtree()?,
            surveyor: Surveyor::open()?,
            slack: Remount::of(directory),
            report: Report {
                volume: directory.display().to_string(),
                payer_cgroup: cgroup.directory().display().to_string(),
                ..Report::default()
            },
        };
        work.all(directory)?;
        let report = work.report;
        settings.format.print(&report, table)?;
        let is_complete = report.failed == 0 && report.left_bytes == 0;
        Ok(if is_complete {
            Outcome::Done
        } else {
            Outcome::ProblemsFound
        })
    }
}

/// The cgroup of whoever listens.
fn peer_cgroup(socket: &Path) -> anyhow::Result<MemoryCgroup> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("nobody listens at {}", socket.display()))?;
    let pid = getsockopt(&stream, PeerCredentials)?.pid();
    match u32::try_from(pid) {
        Ok(pid) if pid > 0 => Ok(MemoryCgroup::of_pid(pid)?),
        _ => bail!(
            "the payer lives in another pid namespace: name its cgroup's directory with --cgroup"
        ),
    }
}

struct Work<'a> {
    objects: File,
    scratch: File,
    payer: &'a dyn Payer,
    owners: Vec<CgroupId>,
    surveyor: Surveyor,
    slack: Option<Remount>,
    report: Report,
}

impl Work<'_> {
    fn all(&mut self, directory: &Path) -> anyhow::Result<()> {
        let mut large = Vec::new();
        let mut small = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(directory.join(OBJECTS))? {
            let entry = entry?;
            // Removed meanwhile.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if !metadata.is_file() || metadata.blocks() == 0 {
                continue;
            }
            self.report.objects += 1;
            let bytes = metadata.blocks() * 512;
            total += bytes;
            let list = if metadata.len() > SMALL {
                &mut large
            } else {
                &mut small
            };
            list.push((entry.file_name(), bytes));
        }
        let bar = progress::bytes("recharging", total);
        for (name, bytes) in large {
            if let Err(error) = self.large(Path::new(&name)) {
                self.report.fail(&name.to_string_lossy(), &error);
            }
            bar.inc(bytes);
        }
        for batch in small.chunks(BATCH) {
            self.small(batch, &bar);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn large(&mut self, name: &Path) -> anyhow::Result<()> {
        let file = beneath::file(&self.objects, name, OFlag::O_RDONLY)?;
        // A sealed object has no writer.
        let exclusive = beneath::file(&self.objects, name, OFlag::O_RDWR).ok();
        let large = Large {
            file: file.as_fd(),
            exclusive: exclusive.as_ref().map(AsFd::as_fd),
            stays: &|owner| self.owners.contains(&owner),
            slack: self.slack.as_ref().map(|slack| slack as _),
        };
        let moved = large.recharge(&mut self.surveyor, self.payer)?;
        self.report.pulled_bytes += moved.bytes;
        self.report.left_bytes += moved.left;
        Ok(())
    }

    /// Copies those that are charged to somebody else.
    fn small(&mut self, batch: &[(OsString, u64)], bar: &ProgressBar) {
        let mut names = Vec::new();
        for (name, bytes) in batch {
            match self.foreign(Path::new(name)) {
                Ok(0) => bar.inc(*bytes),
                Ok(_) => names.push((name.clone(), *bytes)),
                // Removed meanwhile.
                Err(error) if error.downcast_ref() == Some(&nix::errno::Errno::ENOENT) => {
                    bar.inc(*bytes)
                }
                Err(error) => self.report.fail(&name.to_string_lossy(), &error),
            }
        }
        let replace = Replace {
            directory: self.objects.as_fd(),
            scratch: self.scratch.as_fd(),
        };
        let only_names: Vec<OsString> = names.iter().map(|(name, _)| name.clone()).collect();
        for ((name, bytes), result) in names.iter().zip(replace.copy(&only_names, self.payer)) {
            match result {
                Ok(copied) => {
                    self.report.copied_bytes += copied.bytes;
                    self.report.still_viewed += u64::from(copied.still_viewed);
                }
                Err(error) => {
                    self.report.left_bytes += bytes;
                    self.report.fail(&name.to_string_lossy(), &error);
                }
            }
            bar.inc(*bytes);
        }
    }

    /// Bytes that somebody else is charged for.
    fn foreign(&mut self, name: &Path) -> anyhow::Result<u64> {
        let file = beneath::file(&self.objects, name, OFlag::O_RDONLY)?;
        let summary = self.surveyor.summary(file.as_fd())?;
        let foreign = summary
            .owners
            .iter()
            .filter(|(owner, _)| !self.owners.contains(owner));
        Ok(foreign.map(|(_, bytes)| bytes).sum())
    }
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{} objects: {} moved in place and {} copied to {}\n",
        report.objects,
        human(report.pulled_bytes),
        human(report.copied_bytes),
        report.payer_cgroup
    );
    if report.still_viewed > 0 {
        text += &format!(
            "{} of the copied are still viewed: the views keep the old bytes, and whoever paid for them still does\n",
            report.still_viewed
        );
    }
    if report.left_bytes > 0 {
        text += &format!("{} are still charged to others\n", human(report.left_bytes));
    }
    for error in &report.errors {
        text += &format!("{}\n", printable(error));
    }
    text
}
