//! Streams in the model: their parts are names like any other.

use std::collections::BTreeMap;

use super::{File, Model, Place};

/// What a stream must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Parts below this index have been taken by consuming readers.
    pub consumed: u64,
    /// How many parts it has, once it has ended.
    pub end: Option<u64>,
    /// What tells it from an earlier one of the same name, whose writers are of no use any more.
    pub generation: u32,
}

/// What clients have of streams: where the readers are, and which stream the writers write to. By pod and stream.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// The next part of a reader.
    pub readers: BTreeMap<(usize, String), u64>,
    /// The generation of a writer's stream.
    pub writers: BTreeMap<(usize, String), u32>,
}

impl Ends {
    /// A client is gone.
    pub fn forget(&mut self, pod: usize) {
        self.readers.retain(|(p, _), _| *p != pod);
        self.writers.retain(|(p, _), _| *p != pod);
    }
}

/// The name of a part.
#[must_use]
pub fn part(stream: &str, index: u64) -> String {
    format!("{stream}/{index:08}")
}

/// The path of the mark of a stream's end.
#[must_use]
pub fn end_mark(stream: &str) -> String {
    format!("{stream}/.end")
}

impl Model {
    /// The index of the next part.
    #[must_use]
    pub fn next_part(&self, stream: &str) -> u64 {
        let consumed = self.streams.get(stream).map_or(0, |s| s.consumed);
        let last = self.parts(stream).last().map(|part| part + 1);
        last.map_or(consumed, |next| next.max(consumed))
    }

    /// The indices of a stream's parts, in order.
    pub fn parts(&self, stream: &str) -> impl Iterator<Item = u64> {
        let below = format!("{stream}/");
        let names = self.names.range(below.clone()..);
        let names = names.map_while(move |(name, _)| name.strip_prefix(&below)?.parse().ok());
        names.collect::<Vec<u64>>().into_iter()
    }

    /// A part was taken by a consuming reader.
    pub fn consume(&mut self, stream: &str, index: u64) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.consumed = stream.consumed.max(index + 1);
        }
        self.remove(&part(stream, index));
    }

    /// The stream has ended: `inode` is its mark.
    pub fn end(&mut self, stream: &str, inode: u64, mark: File) {
        let parts = self.next_part(stream);
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.end = Some(parts);
        }
        self.files.insert(inode, mark);
    }

    /// The stream is removed with all its parts. Returns how many there were.
    pub fn remove_stream(&mut self, stream: &str) -> u64 {
        let parts: Vec<u64> = self.parts(stream).collect();
        for index in &parts {
            self.remove(&part(stream, *index));
        }
        let mark = Place::Plain(end_mark(stream));
        self.files.retain(|_, file| file.place != mark);
        self.streams.remove(stream);
        parts.len() as u64
    }
}
