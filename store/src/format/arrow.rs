//! `arrow`: an Arrow IPC file. The blocks that its footer lists are checked, not what is in them.

use super::{ALIGNMENT, Malformed, array, u16_at, u32_at};

const MAGIC: &[u8] = b"ARROW1";
/// The magic and two zeros at the start.
const START: usize = 8;
/// A block in the footer: i64 offset, i32 bytes of metadata, 4 bytes of padding, i64 bytes of body.
const BLOCK: usize = 24;

/// Where a message is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Start of the metadata.
    pub offset: u64,
    /// Bytes of metadata.
    pub metadata: u64,
    /// Bytes of the body, which follows the metadata.
    pub body: u64,
}

fn malformed(what: &'static str) -> Malformed {
    Malformed {
        format: "arrow",
        what,
    }
}

/// Checks a file: magic at both ends, the footer, and that every block lies in the file with its body at a multiple of
/// 64. Returns the number of record batches.
///
/// # Errors
/// With the first rule that is broken.
pub fn check(bytes: &[u8]) -> Result<usize, Malformed> {
    if !bytes.starts_with(MAGIC) || !bytes.ends_with(MAGIC) {
        return Err(malformed("no magic at both ends"));
    }
    let short = || malformed("the footer is cut off");
    let end = bytes
        .len()
        .checked_sub(MAGIC.len() + 4)
        .filter(|end| *end >= START)
        .ok_or_else(short)?;
    let len = u32_at(bytes, end).ok_or_else(short)? as usize;
    let start = end
        .checked_sub(len)
        .filter(|start| *start >= START)
        .ok_or_else(short)?;
    let footer = Table::root(&bytes[start..end])?;
    let mut batches = 0;
    // Fields of the footer: version, schema, dictionaries, record batches, custom metadata.
    for field in [2, 3] {
        let blocks = footer.structs(field, BLOCK)?;
        for block in blocks.chunks_exact(BLOCK) {
            check_block(block, start)?;
        }
        if field == 3 {
            batches = blocks.len() / BLOCK;
        }
    }
    if footer.field(1)?.is_none() {
        return Err(malformed("the footer has no schema"));
    }
    Ok(batches)
}

fn check_block(block: &[u8], end: usize) -> Result<Block, Malformed> {
    let outside = || malformed("a block lies outside");
    let offset = array(block, 0)
        .map(i64::from_le_bytes)
        .ok_or_else(outside)?;
    let metadata = array(block, 8)
        .map(i32::from_le_bytes)
        .ok_or_else(outside)?;
    let body = array(block, 16)
        .map(i64::from_le_bytes)
        .ok_or_else(outside)?;
    let block = Block {
        offset: u64::try_from(offset).map_err(|_| outside())?,
        metadata: u64::try_from(metadata).map_err(|_| outside())?,
        body: u64::try_from(body).map_err(|_| outside())?,
    };
    let start = block
        .offset
        .checked_add(block.metadata)
        .ok_or_else(outside)?;
    if start.checked_add(block.body).is_none_or(|e| e > end as u64) {
        return Err(outside());
    }
    if start % ALIGNMENT != 0 {
        return Err(malformed("a body does not start at a multiple of 64"));
    }
    Ok(block)
}

/// A flatbuffer table, every access checked.
struct Table<'b> {
    buffer: &'b [u8],
    at: usize,
    vtable: usize,
    vtable_len: usize,
}

impl<'b> Table<'b> {
    fn root(buffer: &'b [u8]) -> Result<Self, Malformed> {
        let broken = || malformed("the footer is not a flatbuffer");
        let at = u32_at(buffer, 0).ok_or_else(broken)? as usize;
        let back = array(buffer, at)
            .map(i32::from_le_bytes)
            .ok_or_else(broken)?;
        let vtable = i64::try_from(at)
            .ok()
            .and_then(|at| at.checked_sub(back.into()));
        let vtable = vtable
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(broken)?;
        let vtable_len = usize::from(u16_at(buffer, vtable).ok_or_else(broken)?);
        if vtable_len < 4
            || vtable
                .checked_add(vtable_len)
                .is_none_or(|end| end > buffer.len())
        {
            return Err(broken());
        }
        Ok(Self {
            buffer,
            at,
            vtable,
            vtable_len,
        })
    }

    /// Where field `index` is; `None` when it is absent.
    fn field(&self, index: usize) -> Result<Option<usize>, Malformed> {
        let slot = 4 + 2 * index;
        if slot + 2 > self.vtable_len {
            return Ok(None);
        }
        let broken = || malformed("a field of the footer lies outside");
        match u16_at(self.buffer, self.vtable + slot).ok_or_else(broken)? {
            0 => Ok(None),
            offset => {
                let at = self.at + usize::from(offset);
                if at + 4 > self.buffer.len() {
                    Err(broken())
                } else {
                    Ok(Some(at))
                }
            }
        }
    }

    /// The bytes of a vector of structs of `size` bytes; empty when it is absent.
    fn structs(&self, index: usize, size: usize) -> Result<&'b [u8], Malformed> {
        let broken = || malformed("a list of the footer lies outside");
        let Some(at) = self.field(index)? else {
            return Ok(&[]);
        };
        let vector = at
            .checked_add(u32_at(self.buffer, at).ok_or_else(broken)? as usize)
            .ok_or_else(broken)?;
        let count = u32_at(self.buffer, vector).ok_or_else(broken)? as usize;
        let start = vector + 4;
        let end = count
            .checked_mul(size)
            .and_then(|n| n.checked_add(start))
            .ok_or_else(broken)?;
        self.buffer.get(start..end).ok_or_else(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one record batch, as far as the footer goes.
    pub(crate) fn file(body_at: i64, body: i64) -> Vec<u8> {
        let mut footer = Vec::new();
        // Root at 16; vtable at 4: 12 bytes, table 20 bytes, then schema, dictionaries, batches.
        footer.extend_from_slice(&20_u32.to_le_bytes());
        for slot in [12_u16, 20, 4, 8, 0, 12] {
            footer.extend_from_slice(&slot.to_le_bytes());
        }
        footer.extend_from_slice(&[0; 4]);
        footer.extend_from_slice(&16_i32.to_le_bytes());
        footer.extend_from_slice(&[4, 0, 0, 0]);
        footer.extend_from_slice(&8_u32.to_le_bytes());
        footer.extend_from_slice(&4_u32.to_le_bytes());
        footer.extend_from_slice(&1_u32.to_le_bytes());
        footer.extend_from_slice(&8_i64.to_le_bytes());
        footer.extend_from_slice(&i32::try_from(body_at - 8).unwrap().to_le_bytes());
        footer.extend_from_slice(&[0; 4]);
        footer.extend_from_slice(&body.to_le_bytes());
        let mut bytes = b"ARROW1\0\0".to_vec();
        bytes.resize(256, 0);
        bytes.extend_from_slice(&footer);
        bytes.extend_from_slice(&u32::try_from(footer.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes
    }

    #[test]
    fn a_file_with_its_bodies_in_place_passes() {
        assert_eq!(check(&file(64, 128)), Ok(1));
    }

    #[test]
    fn bodies_that_are_unaligned_or_outside_are_refused() {
        assert!(check(&file(72, 8)).is_err());
        assert!(check(&file(64, 256)).is_err());
        assert!(check(&file(64, -1)).is_err());
        assert!(check(&file(64, i64::MAX)).is_err());
    }

    #[test]
    fn no_damage_to_the_footer_panics() {
        let good = file(64, 128);
        for at in 0..good.len() {
            for change in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= change;
                let _ = check(&bad);
            }
            let _ = check(&good[..at]);
        }
    }
}
