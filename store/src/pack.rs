//! `put_many`, and members of packs: masses of small values in one file.

use std::cmp::Ordering;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use nix::sys::stat::fstat;

use crate::error::Error;
use crate::format::pack::{self, Entry, Footer, TailBuilder};
use crate::format::{Malformed, padding};
use crate::get::{Found, MAX_READ, read_at, refuse_sparse, regular};
use crate::id::ObjectId;
use crate::kind::Kind;
use crate::mapping::Mapping;
use crate::name::{MAX_NAME, Name};
use crate::object::{Content, Key, Mode, Object, PutOptions, Ref};
use crate::volume::Volume;

/// So many entries of a table are read at once.
const BLOCK: usize = 128;

/// A member for [`Volume::put_many`]: its key, its kind, its content.
pub type Member<'a> = (Option<&'a str>, Kind, &'a [IoSlice<'a>]);

/// An open pack: mapped, its tables checked.
#[derive(Debug)]
pub struct Pack {
    /// The id of the pack itself.
    pub id: ObjectId,
    mapping: Mapping,
    footer: Footer,
}

impl Volume {
    /// Puts many values as one object, a pack. A member is got as `<name of the pack>/<key>`; a member without a key has
    /// its index as key, in 8 digits or more.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a key that could not be part of a name, [`Error::Exists`] for a key that comes twice,
    /// otherwise as `put`.
    pub fn put_many(&self, members: &[Member<'_>], options: &PutOptions) -> Result<Ref, Error> {
        let mut keys = Vec::with_capacity(members.len());
        for (index, (key, ..)) in members.iter().enumerate() {
            let key = key.map_or_else(|| format!("{index:08}"), ToOwned::to_owned);
            keys.push(Name::new(key)?);
        }
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by(|a, b| keys[*a].cmp(&keys[*b]));
        if let Some(twice) = order.windows(2).find(|w| keys[w[0]] == keys[w[1]]) {
            return Err(Error::Exists {
                name: keys[twice[0]].to_string(),
            });
        }
        let broken = |e: Malformed| Error::corrupt("pack", e.to_string());
        let mut tail = TailBuilder::default();
        let mut slices = Vec::with_capacity(members.len() * 2 + 1);
        let mut offset = 0_u64;
        for index in order {
            let (_, kind, content) = &members[index];
            let len: u64 = content.iter().map(|s| s.len() as u64).sum();
            tail.member(offset, len, keys[index].as_str(), *kind)
                .map_err(broken)?;
            slices.extend(content.iter().map(|s| IoSlice::new(s)));
            let zeros = padding(len);
            slices.push(IoSlice::new(zeros));
            offset += len + zeros.len() as u64;
        }
        let tail = tail.finish(offset);
        slices.push(IoSlice::new(&tail));
        self.put(Kind::Pack, &slices, options)
    }

    /// Opens a pack to read many of its members without a system call for each.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is not a pack.
    pub fn open_pack(&self, key: Key<'_>, mode: Mode) -> Result<Pack, Error> {
        let (object, file) = match key {
            Key::Name(name) => match self.open_name(name)? {
                Found::Object(object, file) => (object, file),
                Found::Plain(_) => return Err(Error::corrupt(name.as_str(), "it is a plain file")),
                Found::Below => return Err(Error::not_found(name.as_str())),
            },
            Key::Object(..) | Key::Id(_) => self.open_id(key)?,
        };
        let name = key.to_string();
        if object.kind != Kind::Pack {
            return Err(Error::corrupt(
                name,
                format!("it is a {}, not a pack", object.kind),
            ));
        }
        let stat = fstat(file.as_fd()).map_err(|errno| Error::io(name.as_str(), errno))?;
        let len = usize::try_from(regular(&stat, &name)?)
            .map_err(|_| Error::io(name.as_str(), Errno::EFBIG))?;
        self.refuse_removed(&object, &stat)?;
        refuse_sparse(file.as_fd(), &stat, &name)?;
        let (prot, flags) = mode.protection();
        let mapping = Mapping::new(file.as_fd(), len, prot, flags)
            .map_err(|errno| Error::io(name.as_str(), errno))?;
        let footer =
            pack::check(mapping.as_slice()).map_err(|e| Error::corrupt(name, e.to_string()))?;
        Ok(Pack {
            id: object.id,
            mapping,
            footer,
        })
    }

    /// Gets `name` as a member of the pack that one of its beginnings names.
    pub(crate) fn get_member(&self, name: &Name, mode: Mode) -> Result<Object, Error> {
        let (pack, key, file) = self.pack_of(name)?;
        let at = |e: Malformed| Error::corrupt(pack.0.as_str(), e.to_string());
        let (footer, entry) = find(file.as_fd(), key, pack.0.as_str())?
            .ok_or_else(|| Error::not_found(name.as_str()))?;
        let mut kind = [0; 16];
        read_at(file.as_fd(), &mut kind, entry.kind, name.as_str())?;
        debug_assert!(entry.offset + entry.len <= footer.table);
        let content = content(file.as_fd(), &entry, mode, name.as_str())?;
        Ok(Object {
            id: Some(pack.1),
            kind: pack::kind(&kind).map_err(at)?,
            content,
        })
    }

    /// Length and kind of a member.
    pub(crate) fn stat_member(&self, name: &Name) -> Result<(ObjectId, Kind, u64), Error> {
        let (pack, key, file) = self.pack_of(name)?;
        let (_, entry) = find(file.as_fd(), key, pack.0.as_str())?
            .ok_or_else(|| Error::not_found(name.as_str()))?;
        let mut kind = [0; 16];
        read_at(file.as_fd(), &mut kind, entry.kind, name.as_str())?;
        let kind = pack::kind(&kind).map_err(|e| Error::corrupt(pack.0.as_str(), e.to_string()))?;
        Ok((pack.1, kind, entry.len))
    }

    /// The pack that the shortest possible beginning of `name` points to, and the rest as key.
    fn pack_of<'n>(
        &self,
        name: &'n Name,
    ) -> Result<((Name, ObjectId), &'n str, std::os::fd::OwnedFd), Error> {
        for (at, _) in name.as_str().match_indices('/') {
            let beginning = Name::new(&name.as_str()[..at])?;
            match self.open_name(&beginning) {
                Ok(Found::Object(object, file)) if object.kind == Kind::Pack => {
                    let stat = fstat(file.as_fd())
                        .map_err(|errno| Error::io(beginning.as_str(), errno))?;
                    self.refuse_removed(&object, &stat)?;
                    return Ok(((beginning, object.id), &name.as_str()[at + 1..], file));
                }
                // A directory: the pack may be deeper.
                Err(Error::Foreign { .. }) => {}
                Ok(_) | Err(Error::NotFound { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Err(Error::not_found(name.as_str()))
    }
}

/// Searches the sorted table of a pack.
fn find(file: BorrowedFd<'_>, key: &str, pack: &str) -> Result<Option<(Footer, Entry)>, Error> {
    let broken = |e: Malformed| Error::corrupt(pack, e.to_string());
    let stat = fstat(file).map_err(|errno| Error::io(pack, errno))?;
    let len = regular(&stat, pack)?;
    let Some(end) = len.checked_sub(pack::FOOTER as u64) else {
        return Err(Error::corrupt(pack, "it is shorter than a footer"));
    };
    let mut bytes = [0; pack::FOOTER];
    read_at(file, &mut bytes, end, pack)?;
    let footer = Footer::parse(&bytes, len).map_err(broken)?;
    let mut range = 0..footer.members;
    let mut found = vec![0; key.len() + 1];
    while range.end - range.start > BLOCK as u64 {
        let middle = range.start + (range.end - range.start) / 2;
        let mut entry = [0; pack::ENTRY];
        read_at(file, &mut entry, footer.entry_at(middle), pack)?;
        let entry = footer.entry(&entry).map_err(broken)?;
        // One byte more than the key's length decides the order.
        let part = found.len().min(entry.key_len.into());
        read_at(file, &mut found[..part], entry.key, pack)?;
        match found[..part].cmp(key.as_bytes()) {
            Ordering::Equal => return Ok(Some((footer, entry))),
            Ordering::Less => range.start = middle + 1,
            Ordering::Greater => range.end = middle,
        }
    }
    let found = find_in_block(file, &footer, range, key, pack)?;
    Ok(found.map(|entry| (footer, entry)))
}

/// Reads the last few entries that are in question at once, and then their keys, which lie side by side.
fn find_in_block(
    file: BorrowedFd<'_>,
    footer: &Footer,
    range: Range<u64>,
    key: &str,
    pack: &str,
) -> Result<Option<Entry>, Error> {
    let broken = |e: Malformed| Error::corrupt(pack, e.to_string());
    let mut bytes = [0; BLOCK * pack::ENTRY];
    let count = usize::try_from(range.end - range.start).unwrap_or(0);
    let table = &mut bytes[..count * pack::ENTRY];
    read_at(file, table, footer.entry_at(range.start), pack)?;
    let mut entries = Vec::with_capacity(count);
    for entry in table.chunks_exact(pack::ENTRY) {
        let entry = entry
            .try_into()
            .map_err(|_| Error::corrupt(pack, "an entry is cut off"))?;
        entries.push(footer.entry(entry).map_err(broken)?);
    }
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Ok(None);
    };
    let start = first.key;
    let len = (last.key + u64::from(last.key_len)).saturating_sub(start);
    // Sound keys have at most 1,024 bytes.
    let len = usize::try_from(len)
        .unwrap_or(usize::MAX)
        .min(BLOCK * MAX_NAME);
    let mut keys = vec![0; len];
    read_at(file, &mut keys, start, pack)?;
    for entry in entries {
        let at = entry
            .key
            .checked_sub(start)
            .and_then(|at| usize::try_from(at).ok());
        let end = at.and_then(|at| at.checked_add(entry.key_len.into()));
        let found = at.zip(end).and_then(|(at, end)| keys.get(at..end));
        if found.ok_or_else(|| Error::corrupt(pack, "the keys are not in order"))? == key.as_bytes()
        {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn content(file: BorrowedFd<'_>, entry: &Entry, mode: Mode, key: &str) -> Result<Content, Error> {
    let at = |errno| Error::io(key, errno);
    let len = usize::try_from(entry.len).map_err(|_| at(Errno::EFBIG))?;
    if entry.len > MAX_READ {
        let (prot, flags) = mode.protection();
        match Mapping::range(file, entry.offset, len, prot, flags) {
            Err(Errno::ENOMEM) => {}
            other => return other.map(Content::Mapped).map_err(at),
        }
    }
    let mut bytes = vec![0; len];
    read_at(file, &mut bytes, entry.offset, key)?;
    Ok(Content::Small(bytes))
}

impl Pack {
    /// Number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.footer.members).unwrap_or(usize::MAX)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.footer.members == 0
    }

    /// The memory of the whole pack.
    #[must_use]
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The members in the order of their keys: key, kind, and the range of the content in the mapping.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&str, Kind, Range<usize>)> {
        (0..self.len()).map(|index| self.member(index))
    }

    /// The member with this index in the order of the keys.
    ///
    /// # Panics
    /// When there is no such member.
    #[must_use]
    pub fn member(&self, index: usize) -> (&str, Kind, Range<usize>) {
        assert!(
            index < self.len(),
            "no member {index} in a pack of {}",
            self.len()
        );
        // `check` has read all of this; an owner who changes a sealed file gets empty members.
        self.read(index as u64).unwrap_or(("", Kind::Raw, 0..0))
    }

    fn read(&self, index: u64) -> Option<(&str, Kind, Range<usize>)> {
        let bytes = self.mapping.as_slice();
        let slice = |at: u64, len: usize| {
            let at = usize::try_from(at).ok()?;
            bytes.get(at..at.checked_add(len)?)
        };
        let entry = slice(self.footer.entry_at(index), pack::ENTRY)?;
        let entry = self.footer.entry(entry.try_into().ok()?).ok()?;
        let key = std::str::from_utf8(slice(entry.key, entry.key_len.into())?).ok()?;
        let kind = pack::kind(slice(entry.kind, 16)?.try_into().ok()?).ok()?;
        let start = usize::try_from(entry.offset).ok()?;
        Some((key, kind, start..start + usize::try_from(entry.len).ok()?))
    }

    /// The member with this key.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<(Kind, Range<usize>)> {
        let mut range = 0..self.len();
        while range.start < range.end {
            let middle = range.start.midpoint(range.end);
            let (found, kind, content) = self.member(middle);
            match found.cmp(key) {
                Ordering::Equal => return Some((kind, content)),
                Ordering::Less => range.start = middle + 1,
                Ordering::Greater => range.end = middle,
            }
        }
        None
    }
}
