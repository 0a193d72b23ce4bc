//! Sizes: in records and on the command line (`1GiB`, `64MiB`, `4096`).

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub(crate) struct Bytes(pub(crate) u64);

const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

impl Bytes {
    /// What CSI's signed fields can carry; a volume is never that large.
    pub(crate) fn wire(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// For people: at most one decimal, `58.6 MiB`.
    pub(crate) fn rounded(self) -> String {
        let fits = |(_, unit): &&(&str, u64)| self.0 >= *unit;
        let Some((name, unit)) = UNITS.iter().find(fits) else {
            return format!("{} B", self.0);
        };
        let tenths = u128::from(self.0) * 10 / u128::from(*unit);
        match tenths % 10 {
            0 => format!("{} {name}", tenths / 10),
            rest => format!("{}.{rest} {name}", tenths / 10),
        }
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or((text, 1));
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(format!(
                "{text:?} is not a size such as 4096, 64MiB or 2GiB"
            ));
        }
        let count: Option<u64> = digits.parse().ok();
        count
            .and_then(|count| count.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is more than 64 bits"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS
            .iter()
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit))
        {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people_a_size_has_at_most_one_decimal() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (61_444 << 10, "60 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(Bytes(bytes).rounded(), text);
        }
    }

    #[test]
    fn sizes_parse_and_print_in_their_largest_exact_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("3TiB", 3 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
        }
        assert_eq!(Bytes(64 << 20).to_string(), "64MiB");
        assert_eq!(Bytes((1 << 20) + 1).to_string(), "1048577");
        for text in ["", "MiB", "-1", "1.5GiB", "99999999TiB", "1 GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
