//! Names: relative paths in the volume, and the targets of the symlinks that they are.

use std::fmt;

use crate::error::Error;
use crate::id::ObjectId;
use crate::kind::Kind;

/// A validated name: a relative UTF-8 path of at most 1,024 bytes, whose components have 1 to 255 bytes and are none of
/// `.`, `..`, `.stream`, `.end`, `.consumed`, and do not start with `.vineyard`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Directory of the objects, relative to the root.
pub(crate) const OBJECTS: &str = ".vineyard/objects/";
/// Most bytes of a name.
pub(crate) const MAX_NAME: usize = 1024;

impl Name {
    /// Validates `name`.
    ///
    /// # Errors
    /// [`Error::InvalidName`] that says why.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        match fault(&name) {
            None => Ok(Self(name)),
            Some(why) => Err(Error::InvalidName { name, why }),
        }
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.split().1
    }

    /// The directory, if the name is not at the root, and the last component.
    pub(crate) fn split(&self) -> (Option<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((directory, last)) => (Some(directory), last),
            None => (None, &self.0),
        }
    }

    /// The symlink's target that makes this name point to `object`.
    pub(crate) fn target(&self, object: &ObjectFile) -> String {
        let depth = self.0.bytes().filter(|b| *b == b'/').count();
        let mut target = String::with_capacity(3 * depth + OBJECTS.len() + ObjectFile::MAX);
        for _ in 0..depth {
            target.push_str("../");
        }
        target.push_str(OBJECTS);
        target.push_str(object.as_str());
        target
    }
}

/// Why `name` is not a name; `None` if it is one.
fn fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > MAX_NAME {
        return Some("it is longer than 1024 bytes");
    }
    if name.as_bytes().contains(&0) {
        return Some("it contains a NUL");
    }
    name.split('/').find_map(|component| match component {
        "" => Some("it starts or ends with '/', or has '//'"),
        "." | ".." => Some("it has a component '.' or '..'"),
        ".stream" | ".end" | ".consumed" => {
            Some("'.stream', '.end' and '.consumed' are the marks of a stream")
        }
        c if c.len() > 255 => Some("a component is longer than 255 bytes"),
        c if c.starts_with(".vineyard") => {
            Some("components that start with '.vineyard' are reserved")
        }
        _ => None,
    })
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<&str> for Name {
    type Error = Error;
    fn try_from(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

/// The file name of an object, `<id>.<kind>`, without an allocation.
#[derive(Clone, Copy)]
pub(crate) struct ObjectFile {
    pub(crate) id: ObjectId,
    pub(crate) kind: Kind,
    text: [u8; Self::MAX],
    len: u8,
}

impl ObjectFile {
    const MAX: usize = ObjectId::DIGITS + 1 + 16;

    pub(crate) fn new(id: ObjectId, kind: Kind) -> Self {
        let mut text = [0; Self::MAX];
        let kind_text = kind.as_str().as_bytes();
        text[..ObjectId::DIGITS].copy_from_slice(&id.digits());
        text[ObjectId::DIGITS] = b'.';
        text[ObjectId::DIGITS + 1..][..kind_text.len()].copy_from_slice(kind_text);
        let len = u8::try_from(ObjectId::DIGITS + 1 + kind_text.len()).unwrap_or(u8::MAX);
        Self {
            id,
            kind,
            text,
            len,
        }
    }

    /// Reads `<id>.<kind>`.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let (id, rest) = text.split_at_checked(ObjectId::DIGITS)?;
        let kind = Kind::parse(rest.strip_prefix(b".")?)?;
        Some(Self::new(ObjectId::parse(id)?, kind))
    }

    /// Reads a name's target. Only the last part counts, so a name that was moved to another depth still resolves, and
    /// nothing outside the volume ever does.
    pub(crate) fn from_target(mut target: &[u8]) -> Option<Self> {
        while let Some(rest) = target.strip_prefix(b"../") {
            target = rest;
        }
        Self::parse(target.strip_prefix(OBJECTS.as_bytes())?)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl PartialEq for ObjectFile {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.kind == other.kind
    }
}

impl fmt::Debug for ObjectFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_volume_or_touch_its_own_tree_are_refused() {
        let long = "x".repeat(256);
        let longer = "x/".repeat(600) + "x";
        for name in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "./a",
            "a\0b",
            ".vineyard",
            ".vineyard/objects/x",
            "a/.vineyardx",
            "s/.stream",
            "s/.end",
            "s/.consumed",
            &long,
            &longer,
        ] {
            assert!(
                matches!(Name::new(name), Err(Error::InvalidName { .. })),
                "{name:?}"
            );
        }
        for name in [
            "a",
            "a/b/c",
            "...",
            "caf\u{e9} \u{1f347}",
            "-rf",
            "a.b",
            ".hidden",
            &"x".repeat(255),
        ] {
            assert!(Name::new(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_target_goes_up_once_per_directory_and_reads_back() {
        let object = ObjectFile::new(ObjectId::from_u128(77), Kind::Npy);
        for (name, ups) in [("a", 0), ("a/b", 1), ("a/b/c", 2)] {
            let target = Name::new(name).unwrap().target(&object);
            assert_eq!(
                target,
                format!("{}.vineyard/objects/{}.npy", "../".repeat(ups), object.id)
            );
            assert_eq!(ObjectFile::from_target(target.as_bytes()), Some(object));
        }
    }

    #[test]
    fn targets_elsewhere_are_not_names() {
        for target in [
            "/etc/passwd",
            "../../etc/passwd",
            ".vineyard/objects/../../x",
            ".vineyard/trash/x.raw",
            "",
        ] {
            assert_eq!(ObjectFile::from_target(target.as_bytes()), None, "{target}");
        }
    }
}
