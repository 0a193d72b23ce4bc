//! `fsck`: holds the whole volume against its format, and repairs what can be repaired without guessing.

use std::collections::HashSet;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, openat, readlinkat};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat};

use crate::error::Error;
use crate::format::{arrow, npy, pack, pickle, safetensors};
use crate::id::ObjectId;
use crate::kind::Kind;
use crate::list::{ListOptions, Listing};
use crate::mapping::Mapping;
use crate::name::{Name, ObjectFile};
use crate::object::Key;
use crate::pace::Pace;
use crate::remove::list_directory;
use crate::seal::refuse_holes;
use crate::sweep::parse_marker;
use crate::tree::{READ, SEALED_MODE};
use crate::volume::Volume;

/// What a check of the whole volume found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// Objects that were looked at.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that point to objects.
    pub names: u64,
    /// Plain files.
    pub plain: u64,
    /// Objects without a name. That is allowed.
    pub unnamed: u64,
    /// What breaks the format.
    pub problems: Vec<Problem>,
}

impl FsckReport {
    /// Whether nothing is left to complain about.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.iter().all(|p| p.repaired)
    }
}

/// Something that breaks the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, relative to the root.
    pub path: String,
    /// What.
    pub fault: Fault,
    /// More about it, for people.
    pub detail: String,
    /// Whether it is in order now.
    pub repaired: bool,
}

/// What can be wrong in a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// A file in the volume's own tree that does not belong there. Repair leaves it.
    Stray,
    /// A sealed object with another mode than 0444. Repair sets it.
    Mode,
    /// A sealed object with pages that were never allocated: they would be charged to whoever reads them.
    Holes,
    /// Content that does not keep the rules of its kind.
    Content,
    /// A name whose object is gone. Repair removes the name.
    Lost,
    /// A name whose target goes up too often or not often enough, so that other programs cannot follow it.
    Misplaced,
    /// A symlink that leads elsewhere. Repair leaves it.
    Foreign,
    /// A note about an object or name that is gone. Repair removes it.
    Orphan,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stray => "does not belong here",
            Self::Mode => "wrong mode",
            Self::Holes => "holes",
            Self::Content => "malformed content",
            Self::Lost => "lost",
            Self::Misplaced => "target has the wrong depth",
            Self::Foreign => "leads elsewhere",
            Self::Orphan => "orphan",
        })
    }
}

impl Volume {
    /// Checks every object, name and note.
    ///
    /// # Errors
    /// When the tree cannot be read. What is wrong in it is in the report.
    pub fn fsck(self: &Arc<Self>, repair: bool) -> Result<FsckReport, Error> {
        let mut check = Check {
            volume: self,
            repair,
            report: FsckReport::default(),
            unnamed: HashSet::new(),
        };
        check.objects()?;
        check.names()?;
        check.links()?;
        check.ttl()?;
        check.trash()?;
        check.report.unnamed = check.unnamed.len() as u64;
        Ok(check.report)
    }
}

struct Check<'v> {
    volume: &'v Arc<Volume>,
    repair: bool,
    report: FsckReport,
    /// Objects for which no name was seen yet.
    unnamed: HashSet<ObjectId>,
}

impl Check<'_> {
    fn problem(&mut self, path: String, fault: Fault, detail: impl fmt::Display, repaired: bool) {
        let detail = detail.to_string();
        self.report.problems.push(Problem {
            path,
            fault,
            detail,
            repaired,
        });
    }

    fn objects(&mut self) -> Result<(), Error> {
        let directory = self.volume.tree().objects.as_fd();
        for entry in list_directory(directory, ".vineyard/objects")? {
            let path = format!(".vineyard/objects/{entry}");
            let Some(object) = ObjectFile::parse(entry.as_bytes()) else {
                self.problem(path, Fault::Stray, "not <id>.<kind>", false);
                continue;
            };
            let file = match openat(directory, entry.as_str(), READ, Mode::empty()) {
                Ok(file) => file,
                // Removed meanwhile.
                Err(Errno::ENOENT) => continue,
                Err(errno) => {
                    self.problem(path, Fault::Stray, errno, false);
                    continue;
                }
            };
            self.object(&object, file.as_fd(), path)?;
        }
        Ok(())
    }

    fn object(
        &mut self,
        object: &ObjectFile,
        file: BorrowedFd<'_>,
        path: String,
    ) -> Result<(), Error> {
        let stat = fstat(file).map_err(|errno| Error::io(path.as_str(), errno))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            self.problem(path, Fault::Stray, "not a regular file", false);
            return Ok(());
        }
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        self.report.objects += 1;
        self.report.bytes += len;
        self.unnamed.insert(object.id);
        let mode = stat.st_mode & 0o7777;
        if mode != SEALED_MODE.bits() {
            let repaired = self.repair && fchmod(file, SEALED_MODE).is_ok();
            self.problem(
                path.clone(),
                Fault::Mode,
                format_args!("{mode:04o}, not 0444"),
                repaired,
            );
        }
        if let Err(error) = refuse_holes(file, len) {
            // To look at the content would allocate the holes.
            self.problem(path, Fault::Holes, error, false);
            return Ok(());
        }
        let size = usize::try_from(len).map_err(|_| Error::io(path.as_str(), Errno::EFBIG))?;
        let mapping = Mapping::new(file, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED)
            .map_err(|errno| Error::io(path.as_str(), errno))?;
        if let Err(why) = check_content(object.kind, mapping.as_slice()) {
            self.problem(path, Fault::Content, why, false);
        }
        Ok(())
    }

    fn names(&mut self) -> Result<(), Error> {
        for listed in self.volume.list(&ListOptions::default())? {
            let listed = listed?;
            let path = listed.name.to_string();
            match listed.what {
                Listing::Object(id, kind) => self.name(&listed.name, &ObjectFile::new(id, kind))?,
                Listing::Plain(_) => self.report.plain += 1,
                Listing::Foreign => {
                    self.problem(path, Fault::Foreign, "neither a name nor a file", false)
                }
                Listing::Stream => {
                    if let Err(error) = self.volume.check_end(&listed.name) {
                        self.problem(format!("{path}/.end"), Fault::Content, error, false);
                    }
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, name: &Name, object: &ObjectFile) -> Result<(), Error> {
        self.unnamed.remove(&object.id);
        let objects = self.volume.tree().objects.as_fd();
        if fstatat(objects, object.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) == Err(Errno::ENOENT) {
            let repaired = self.repair && self.volume.unname(name, object)?;
            self.problem(name.to_string(), Fault::Lost, object.as_str(), repaired);
            return Ok(());
        }
        self.report.names += 1;
        let (directory, last) = self
            .volume
            .tree()
            .parent(name)
            .map_err(|errno| Error::io(name.as_str(), errno))?;
        let parent = directory
            .as_ref()
            .map_or(self.volume.tree().root.as_fd(), |fd| fd.as_fd());
        let target = readlinkat(parent, last).unwrap_or_default();
        if target != std::ffi::OsStr::new(&name.target(object)) {
            let repaired = self.repair && self.volume.retarget(name, parent, last, object).is_ok();
            self.problem(
                name.to_string(),
                Fault::Misplaced,
                target.to_string_lossy(),
                repaired,
            );
        }
        Ok(())
    }

    fn links(&mut self) -> Result<(), Error> {
        for entry in list_directory(self.volume.tree().links.as_fd(), ".vineyard/links")? {
            let path = format!(".vineyard/links/{entry}");
            let Some(id) = ObjectId::parse(entry.as_bytes()) else {
                self.problem(path, Fault::Stray, "not an id", false);
                continue;
            };
            match self.volume.object_of(Key::Id(id)) {
                Ok(_) => {}
                Err(Error::NotFound { .. }) => {
                    let repaired = self.repair
                        && self
                            .volume
                            .forget_links(&ObjectFile::new(id, Kind::Raw), &Pace::free())
                            .is_ok();
                    self.problem(path, Fault::Orphan, "the object is gone", repaired);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn ttl(&mut self) -> Result<(), Error> {
        let directory = self.volume.tree().ttl.as_fd();
        for entry in list_directory(directory, ".vineyard/ttl")? {
            let path = format!(".vineyard/ttl/{entry}");
            // A marker whose object was removed is no fault: a sweep takes it away.
            if parse_marker(&entry).is_none() {
                self.problem(path, Fault::Stray, "not <seconds>.<id>.<kind>", false);
            }
        }
        Ok(())
    }

    fn trash(&mut self) -> Result<(), Error> {
        for entry in list_directory(self.volume.tree().trash.as_fd(), ".vineyard/trash")? {
            if ObjectFile::parse(entry.as_bytes()).is_none() {
                self.problem(
                    format!(".vineyard/trash/{entry}"),
                    Fault::Stray,
                    "not <id>.<kind>",
                    false,
                );
            }
        }
        Ok(())
    }
}

/// Checks that `bytes` keep the rules of `kind`.
fn check_content(kind: Kind, bytes: &[u8]) -> Result<(), String> {
    match kind {
        Kind::Text => std::str::from_utf8(bytes)
            .map(drop)
            .map_err(|e| e.to_string()),
        Kind::Npy => npy::Header::parse(bytes)
            .and_then(|header| header.check(bytes.len() as u64))
            .map_err(|e| e.to_string()),
        Kind::Arrow => arrow::check(bytes).map(drop).map_err(|e| e.to_string()),
        Kind::Safetensors => safetensors::check(bytes)
            .map(drop)
            .map_err(|e| e.to_string()),
        Kind::Pickle => pickle::Pickle::parse(bytes)
            .map(drop)
            .map_err(|e| e.to_string()),
        Kind::Pack => pack::check(bytes).map(drop).map_err(|e| e.to_string()),
        Kind::Raw | Kind::Other(_) => Ok(()),
    }
}
