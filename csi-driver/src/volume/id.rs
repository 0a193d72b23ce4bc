//! Identities of volumes, nodes and pods.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Identity of a volume. Safe as a file name and as the name of a Kubernetes resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct VolumeId(String);

/// Longest DNS label.
const LABEL: usize = 63;

/// No name that is used as it is begins so: a label has no dot.
const HASHED: &str = "v.";

impl VolumeId {
    /// The id of the volume with this name: the name itself when it is a DNS label, such as `pvc-<uid>`, else a hash of it.
    ///
    /// The same name always has the same id, so a repeated CreateVolume finds what the first one made. Two names that hash
    /// alike are told apart by the name in the record.
    pub(crate) fn of_name(name: &str) -> Self {
        if is_label(name) {
            return Self(name.to_owned());
        }
        Self(format!("{HASHED}{:032x}", fnv1a(name.as_bytes())))
    }

    /// Takes an id from the wire. `None` when no volume can have it; it is then unknown, not malformed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = |digits: &str| {
            digits.len() == 32
                && digits
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let ours = text
            .strip_prefix(HASHED)
            .map_or_else(|| is_label(text), hex);
        ours.then(|| Self(text.to_owned()))
    }

    /// The text of it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// FNV-1a, 128 bits: stable over versions and platforms, which the standard library's hasher is not.
pub(crate) fn fnv1a(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for VolumeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no volume id")))
    }
}

/// Name of a node; also the value of its topology segment, hence a label value.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub(crate) struct NodeId(String);

impl NodeId {
    /// Takes a name of at most 63 bytes that is a Kubernetes label value.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        label_value(text).map(|value| Self(value.to_owned()))
    }

    /// The text of it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Uid of a pod, as kubelet names the pod's directory. Safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub(crate) struct PodUid(String);

impl PodUid {
    /// Takes a uid: 1 to 63 of lower-case letters, digits and inner `-`. Static pods have a hash, others a UUID.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        is_label(text).then(|| Self(text.to_owned()))
    }

    /// The text of it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PodUid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no pod uid")))
    }
}

/// Checks that `text` can be a topology value.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn label_value(text: &str) -> Result<&str, String> {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let fits = (1..=LABEL).contains(&text.len())
        && text
            .chars()
            .all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
        && text.starts_with(edge)
        && text.ends_with(edge);
    if fits {
        return Ok(text);
    }
    Err(format!(
        "{text:?} is not 1 to {LABEL} of letters, digits and inner -_."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_its_own_id_and_anything_else_is_hashed() {
        assert_eq!(VolumeId::of_name("pvc-0a1b").as_str(), "pvc-0a1b");
        let long = "x".repeat(128);
        for name in ["Pvc", "a/b", "../../etc", "ü", "-a", "v.0", &long] {
            let id = VolumeId::of_name(name);
            assert!(
                id.as_str().starts_with("v.") && id.as_str().len() == 34,
                "{name}"
            );
            assert_eq!(VolumeId::of_name(name), id);
            assert_eq!(VolumeId::parse(id.as_str()), Some(id));
        }
        // A hash that changed would lose every volume that has such a name.
        assert_eq!(
            VolumeId::of_name("").as_str(),
            "v.6c62272e07bb014262b821756295c58d"
        );
        assert_eq!(
            VolumeId::of_name("A/b").as_str(),
            format!("v.{:032x}", fnv1a(b"A/b"))
        );
    }

    #[test]
    fn no_id_from_the_wire_leaves_its_directory() {
        for text in [
            "", ".", "..", "../x", "a/b", "a\0b", "v.", "v.../x", "A", "v.6C62",
        ] {
            assert_eq!(VolumeId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_node_name_is_a_label_value() {
        assert!(NodeId::parse("node-1.example").is_ok());
        for text in ["", "a b", "-a", "a.", &"n".repeat(64)] {
            assert!(NodeId::parse(text).is_err(), "{text:?}");
        }
    }
}
