//! `pack`: many small values in one file, found by key (docs/design/volume.md §3.2).
//!
//! A lookup reads the footer, then a few entries of the sorted table: no index is kept in memory.

use super::{ALIGNMENT, Malformed, array, u16_at, u32_at, u64_at};
use crate::kind::Kind;

const MAGIC: &[u8; 8] = b"VYPACK01";
/// Bytes of the footer.
pub const FOOTER: usize = 40;
/// Bytes of one entry of the table.
pub const ENTRY: usize = 24;
const KIND: u64 = 16;

fn malformed(what: &'static str) -> Malformed {
    Malformed {
        format: "pack",
        what,
    }
}

/// The footer, checked against the file's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the table starts, and the payloads end.
    pub table: u64,
    /// Number of members.
    pub members: u64,
    /// Where the keys start.
    keys: u64,
    key_bytes: u64,
    kinds: u32,
    /// Checksum of table, keys and kinds.
    pub crc: u32,
}

/// One entry of the table, checked against the footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the payload starts.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where the key is in the file.
    pub key: u64,
    /// Its length in bytes.
    pub key_len: u16,
    /// Where the kind is in the file; it has 16 bytes.
    pub kind: u64,
}

impl Footer {
    /// Reads the last 40 bytes of a file of `len` bytes.
    ///
    /// # Errors
    /// When they are not the footer of a pack of this length.
    pub fn parse(footer: &[u8; FOOTER], len: u64) -> Result<Self, Malformed> {
        let short = || malformed("the footer is cut off");
        if !footer.ends_with(MAGIC) {
            return Err(malformed("no magic at the end"));
        }
        let table = u64_at(footer, 0).ok_or_else(short)?;
        let members = u64_at(footer, 8).ok_or_else(short)?;
        let key_bytes = u64_at(footer, 16).ok_or_else(short)?;
        let kinds = u32_at(footer, ENTRY).ok_or_else(short)?;
        let crc = u32_at(footer, 28).ok_or_else(short)?;
        let keys = members
            .checked_mul(ENTRY as u64)
            .and_then(|n| n.checked_add(table));
        let end = keys
            .and_then(|n| n.checked_add(key_bytes))
            .and_then(|n| n.checked_add(u64::from(kinds) * KIND))
            .and_then(|n| n.checked_add(FOOTER as u64));
        match keys {
            Some(keys) if end == Some(len) => Ok(Self {
                table,
                members,
                keys,
                key_bytes,
                kinds,
                crc,
            }),
            _ => Err(malformed(
                "table, keys and kinds do not end where the footer starts",
            )),
        }
    }

    /// Where entry `index` is in the file.
    #[must_use]
    pub fn entry_at(&self, index: u64) -> u64 {
        self.table + index * ENTRY as u64
    }

    /// Reads the 24 bytes of an entry.
    ///
    /// # Errors
    /// When its payload, key or kind lies outside.
    pub fn entry(&self, bytes: &[u8; ENTRY]) -> Result<Entry, Malformed> {
        let short = || malformed("an entry is cut off");
        let offset = u64_at(bytes, 0).ok_or_else(short)?;
        let len = u64_at(bytes, 8).ok_or_else(short)?;
        let key = u64::from(u32_at(bytes, 16).ok_or_else(short)?);
        let key_len = u16_at(bytes, 20).ok_or_else(short)?;
        let kind = u16_at(bytes, 22).ok_or_else(short)?;
        if offset.checked_add(len).is_none_or(|end| end > self.table) {
            return Err(malformed("a payload lies outside"));
        }
        if !offset.is_multiple_of(ALIGNMENT) {
            return Err(malformed("a payload is not aligned"));
        }
        if key + u64::from(key_len) > self.key_bytes {
            return Err(malformed("a key lies outside"));
        }
        if u32::from(kind) >= self.kinds {
            return Err(malformed("a kind is not in the list"));
        }
        Ok(Entry {
            offset,
            len,
            key: self.keys + key,
            key_len,
            kind: self.keys + self.key_bytes + u64::from(kind) * KIND,
        })
    }
}

/// Reads a kind, 16 bytes zero-padded.
///
/// # Errors
/// When it is none.
pub fn kind(bytes: &[u8; 16]) -> Result<Kind, Malformed> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(16);
    if bytes[end..].iter().any(|b| *b != 0) {
        return Err(malformed("a kind is not zero-padded"));
    }
    Kind::parse(&bytes[..end]).ok_or_else(|| malformed("a kind has other letters"))
}

/// Checks a whole pack: the checksum, every entry, and that the keys are sorted and differ.
///
/// # Errors
/// With the first rule that is broken.
pub fn check(bytes: &[u8]) -> Result<Footer, Malformed> {
    let end = bytes
        .len()
        .checked_sub(FOOTER)
        .ok_or_else(|| malformed("shorter than a footer"))?;
    let outside = || malformed("an entry lies outside");
    let footer = Footer::parse(&array(bytes, end).ok_or_else(outside)?, bytes.len() as u64)?;
    let table = usize::try_from(footer.table).map_err(|_| outside())?;
    if crc32fast::hash(&bytes[table..end]) != footer.crc {
        return Err(malformed("the checksum of table, keys and kinds is wrong"));
    }
    let slice = |at: u64, len: usize| {
        let at = usize::try_from(at).ok()?;
        bytes.get(at..at.checked_add(len)?)
    };
    let mut last: Option<&[u8]> = None;
    for index in 0..footer.members {
        let entry = slice(footer.entry_at(index), ENTRY).and_then(|b| array(b, 0));
        let entry = footer.entry(&entry.ok_or_else(outside)?)?;
        let tag = slice(entry.kind, 16).and_then(|b| array(b, 0));
        kind(&tag.ok_or_else(outside)?)?;
        let key = slice(entry.key, entry.key_len.into()).ok_or_else(outside)?;
        if std::str::from_utf8(key).is_err() {
            return Err(malformed("a key is not UTF-8"));
        }
        if last.is_some_and(|last| last >= key) {
            return Err(malformed("the keys are not sorted"));
        }
        last = Some(key);
    }
    Ok(footer)
}

/// The tail of a pack: table, keys, kinds and footer. Members come in the order of their keys.
#[derive(Debug, Default)]
pub(crate) struct TailBuilder {
    table: Vec<u8>,
    keys: Vec<u8>,
    kinds: Vec<Kind>,
    members: u64,
}

impl TailBuilder {
    pub(crate) fn member(
        &mut self,
        offset: u64,
        len: u64,
        key: &str,
        kind: Kind,
    ) -> Result<(), Malformed> {
        let at =
            u32::try_from(self.keys.len()).map_err(|_| malformed("more than 4 GiB of keys"))?;
        let key_len = u16::try_from(key.len()).map_err(|_| malformed("a key is too long"))?;
        let kind = self
            .kinds
            .iter()
            .position(|k| *k == kind)
            .unwrap_or_else(|| {
                self.kinds.push(kind);
                self.kinds.len() - 1
            });
        let kind = u16::try_from(kind).map_err(|_| malformed("more than 65,536 kinds"))?;
        self.table.extend_from_slice(&offset.to_le_bytes());
        self.table.extend_from_slice(&len.to_le_bytes());
        self.table.extend_from_slice(&at.to_le_bytes());
        self.table.extend_from_slice(&key_len.to_le_bytes());
        self.table.extend_from_slice(&kind.to_le_bytes());
        self.keys.extend_from_slice(key.as_bytes());
        self.members += 1;
        Ok(())
    }

    /// The tail of a pack whose payloads end at `table`.
    pub(crate) fn finish(self, table: u64) -> Vec<u8> {
        let mut tail = self.table;
        tail.extend_from_slice(&self.keys);
        for kind in &self.kinds {
            let mut text = [0; 16];
            text[..kind.as_str().len()].copy_from_slice(kind.as_str().as_bytes());
            tail.extend_from_slice(&text);
        }
        let crc = crc32fast::hash(&tail);
        let kinds = u32::try_from(self.kinds.len()).unwrap_or(u32::MAX);
        tail.extend_from_slice(&table.to_le_bytes());
        tail.extend_from_slice(&self.members.to_le_bytes());
        tail.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        tail.extend_from_slice(&kinds.to_le_bytes());
        tail.extend_from_slice(&crc.to_le_bytes());
        tail.extend_from_slice(MAGIC);
        tail
    }
}
