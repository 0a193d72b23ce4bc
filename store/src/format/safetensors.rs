//! `safetensors`: tensors behind a JSON header. The header is checked as it is read, and never kept.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Malformed, u64_at};

/// The format's own limit of the header, in bytes.
const MAX_HEADER: u64 = 100_000_000;

fn malformed(what: &'static str) -> Malformed {
    Malformed {
        format: "safetensors",
        what,
    }
}

/// Checks a file: the header is JSON, and every tensor lies in the file. Returns how many tensors there are.
///
/// # Errors
/// With the first rule that is broken.
pub fn check(bytes: &[u8]) -> Result<usize, Malformed> {
    let short = || malformed("the header is cut off");
    let len = u64_at(bytes, 0).ok_or_else(short)?;
    if len > MAX_HEADER {
        return Err(malformed("the header is too long"));
    }
    let end = usize::try_from(len)
        .map_err(|_| short())?
        .checked_add(8)
        .ok_or_else(short)?;
    let header = bytes.get(8..end).ok_or_else(short)?;
    let tensors: Tensors = serde_json::from_slice(header)
        .map_err(|_| malformed("the header is not the JSON of tensors"))?;
    if tensors.end > (bytes.len() - end) as u64 {
        return Err(malformed("a tensor lies outside"));
    }
    Ok(tensors.count)
}

/// What remains of the header: how many tensors, and where the last one ends.
struct Tensors {
    count: usize,
    end: u64,
}

/// One tensor; its type and shape are the reader's matter.
#[derive(Deserialize)]
struct Tensor {
    #[serde(rename = "dtype")]
    _dtype: IgnoredAny,
    #[serde(rename = "shape")]
    _shape: IgnoredAny,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Header)
    }
}

struct Header;

impl<'de> Visitor<'de> for Header {
    type Value = Tensors;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
        let mut tensors = Tensors { count: 0, end: 0 };
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if key == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let (start, end) = map.next_value::<Tensor>()?.data_offsets;
            if start > end {
                return Err(serde::de::Error::custom("a tensor ends before it starts"));
            }
            tensors.count += 1;
            tensors.end = tensors.end.max(end);
        }
        Ok(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn tensors_in_the_file_pass_and_others_do_not() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert_eq!(check(&file(header, 8)), Ok(1));
        assert!(check(&file(header, 7)).is_err());
        assert_eq!(check(&file("{}", 0)), Ok(0));
        for bad in [
            "",
            "[]",
            r#"{"a":1}"#,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,-8]}}"#,
        ] {
            assert!(check(&file(bad, 100)).is_err(), "{bad}");
        }
        assert!(check(b"\xff\xff\xff\xff\xff\xff\xff\xff{}").is_err());
        assert!(check(b"123").is_err());
    }
}
