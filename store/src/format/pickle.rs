//! `pickle`: a pickle stream, its out-of-band buffers, and a footer at the end (docs/design/volume.md §3.1).

use std::io::IoSlice;
use std::ops::Range;

use super::{ALIGNMENT, Malformed, padding, u32_at, u64_at};

const MAGIC: &[u8; 8] = b"VYPICKL1";
/// Bytes of the footer.
pub const FOOTER: usize = 40;
const READ_ONLY: u32 = 1;
const KNOWN_FLAGS: u32 = READ_ONLY;

fn malformed(what: &'static str) -> Malformed {
    Malformed {
        format: "pickle",
        what,
    }
}

/// Where the parts of a pickle container are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pickle<'b> {
    /// The pickle stream.
    pub stream: &'b [u8],
    /// The out-of-band buffers, as ranges of the file.
    pub buffers: Vec<Range<usize>>,
    /// JSON that describes the value; not checked.
    pub meta: &'b [u8],
    /// Whether the buffers were read-only when they were pickled.
    pub read_only: bool,
}

impl<'b> Pickle<'b> {
    /// Takes a file apart. A file without our footer is a plain pickle: a stream without buffers.
    ///
    /// # Errors
    /// When there is a footer that does not fit the file.
    pub fn parse(bytes: &'b [u8]) -> Result<Self, Malformed> {
        let plain = || Self {
            stream: bytes,
            buffers: Vec::new(),
            meta: b"",
            read_only: false,
        };
        if !bytes.ends_with(MAGIC) {
            return Ok(plain());
        }
        let Some(end) = bytes.len().checked_sub(FOOTER) else {
            return Ok(plain());
        };
        let short = || malformed("the footer is cut off");
        let footer = &bytes[end..];
        let table = to_usize(u64_at(footer, 0).ok_or_else(short)?)?;
        let count = u32_at(footer, 8).ok_or_else(short)? as usize;
        let meta_len = u32_at(footer, 12).ok_or_else(short)? as usize;
        let stream_len = to_usize(u64_at(footer, 16).ok_or_else(short)?)?;
        let flags = u32_at(footer, 24).ok_or_else(short)?;
        let crc = u32_at(footer, 28).ok_or_else(short)?;
        let table_end = count.checked_mul(16).and_then(|n| n.checked_add(table));
        let expected = table_end.and_then(|n| n.checked_add(meta_len));
        let (Some(table_end), true) = (table_end, expected == Some(end)) else {
            return Err(malformed(
                "table and meta do not end where the footer starts",
            ));
        };
        if stream_len > table {
            return Err(malformed("the stream is longer than the file"));
        }
        if flags & !KNOWN_FLAGS != 0 {
            return Err(malformed("unknown flags"));
        }
        if crc32fast::hash(&bytes[table..end]) != crc {
            return Err(malformed("the checksum of table and meta is wrong"));
        }
        let mut buffers = Vec::with_capacity(count);
        for entry in bytes[table..table_end].chunks_exact(16) {
            let offset = to_usize(u64_at(entry, 0).ok_or_else(short)?)?;
            let len = to_usize(u64_at(entry, 8).ok_or_else(short)?)?;
            let stop = offset.checked_add(len).filter(|stop| *stop <= table);
            let (Some(stop), true) = (stop, offset >= stream_len) else {
                return Err(malformed("a buffer lies outside"));
            };
            if !(offset as u64).is_multiple_of(ALIGNMENT) {
                return Err(malformed("a buffer is not aligned"));
            }
            buffers.push(offset..stop);
        }
        Ok(Self {
            stream: &bytes[..stream_len],
            buffers,
            meta: &bytes[table_end..end],
            read_only: flags & READ_ONLY != 0,
        })
    }
}

fn to_usize(n: u64) -> Result<usize, Malformed> {
    usize::try_from(n).map_err(|_| malformed("an offset is beyond the address space"))
}

/// What follows the buffers of a pickle container: the table, the meta and the footer.
#[derive(Clone, Debug)]
pub struct Tail(Vec<u8>);

impl Tail {
    /// The tail for a stream and buffers of these lengths in bytes.
    ///
    /// # Errors
    /// When there are more than 2³² − 1 buffers or bytes of meta.
    pub fn new(
        stream: u64,
        buffers: &[u64],
        meta: &[u8],
        read_only: bool,
    ) -> Result<Self, Malformed> {
        let many = |_| malformed("too many buffers or too much meta");
        let count = u32::try_from(buffers.len()).map_err(many)?;
        let meta_len = u32::try_from(meta.len()).map_err(many)?;
        let mut tail = Vec::with_capacity(buffers.len() * 16 + meta.len() + FOOTER);
        let mut offset = stream;
        for len in buffers {
            offset = offset.next_multiple_of(ALIGNMENT);
            tail.extend_from_slice(&offset.to_le_bytes());
            tail.extend_from_slice(&len.to_le_bytes());
            offset += len;
        }
        tail.extend_from_slice(meta);
        let crc = crc32fast::hash(&tail);
        tail.extend_from_slice(&offset.to_le_bytes());
        tail.extend_from_slice(&count.to_le_bytes());
        tail.extend_from_slice(&meta_len.to_le_bytes());
        tail.extend_from_slice(&stream.to_le_bytes());
        tail.extend_from_slice(&(if read_only { READ_ONLY } else { 0 }).to_le_bytes());
        tail.extend_from_slice(&crc.to_le_bytes());
        tail.extend_from_slice(MAGIC);
        Ok(Self(tail))
    }

    /// All slices of the file, in order, for `put`.
    #[must_use]
    pub fn slices<'a>(&'a self, stream: &'a [u8], buffers: &[&'a [u8]]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(buffers.len() * 2 + 2);
        slices.push(IoSlice::new(stream));
        let mut len = stream.len() as u64;
        for buffer in buffers {
            let zeros = padding(len);
            slices.push(IoSlice::new(zeros));
            slices.push(IoSlice::new(buffer));
            len += (zeros.len() + buffer.len()) as u64;
        }
        slices.push(IoSlice::new(&self.0));
        slices
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(stream: &[u8], buffers: &[&[u8]], meta: &[u8]) -> Vec<u8> {
        let lens: Vec<u64> = buffers.iter().map(|b| b.len() as u64).collect();
        let tail = Tail::new(stream.len() as u64, &lens, meta, true).unwrap();
        tail.slices(stream, buffers)
            .iter()
            .flat_map(|s| s.to_vec())
            .collect()
    }

    #[test]
    fn what_is_written_is_parsed() {
        let bytes = file(b"stream", &[b"one", b"", &[7; 100]], b"{}");
        let parsed = Pickle::parse(&bytes).unwrap();
        assert_eq!(
            (parsed.stream, parsed.meta, parsed.read_only),
            (&b"stream"[..], &b"{}"[..], true)
        );
        let buffers: Vec<&[u8]> = parsed.buffers.iter().map(|r| &bytes[r.clone()]).collect();
        assert_eq!(buffers, [&b"one"[..], b"", &[7; 100]]);
        assert!(parsed.buffers.iter().all(|r| r.start % 64 == 0));
    }

    #[test]
    fn a_plain_pickle_is_all_stream() {
        for bytes in [&b""[..], b"\x80\x05N.", MAGIC] {
            assert_eq!(Pickle::parse(bytes).unwrap().stream, bytes);
        }
    }

    #[test]
    fn every_changed_byte_of_the_tail_is_noticed_or_harmless_but_never_a_panic() {
        let good = file(b"stream", &[b"one", &[7; 100]], b"{\"type\": \"x\"}");
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                if let Ok(parsed) = Pickle::parse(&bad) {
                    assert!(parsed.buffers.iter().all(|r| r.end <= bad.len()));
                }
            }
        }
    }
}
