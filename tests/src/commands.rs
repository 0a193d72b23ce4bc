//! What a test tells its client process, and what that answers: one JSON value a line.

use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// An order to the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Put an object.
    Put {
        /// Its name; without one it is found by its id.
        name: Option<String>,
        /// Its content.
        content: Content,
        /// Whether a name that exists is re-pointed.
        overwrite: bool,
    },
    /// Put an object that is not needed any more after some time.
    PutExpiring {
        /// Its name.
        name: Option<String>,
        /// Its content.
        content: Content,
        /// After how many seconds.
        seconds: u64,
    },
    /// Put many values as one object.
    PutMany {
        /// Its name.
        name: Option<String>,
        /// The values.
        members: Vec<Member>,
    },
    /// Put an object whose length is not known ahead: write it in pieces.
    Write {
        /// Its name.
        name: Option<String>,
        /// Its content.
        content: Content,
        /// Bytes of a piece.
        piece: u64,
    },
    /// Give an object another name.
    Link {
        /// A name of it.
        from: String,
        /// The other name; what it pointed to is removed.
        to: String,
    },
    /// Make an object to be filled in place, and fill it. It is held as `view`.
    Create {
        /// What later commands call it.
        view: u32,
        /// Its content.
        content: Content,
    },
    /// Seal what `create` made. The memory stays held.
    Seal {
        /// What `create` called it.
        view: u32,
        /// Its name.
        name: Option<String>,
    },
    /// Get an object and check every byte.
    Get {
        /// Its name.
        name: String,
        /// What its content must be.
        content: Content,
        /// Map it read-only and shared instead of copy-on-write.
        shared: bool,
        /// Hold it under this number.
        view: Option<u32>,
    },
    /// Get a pack and check every byte of every member.
    GetPack {
        /// Its name.
        name: String,
        /// What it must hold.
        members: Vec<Member>,
        /// Hold it under this number.
        view: Option<u32>,
    },
    /// Get an object that others re-point at the same time: every byte must be of the same one of these.
    GetOneOf {
        /// Its name.
        name: String,
        /// What it may be.
        contents: Vec<Content>,
    },
    /// Write to every page of a view, which must not reach the object.
    Dirty {
        /// The view.
        view: u32,
    },
    /// Check every byte of a view, with what `dirty` wrote to it.
    Check {
        /// The view.
        view: u32,
    },
    /// Unmap a view.
    Release {
        /// The view.
        view: u32,
    },
    /// Remove a name and the object that it owns.
    Remove {
        /// The name.
        name: String,
    },
    /// Remove everything whose name begins so. Answers how many names there were.
    RemovePrefix {
        /// The beginning.
        prefix: String,
    },
    /// Remove an object by its id.
    RemoveObject {
        /// `<id>.<kind>`.
        object: String,
    },
    /// Write an ordinary file, without the store.
    Plain {
        /// Its path below the volume's root.
        name: String,
        /// Its content.
        content: Content,
    },
    /// List everything, and stat and get what is listed, whatever it is.
    Walk,
    /// Hold everything against the format.
    Fsck,
    /// Get something, whatever it is, and read all of it.
    Read {
        /// Its name.
        name: String,
    },
    /// Read all parts of a stream that are there.
    Stream {
        /// Its name.
        name: String,
    },
    /// Append a part to a stream, which is made when it is not there.
    Append {
        /// The stream.
        stream: String,
        /// The part.
        content: Content,
    },
    /// End a stream. Answers how many parts it has.
    End {
        /// The stream.
        stream: String,
    },
    /// Wait for the next part of a stream, check every byte, and remove it.
    Consume {
        /// The stream.
        stream: String,
        /// What the part must be; `None` when the stream must have ended.
        content: Option<Content>,
    },
    /// Unlink removed objects that nobody maps any more.
    Sweep,
}

/// A [`Pattern`], written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// What tells it from others.
    pub seed: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Content {
    /// `len` bytes that no other seed gives.
    #[must_use]
    pub const fn new(seed: u64, len: u64) -> Self {
        Self { seed, len }
    }
}

impl From<Content> for Pattern {
    fn from(content: Content) -> Self {
        Self {
            seed: content.seed,
            len: content.len,
        }
    }
}

/// A value of a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its key; what is put without one has its index in 8 digits.
    pub key: String,
    /// Whether it is put with its key.
    pub keyed: bool,
    /// How it would be decoded.
    pub kind: String,
    /// Its content.
    pub content: Content,
}

/// The answer to one order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The client is there: first of all.
    Ready,
    /// Done.
    Done,
    /// An object was sealed, or found.
    Object {
        /// `<id>.<kind>`.
        object: String,
    },
    /// How many there were.
    Count(u64),
    /// What breaks the format, as `path: fault`.
    Faults(Vec<String>),
    /// It failed, and nothing was changed.
    Failed(Failure),
    /// A byte was wrong.
    Wrong(String),
}

/// Why an order failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure.
    pub cause: Cause,
    /// What the store says.
    pub message: String,
}

/// Kinds of failures that a test tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Not found, or lost.
    Absent,
    /// The name is taken.
    Exists,
    /// The allowance is spent.
    Allowance,
    /// A cgroup's limit.
    Cgroup,
    /// The volume is full.
    Volume,
    /// Nothing came in time.
    Timeout,
    /// The payer does not answer.
    Unreachable,
    /// Anything else.
    Other,
}
