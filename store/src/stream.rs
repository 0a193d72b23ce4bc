//! Streams: a directory of sealed parts and an end mark. Several producers may append; readers see each part as soon
//! as it is sealed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::io::IoSlice;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode as FileMode, fstatat};
use serde::{Deserialize, Serialize};

use crate::consumed;
use crate::error::Error;
use crate::get::{read_rest, regular};
use crate::kind::Kind;
use crate::name::Name;
use crate::object::{Key, Mode, Object, PutOptions, Ref};
use crate::tree::READ;
use crate::volume::Volume;

const END: &str = ".end";
/// Most bytes of an end mark that are read.
const MAX_END: u64 = 64 << 10;

/// The end mark of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    parts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Appends parts to a stream. Dropping it ends nothing: say `end` or `fail`.
#[derive(Debug)]
pub struct StreamWriter {
    volume: Arc<Volume>,
    name: Name,
    directory: OwnedFd,
    next: u64,
}

/// Reads the parts of a stream in order.
#[derive(Debug)]
pub struct StreamReader {
    volume: Arc<Volume>,
    name: Name,
    next: u64,
    consume: bool,
    mode: Mode,
}

fn part_name(stream: &Name, index: u64) -> Result<Name, Error> {
    Name::new(format!("{stream}/{index:08}"))
}

impl Volume {
    /// Opens a stream for appending and makes it when there is none.
    ///
    /// # Errors
    /// [`Error::Exists`] when it has ended already, [`Error::Foreign`] when `name` is something else.
    pub fn stream_writer(self: &Arc<Self>, name: &Name) -> Result<StreamWriter, Error> {
        let at = |errno| match errno {
            Errno::ENOTDIR | Errno::ELOOP => Error::Exists {
                name: name.to_string(),
            },
            errno => self.failed(name.as_str(), errno, 0),
        };
        let directory = self.tree().make_directory(name.as_str()).map_err(at)?;
        let flags = OFlag::O_WRONLY
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        match openat(
            directory.as_fd(),
            ".stream",
            flags,
            FileMode::from_bits_truncate(0o444),
        ) {
            // Another user's mark is read-only.
            Ok(_) | Err(Errno::EACCES) => {}
            Err(errno) => return Err(at(errno)),
        }
        if read_end(directory.as_fd(), name)?.is_some() {
            return Err(Error::Exists {
                name: format!("the end of stream {name}"),
            });
        }
        Ok(StreamWriter {
            volume: Arc::clone(self),
            name: name.clone(),
            next: consumed::read(directory.as_fd())?,
            directory,
        })
    }

    /// Opens a stream for reading, from its first part on. It need not exist yet.
    ///
    /// # Errors
    /// [`Error::InvalidName`] when the name leaves no room for its parts.
    pub fn stream_reader(self: &Arc<Self>, name: &Name) -> Result<StreamReader, Error> {
        part_name(name, 0)?;
        Ok(StreamReader {
            volume: Arc::clone(self),
            name: name.clone(),
            next: 0,
            consume: false,
            mode: Mode::default(),
        })
    }

    /// Whether the end mark of a stream can be read, if there is one.
    pub(crate) fn check_end(&self, stream: &Name) -> Result<(), Error> {
        let directory = self
            .tree()
            .directory(stream.as_str())
            .map_err(|errno| Error::io(stream.as_str(), errno))?;
        read_end(directory.as_fd(), stream).map(drop)
    }

    /// Whether `name` is a stream.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn is_stream(&self, name: &Name) -> Result<bool, Error> {
        let directory = match self.tree().directory(name.as_str()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(false),
            Err(errno) => return Err(Error::io(name.as_str(), errno)),
        };
        match fstatat(directory.as_fd(), ".stream", AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(Error::io(name.as_str(), errno)),
        }
    }
}

impl StreamWriter {
    /// Puts the next part and returns it; its name is the stream's and its index.
    ///
    /// # Errors
    /// As `put`; [`Error::Exists`] when the stream has ended, [`Error::NotFound`] when it was removed.
    pub fn append(&mut self, kind: Kind, content: &[IoSlice<'_>]) -> Result<Ref, Error> {
        self.refuse_ended()?;
        let part = self.volume.put(kind, content, &PutOptions::default())?;
        let named = self.adopt(&part);
        if named.is_err() {
            let _ = self.volume.remove(Key::from(&part));
        }
        named
    }

    /// Makes a sealed object without a name the next part.
    ///
    /// # Errors
    /// [`Error::Exists`] when the stream has ended.
    pub fn adopt(&mut self, part: &Ref) -> Result<Ref, Error> {
        let object = crate::name::ObjectFile::new(part.id, part.kind);
        loop {
            // To make the symlink is to take the index: of several producers one succeeds.
            let name = part_name(&self.name, self.next)?;
            match self.volume.point(&name, &object, false) {
                Ok(()) => {
                    self.next += 1;
                    let consumed = consumed::read(self.directory.as_fd())?;
                    // The index was free because its part had been read and removed: nobody looks there again.
                    if consumed >= self.next && self.volume.unname(&name, &object)? {
                        self.next = consumed;
                        continue;
                    }
                    return Ok(Ref {
                        name: Some(name),
                        ..part.clone()
                    });
                }
                Err(Error::Exists { .. }) => self.next += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Refuses to go on with a stream that has ended, or that was removed: another one may have its name by now.
    fn refuse_ended(&self) -> Result<(), Error> {
        let stat = nix::sys::stat::fstat(&self.directory)
            .map_err(|errno| Error::io(self.name.as_str(), errno))?;
        if stat.st_nlink == 0 {
            return Err(Error::not_found(self.name.as_str()));
        }
        match read_end(self.directory.as_fd(), &self.name)? {
            None => Ok(()),
            Some(_) => Err(Error::Exists {
                name: format!("the end of stream {}", self.name),
            }),
        }
    }

    /// Says that no part follows. Returns how many there are.
    ///
    /// # Errors
    /// [`Error::Exists`] when the stream has ended already.
    pub fn end(self) -> Result<u64, Error> {
        self.finish(None)
    }

    /// Says that no part follows because the producer failed: readers get `message` as an error after the last part.
    ///
    /// # Errors
    /// [`Error::Exists`] when the stream has ended already.
    pub fn fail(self, message: &str) -> Result<u64, Error> {
        self.finish(Some(message.chars().take(4096).collect()))
    }

    fn finish(mut self, error: Option<String>) -> Result<u64, Error> {
        self.refuse_ended()?;
        self.next = self.next.max(consumed::read(self.directory.as_fd())?);
        // Other producers may have appended too.
        while self.volume.exists(&part_name(&self.name, self.next)?)? {
            self.next += 1;
        }
        let end = End {
            parts: self.next,
            error,
        };
        let text = serde_json::to_vec(&end).map_err(|e| Error::corrupt(END, e.to_string()))?;
        let tree = self.volume.tree();
        let file = tree.unnamed()?;
        self.volume
            .write_all(file.as_fd(), &[IoSlice::new(&text)], 0)?;
        match tree.link_as(file.as_fd(), self.directory.as_fd(), END) {
            Ok(()) => Ok(end.parts),
            Err(Errno::EEXIST) => Err(Error::Exists {
                name: format!("the end of stream {}", self.name),
            }),
            Err(errno) => Err(self.volume.failed(self.name.as_str(), errno, 0)),
        }
    }
}

impl StreamReader {
    /// Removes each part as it is read; what was got of it stays valid. Each part is returned at most once, and a
    /// reader that starts anew goes on after the last one that was.
    #[must_use]
    pub fn consuming(self) -> Self {
        Self {
            consume: true,
            ..self
        }
    }

    /// How large parts are mapped.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Starts at this part.
    #[must_use]
    pub fn starting_at(self, part: u64) -> Self {
        Self { next: part, ..self }
    }

    /// The part that `next` returns next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next part; `None` after the last one.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::StreamFailed`] when the producer failed, [`Error::Lost`] when a part is gone.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Object>, Error> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            if let Some(part) = self.take()? {
                return Ok(Some(part));
            }
            let name = part_name(&self.name, self.next)?;
            let (mut watch, deepest) = self.volume.watch_towards(&name)?;
            loop {
                let seen = watch.seen();
                // First the mark, then the part: a part that is older than the mark is seen then.
                let end = self.end_mark()?;
                if let Some(part) = self.take()? {
                    return Ok(Some(part));
                }
                match end {
                    Some(end) if self.next < end.parts => {
                        let missing = self.next;
                        // Another consuming reader may have it.
                        self.skip_consumed()?;
                        if self.next == missing {
                            return Err(Error::Lost {
                                key: part_name(&self.name, missing)?.to_string(),
                            });
                        }
                        continue;
                    }
                    Some(End {
                        error: Some(message),
                        ..
                    }) => {
                        return Err(Error::StreamFailed {
                            stream: self.name.to_string(),
                            message,
                        });
                    }
                    Some(_) => return Ok(None),
                    None => {}
                }
                if !watch.wait(seen, until) {
                    return Err(Error::Timeout {
                        what: format!("{name} is not there yet"),
                    });
                }
                if !deepest {
                    break;
                }
            }
        }
    }

    fn take(&mut self) -> Result<Option<Object>, Error> {
        loop {
            let directory = self.skip_consumed()?;
            let name = part_name(&self.name, self.next)?;
            let part = match self.volume.get(Key::Name(&name), self.mode) {
                Ok(part) => part,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            self.next += 1;
            // Otherwise another reader has it, or its producer moved it behind the mark.
            if !self.consume || self.claim(&name, directory)? {
                return Ok(Some(part));
            }
        }
    }

    /// Removes the part before `next`; of several readers one succeeds.
    fn claim(&self, part: &Name, directory: Option<OwnedFd>) -> Result<bool, Error> {
        let open = || self.volume.tree().directory(self.name.as_str());
        let directory = directory.map_or_else(open, Ok);
        let directory = directory.map_err(|errno| Error::io(self.name.as_str(), errno))?;
        consumed::advance(self.volume.tree(), directory.as_fd(), self.next)?;
        self.volume.remove(Key::Name(part))
    }

    /// A consuming reader starts after what was consumed before. Returns its directory then, opened for this part alone.
    fn skip_consumed(&mut self) -> Result<Option<OwnedFd>, Error> {
        if !self.consume {
            return Ok(None);
        }
        let directory = self.volume.tree().directory(self.name.as_str()).ok();
        if let Some(directory) = &directory {
            self.next = self.next.max(consumed::read(directory.as_fd())?);
        }
        Ok(directory)
    }

    fn end_mark(&self) -> Result<Option<End>, Error> {
        match self.volume.tree().directory(self.name.as_str()) {
            Ok(directory) => read_end(directory.as_fd(), &self.name),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => Err(Error::Foreign {
                key: self.name.to_string(),
                why: "it is not a stream",
            }),
            Err(errno) => Err(Error::io(self.name.as_str(), errno)),
        }
    }
}

fn read_end(directory: BorrowedFd<'_>, stream: &Name) -> Result<Option<End>, Error> {
    let key = format!("{stream}/{END}");
    let file = match openat(directory, END, READ, FileMode::empty()) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(Error::io(key, errno)),
    };
    let stat = nix::sys::stat::fstat(&file).map_err(|errno| Error::io(key.as_str(), errno))?;
    let len = regular(&stat, &key)?;
    if len > MAX_END {
        return Err(Error::corrupt(key, "the end mark is too long"));
    }
    let mut text = Vec::new();
    read_rest(file.as_fd(), &mut text, len, &key)?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::corrupt(key, e.to_string()))
}
