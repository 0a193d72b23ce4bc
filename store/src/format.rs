//! The formats of the kinds that this crate reads or writes itself. All of them are parsed from bytes that anybody may
//! have written: every offset and length is checked before use, and nothing is allocated that the file does not back.

pub mod arrow;
pub mod npy;
pub mod pack;
pub mod pickle;
pub mod safetensors;

/// Bytes that do not keep the rules of their format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {format}: {what}")]
pub struct Malformed {
    /// The format.
    pub format: &'static str,
    /// The rule that is broken.
    pub what: &'static str,
}

/// Buffers and payloads start at multiples of this, so that every element type and vector unit is served.
pub const ALIGNMENT: u64 = 64;

/// Zeros to fill up to the next multiple of [`ALIGNMENT`].
pub(crate) const ZEROS: [u8; 64] = [0; 64];

/// The zeros that are missing from `len` to a multiple of [`ALIGNMENT`].
pub(crate) fn padding(len: u64) -> &'static [u8] {
    let missing = len.next_multiple_of(ALIGNMENT) - len;
    &ZEROS[..usize::try_from(missing).unwrap_or(0)]
}

/// `N` bytes of `bytes` from `at` on.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A little-endian integer at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// A little-endian integer at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// A little-endian integer at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}
