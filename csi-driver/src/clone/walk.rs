//! The order of a copy, so that it is one picture although the source goes on changing.
//!
//! First what users see: directories, plain files, and names, each with the object that it points to. Then `.vineyard`: the
//! objects that were sealed before the copy began (of later ones, those with a name are there already), then notes of further
//! names, of times to live and of unfinished operations: each was made before what it is about, so none is missing. The trash is left out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::symlinkat;
use vineyard_charge::Payer;

use super::attributes::{Attributes, apply_to_symlink};
use super::files::{Added, Files, beneath};
use super::{Error, Progress, Report};

/// The volume format's own directory, and those in it.
const OWN: &str = ".vineyard";
const OBJECTS: &str = ".vineyard/objects";
const TRASH: &str = ".vineyard/trash";

/// Made last in a stream: whoever sees it sees all parts.
const END: &str = ".end";

/// Looks at a name that is re-pointed meanwhile, before it is copied as it is.
const LOOKS: usize = 16;

/// One copy.
pub(super) struct Walk<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    progress: &'a Progress,
    files: Files<'a>,
    /// The objects of the source and of the copy, when the source is a store.
    objects: Option<(OwnedFd, OwnedFd)>,
    began: TimeSpec,
}

enum Step {
    Enter(PathBuf),
    Leave(PathBuf, Attributes),
}

/// A directory that is being copied.
struct Here<'p> {
    path: &'p Path,
    from: OwnedFd,
    to: OwnedFd,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        from: BorrowedFd<'a>,
        to: BorrowedFd<'a>,
        payer: &'a dyn Payer,
        progress: &'a Progress,
    ) -> Result<Self, Error> {
        let failed = |errno| Error::system("begin", Path::new("."), errno);
        // Never behind the times of files, some of which are coarser.
        let began = clock_gettime(ClockId::CLOCK_REALTIME).map_err(failed)?;
        let mut walk = Self {
            from,
            to,
            progress,
            files: Files::new(payer, progress, to),
            objects: None,
            began,
        };
        walk.objects = walk.open_objects()?;
        Ok(walk)
    }

    pub(super) fn run(mut self) -> Result<Report, Error> {
        self.tree(PathBuf::from("."))?;
        if self.objects.is_some() {
            self.tree(PathBuf::from(OWN))?;
        }
        self.files.flush()?;
        Ok(self.files.report)
    }

    fn open_objects(&self) -> Result<Option<(OwnedFd, OwnedFd)>, Error> {
        let path = Path::new(OBJECTS);
        let from = match beneath(self.from, path, OFlag::O_DIRECTORY) {
            // No store, or a strange one: then nothing in it means anything to us.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => return Ok(None),
            other => other.map_err(|errno| Error::system("open", path, errno))?,
        };
        for path in [OWN, OBJECTS] {
            make(self.to, Path::new(path))?;
        }
        let to = beneath(self.to, path, OFlag::O_DIRECTORY);
        let to = to.map_err(|errno| Error::system("open", path, errno))?;
        Ok(Some((from, to)))
    }

    fn tree(&mut self, top: PathBuf) -> Result<(), Error> {
        let mut steps = vec![Step::Enter(top)];
        while let Some(step) = steps.pop() {
            self.progress.check()?;
            match step {
                Step::Enter(path) => {
                    let Some((attributes, below)) = self.directory(&path)? else {
                        continue;
                    };
                    steps.push(Step::Leave(path, attributes));
                    steps.extend(below.into_iter().map(Step::Enter));
                }
                Step::Leave(path, attributes) => {
                    let copy = beneath(self.to, &path, OFlag::O_DIRECTORY);
                    let copy = copy.map_err(|errno| Error::system("open", &path, errno))?;
                    attributes.apply(&File::from(copy), &path)?;
                }
            }
        }
        Ok(())
    }

    /// Copies everything in one directory but the directories in it, which it returns with its own attributes. `None`: it is gone.
    fn directory(&mut self, path: &Path) -> Result<Option<(Attributes, Vec<PathBuf>)>, Error> {
        let failed = |doing| move |errno: Errno| Error::system(doing, path, errno);
        let from = match beneath(self.from, path, OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => return Ok(None),
            other => other.map_err(failed("open"))?,
        };
        let stat = fstat(&from).map_err(failed("stat"))?;
        if path != Path::new(".") {
            make(self.to, path)?;
            self.files.report.directories += 1;
        }
        let to = beneath(self.to, path, OFlag::O_DIRECTORY).map_err(failed("open"))?;
        let from = File::from(from);
        let attributes = Attributes::of(&from, &stat, path)?;
        let here = Here {
            path,
            from: from.into(),
            to,
        };
        let mut below = Vec::new();
        if path != Path::new(TRASH) && self.entries(&here, Some(&mut below))? {
            // Everything before the end was there when we saw it, but not when we began, perhaps.
            self.entries(&here, None)?;
        }
        if path == Path::new(OWN) {
            // The last one is taken first.
            below.sort_by_key(|path| match path.file_name().map(OsStr::as_bytes) {
                Some(b"objects") => 3,
                Some(b"links") => 2,
                Some(b"ttl") => 1,
                _ => 0,
            });
        }
        Ok(Some((attributes, below)))
    }

    /// Copies the entries of a directory that the copy does not have. Returns whether it is a stream with its end.
    fn entries(
        &mut self,
        here: &Here<'_>,
        mut below: Option<&mut Vec<PathBuf>>,
    ) -> Result<bool, Error> {
        let failed = |doing| move |errno: Errno| Error::system(doing, here.path, errno);
        let again = beneath(here.from.as_fd(), ".", OFlag::O_DIRECTORY).map_err(failed("open"))?;
        let mut entries = Dir::from_fd(again).map_err(failed("read"))?;
        let mut is_ended = false;
        for entry in entries.iter() {
            let entry = entry.map_err(failed("read"))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = match fstatat(&here.from, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => continue,
                other => other.map_err(failed("stat"))?,
            };
            let path = match here.path == Path::new(".") {
                true => PathBuf::from(name),
                false => here.path.join(name),
            };
            match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR if self.objects.is_some() && path == Path::new(OWN) => {}
                SFlag::S_IFDIR => {
                    if let Some(below) = &mut below {
                        below.push(path);
                    }
                }
                SFlag::S_IFLNK => self.symlink(here, name, &path)?,
                // Of what was sealed since the copy began, what has a name is there already.
                SFlag::S_IFREG if here.path == Path::new(OBJECTS) && !self.was_sealed(&stat) => {}
                SFlag::S_IFREG => {
                    let (from, to) = (here.from.as_fd(), here.to.as_fd());
                    self.files.add(from, to, name, &path)?;
                    is_ended |= name == END;
                }
                _ if below.is_some() => self.files.report.skipped += 1,
                _ => {}
            }
        }
        Ok(is_ended)
    }

    /// Whether nothing but reading happened to a file since the copy began.
    fn was_sealed(&self, stat: &FileStat) -> bool {
        TimeSpec::new(stat.st_ctime, stat.st_ctime_nsec) <= self.began
    }

    fn symlink(&mut self, here: &Here<'_>, name: &OsStr, path: &Path) -> Result<(), Error> {
        let Some(target) = self.settled_target(here, name)? else {
            return Ok(());
        };
        let failed = |errno| Error::system("copy", path, errno);
        match symlinkat(target.as_os_str(), &here.to, name) {
            Err(Errno::EEXIST) => return Ok(()),
            other => other.map_err(failed)?,
        }
        self.files.report.symlinks += 1;
        // Whatever has its place now, ours keeps the times that it has.
        match fstatat(&here.from, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => apply_to_symlink(here.to.as_fd(), name, &stat).map_err(failed),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// The target of a symlink; if that is an object, the copy has it then. `None`: it is no symlink any more.
    fn settled_target(&mut self, here: &Here<'_>, name: &OsStr) -> Result<Option<OsString>, Error> {
        let mut before = None;
        for _ in 0..LOOKS {
            let target = match readlinkat(&here.from, name) {
                Err(Errno::ENOENT | Errno::EINVAL) => return Ok(None),
                other => {
                    other.map_err(|errno| Error::system("read", &here.path.join(name), errno))?
                }
            };
            let is_there = match object_of(&target) {
                Some(object) if !here.path.starts_with(OWN) => self.object(object)?,
                _ => true,
            };
            // It still points to an object that is not there: a lost name, here and there.
            if is_there || before.as_ref() == Some(&target) {
                return Ok(Some(target));
            }
            before = Some(target);
        }
        Ok(before)
    }

    /// Copies an object. Returns whether the copy has it.
    fn object(&mut self, object: &OsStr) -> Result<bool, Error> {
        let Some((from, to)) = &self.objects else {
            return Ok(true);
        };
        if fstatat(to, object, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
            return Ok(true);
        }
        let path = Path::new(OBJECTS).join(object);
        let added = self.files.add(from.as_fd(), to.as_fd(), object, &path)?;
        Ok(added != Added::Vanished)
    }
}

/// Makes a directory of the copy, which gets its attributes when everything is in it.
fn make(to: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    match mkdirat(to, path, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => Ok(()),
        other => other.map_err(|errno| Error::system("make", path, errno)),
    }
}

/// The object that a name with this target points to.
fn object_of(target: &OsStr) -> Option<&OsStr> {
    let mut rest = target.as_bytes();
    while let Some(above) = rest.strip_prefix(b"../") {
        rest = above;
    }
    let object = rest.strip_prefix(b".vineyard/objects/")?;
    let plain = !object.is_empty() && !object.contains(&b'/') && object != b"." && object != b"..";
    plain.then(|| OsStr::from_bytes(object))
}
