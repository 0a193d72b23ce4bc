//! Kinds: how an object's bytes are decoded. The kind is part of the file's name, never guessed from content.

use std::fmt;

/// How an object's bytes are decoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The bytes.
    Raw,
    /// UTF-8.
    Text,
    /// NumPy's `.npy`.
    Npy,
    /// An Arrow IPC file.
    Arrow,
    /// A safetensors file.
    Safetensors,
    /// A pickle stream with its out-of-band buffers.
    Pickle,
    /// Many small members in one file.
    Pack,
    /// Any other tag; its content is returned as bytes.
    Other(Tag),
}

/// The written form of a kind that this version does not know: `[a-z0-9]{1,16}`, zero-padded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; 16]);

impl Kind {
    /// Reads the written form, `[a-z0-9]{1,16}`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        Some(match text {
            b"raw" => Self::Raw,
            b"text" => Self::Text,
            b"npy" => Self::Npy,
            b"arrow" => Self::Arrow,
            b"safetensors" => Self::Safetensors,
            b"pickle" => Self::Pickle,
            b"pack" => Self::Pack,
            _ => Self::Other(Tag::new(text)?),
        })
    }

    /// The kind that a plain file's extension stands for, [`Kind::Raw`] when it stands for none.
    #[must_use]
    pub fn of_extension(file_name: &str) -> Self {
        let extension = file_name.rsplit_once('.').map_or("", |(_, e)| e);
        match extension {
            "txt" | "text" | "json" | "csv" | "md" | "yaml" | "yml" => Self::Text,
            "npy" => Self::Npy,
            "arrow" | "feather" | "ipc" => Self::Arrow,
            "safetensors" => Self::Safetensors,
            "pickle" | "pkl" => Self::Pickle,
            _ => Self::Raw,
        }
    }

    /// The written form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Raw => "raw",
            Self::Text => "text",
            Self::Npy => "npy",
            Self::Arrow => "arrow",
            Self::Safetensors => "safetensors",
            Self::Pickle => "pickle",
            Self::Pack => "pack",
            Self::Other(tag) => tag.as_str(),
        }
    }

    /// The kinds that have a name of their own.
    pub(crate) const KNOWN: [Self; 7] = [
        Self::Raw,
        Self::Pickle,
        Self::Npy,
        Self::Arrow,
        Self::Text,
        Self::Safetensors,
        Self::Pack,
    ];
}

impl Tag {
    fn new(text: &[u8]) -> Option<Self> {
        let ok = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if text.is_empty() || text.len() > 16 || !text.iter().all(ok) {
            return None;
        }
        let mut tag = [0; 16];
        tag[..text.len()].copy_from_slice(text);
        Some(Self(tag))
    }

    fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_form_reads_back() {
        for kind in Kind::KNOWN
            .into_iter()
            .chain([Kind::parse(b"parquet").unwrap()])
        {
            assert_eq!(Kind::parse(kind.as_str().as_bytes()), Some(kind));
        }
        assert_eq!(
            Kind::parse(b"0123456789abcdef").unwrap().as_str(),
            "0123456789abcdef"
        );
    }

    #[test]
    fn what_is_not_a_kind_is_refused() {
        for text in ["", "Raw", "a.b", "a/b", "0123456789abcdefg", "\u{e9}"] {
            assert_eq!(Kind::parse(text.as_bytes()), None, "{text}");
        }
    }
}
