//! What a file of the model holds, and how its bytes are known without the store's own code.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::commands::{Content, Member};
use crate::pattern::Pattern;

/// The content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// One value.
    Value(Content),
    /// A pack of these.
    Pack(Vec<Member>),
    /// These very bytes.
    Text(String),
}

impl Body {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Value(content) => content.len,
            Self::Pack(members) => {
                let payloads: u64 = members.iter().map(|m| aligned(m.content.len)).sum();
                payloads + tail(members).len() as u64
            }
            Self::Text(text) => text.len() as u64,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Compares with the bytes of the file at `path`.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, path: &Path) -> Result<()> {
        let bytes = fs::read(path)?;
        match self {
            Self::Value(content) => Pattern::from(*content).check(&bytes),
            Self::Pack(members) => check_pack(members, &bytes),
            Self::Text(text) => {
                ensure!(bytes == text.as_bytes(), "{bytes:?} instead of {text}");
                Ok(())
            }
        }
    }
}

const ALIGNMENT: u64 = 64;

fn aligned(len: u64) -> u64 {
    len.next_multiple_of(ALIGNMENT)
}

/// Members in the order in which a pack has them.
fn sorted(members: &[Member]) -> Vec<&Member> {
    let mut sorted: Vec<&Member> = members.iter().collect();
    sorted.sort_by(|a, b| a.key.as_bytes().cmp(b.key.as_bytes()));
    sorted
}

fn check_pack(members: &[Member], bytes: &[u8]) -> Result<()> {
    let mut at = 0;
    for member in sorted(members) {
        let len = usize::try_from(member.content.len)?;
        let end = usize::try_from(aligned(member.content.len))? + at;
        ensure!(end <= bytes.len(), "the pack ends in {}", member.key);
        Pattern::from(member.content).check(&bytes[at..at + len])?;
        ensure!(
            bytes[at + len..end].iter().all(|b| *b == 0),
            "{} is not followed by zeros",
            member.key
        );
        at = end;
    }
    ensure!(bytes[at..] == tail(members), "the pack's tables differ");
    Ok(())
}

/// Table, keys, kinds and footer, written from docs/design/volume.md §3.2 and not with the store's code.
fn tail(members: &[Member]) -> Vec<u8> {
    let (mut table, mut keys, mut kinds) = (Vec::new(), Vec::new(), Vec::<&str>::new());
    let mut offset = 0_u64;
    for member in sorted(members) {
        let kind = kinds.iter().position(|k| *k == member.kind);
        let kind = kind.unwrap_or_else(|| {
            kinds.push(&member.kind);
            kinds.len() - 1
        });
        let narrow = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&member.content.len.to_le_bytes());
        table.extend_from_slice(&u32::try_from(keys.len()).unwrap_or(u32::MAX).to_le_bytes());
        table.extend_from_slice(&narrow(member.key.len()));
        table.extend_from_slice(&narrow(kind));
        keys.extend_from_slice(member.key.as_bytes());
        offset += aligned(member.content.len);
    }
    let key_bytes = keys.len() as u64;
    let mut tail = table;
    tail.extend_from_slice(&keys);
    for kind in &kinds {
        let mut text = [0; 16];
        text[..kind.len()].copy_from_slice(kind.as_bytes());
        tail.extend_from_slice(&text);
    }
    let sum = crc32fast::hash(&tail);
    tail.extend_from_slice(&offset.to_le_bytes());
    tail.extend_from_slice(&(members.len() as u64).to_le_bytes());
    tail.extend_from_slice(&key_bytes.to_le_bytes());
    tail.extend_from_slice(&u32::try_from(kinds.len()).unwrap_or(u32::MAX).to_le_bytes());
    tail.extend_from_slice(&sum.to_le_bytes());
    tail.extend_from_slice(b"VYPACK01");
    tail
}
