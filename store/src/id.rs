//! Object ids: 128 random bits, written as 26 lower-case Crockford base-32 digits. Never reused.

use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;

const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The identity of an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(u128);

/// A string that is not an [`ObjectId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an object id has 26 digits of 0-9 a-z without i l o u, the first at most 7")]
pub struct ParseIdError;

impl ObjectId {
    /// Digits of the written form.
    pub const DIGITS: usize = 26;

    /// A fresh id from the kernel's random numbers.
    pub(crate) fn random() -> Result<Self, Errno> {
        let mut bytes = [0_u8; 16];
        loop {
            // SAFETY: the pointer and the length describe `bytes`.
            let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            match Errno::result(n) {
                Ok(16) => return Ok(Self(u128::from_le_bytes(bytes))),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The id with these bits.
    #[must_use]
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// The 128 bits.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// Reads the written form.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != Self::DIGITS || text[0] > b'7' {
            return None;
        }
        let mut bits = 0_u128;
        for &byte in text {
            bits = bits << 5 | u128::from(value(byte)?);
        }
        Some(Self(bits))
    }

    /// The written form.
    #[must_use]
    pub fn digits(self) -> [u8; Self::DIGITS] {
        let mut out = [0_u8; Self::DIGITS];
        let mut bits = self.0;
        for place in out.iter_mut().rev() {
            *place = DIGITS[(bits & 31) as usize];
            bits >>= 5;
        }
        out
    }
}

fn value(byte: u8) -> Option<u8> {
    Some(match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'h' => byte - b'a' + 10,
        b'j' | b'k' => byte - b'j' + 18,
        b'm' | b'n' => byte - b'm' + 20,
        b'p'..=b't' => byte - b'p' + 22,
        b'v'..=b'z' => byte - b'v' + 27,
        _ => return None,
    })
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digits();
        f.write_str(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Self::parse(text.as_bytes()).ok_or(ParseIdError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_reads_back() {
        for (i, digit) in DIGITS.iter().enumerate() {
            assert_eq!(value(*digit), Some(u8::try_from(i).unwrap()));
        }
    }

    #[test]
    fn written_form_reads_back() {
        for bits in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let id = ObjectId::from_u128(bits);
            assert_eq!(id.to_string().parse::<ObjectId>().unwrap(), id);
        }
        assert_eq!(
            ObjectId::from_u128(u128::MAX).to_string(),
            format!("7{}", "z".repeat(25))
        );
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in [
            "",
            "8zzzzzzzzzzzzzzzzzzzzzzzzz",
            "0000000000000000000000000i",
            "000000000000000000000000A0",
        ] {
            assert!(text.parse::<ObjectId>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(ObjectId::random().unwrap(), ObjectId::random().unwrap());
    }
}
