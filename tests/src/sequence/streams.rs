//! Streams: what a client is told, and what that changes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};

use super::orders::Order;
use super::{Effect, Play};
use crate::body::Body;
use crate::commands::Command;
use crate::inspect::Shown;
use crate::model::{File, Place, Stream, end_mark, part};

impl Play {
    pub(super) fn append(&mut self, pod: usize, stream: String, len: u64) -> Order {
        let content = self.content(len);
        let command = Command::Append {
            stream: stream.clone(),
            content,
        };
        let effect = self.refusal(pod, &stream);
        let effect = effect.unwrap_or(Effect::Appended(content, stream));
        (command, effect)
    }

    pub(super) fn end(&mut self, pod: usize, stream: String) -> Order {
        let effect = self.refusal(pod, &stream);
        let command = Command::End {
            stream: stream.clone(),
        };
        (command, effect.unwrap_or(Effect::Ended(stream)))
    }

    /// Why a writer's next step fails: its stream was removed, or has ended. It is dropped then.
    fn refusal(&mut self, pod: usize, stream: &str) -> Option<Effect> {
        let key = (pod, stream.to_owned());
        let now = self.model.streams.get(stream);
        let writer = self.ends.writers.get(&key);
        let effect = if writer.is_some() && writer != now.map(|s| &s.generation) {
            Effect::Absent
        } else if now.is_some_and(|s| s.end.is_some()) {
            Effect::Taken
        } else {
            return None;
        };
        self.ends.writers.remove(&key);
        Some(effect)
    }

    /// Nothing when the reader would only wait.
    pub(super) fn consume(&self, pod: usize, stream: String) -> Option<Order> {
        let known = self.model.streams.get(&stream);
        let reader = self.ends.readers.get(&(pod, stream.clone()));
        let next = known.map_or(0, |s| s.consumed);
        let next = next.max(reader.copied().unwrap_or(0));
        let found = self.model.named(&part(&stream, next)).map(|f| &f.body);
        let content = match found {
            Some(Body::Value(content)) => Some(*content),
            _ => {
                known?.end.filter(|end| *end <= next)?;
                None
            }
        };
        let effect = match content {
            Some(_) => Effect::Consumed(stream.clone(), next),
            None => Effect::Finished(stream.clone(), next),
        };
        Some((Command::Consume { stream, content }, effect))
    }

    /// A client of the pod has a writer for the stream, which is made when it is not there.
    pub(super) fn opened(&mut self, pod: usize, stream: &str) {
        let generation = self.next();
        let fresh = Stream {
            generation,
            ..Stream::default()
        };
        let opened = self.model.streams.entry(stream.into()).or_insert(fresh);
        let writer = (pod, stream.to_owned());
        self.ends.writers.insert(writer, opened.generation);
    }

    pub(super) fn ended(&mut self, pod: usize, stream: &str) -> Result<()> {
        let mark = end_mark(stream);
        let inode = fs::metadata(self.world.volume().join(&mark))?.ino();
        let parts = self.model.next_part(stream);
        let file = File {
            body: Body::Text(format!("{{\"parts\":{parts}}}")),
            payer: self.pods[pod].client_cgroup().id(),
            place: Place::Plain(mark),
            holders: BTreeSet::new(),
            expires: None,
        };
        self.model.end(stream, inode, file);
        Ok(())
    }

    pub(super) fn stream_removed(&mut self, stream: &str, answered: u64) -> Result<()> {
        let parts = self.model.remove_stream(stream);
        ensure!(answered == parts, "{answered} of {parts} parts are removed");
        Ok(())
    }

    /// A client was killed while it did something with the stream: the model follows its marks.
    pub(super) fn adopt_stream(
        &mut self,
        pod: usize,
        effect: &Effect,
        shown: &Shown,
    ) -> Result<()> {
        let Some(stream) = effect.stream() else {
            return Ok(());
        };
        match shown.streams.get(stream) {
            Some(consumed) => {
                self.opened(pod, stream);
                if let Some(known) = self.model.streams.get_mut(stream) {
                    known.consumed = *consumed;
                }
            }
            None => {
                self.model.streams.remove(stream);
            }
        }
        let mark = end_mark(stream);
        let is_known = self.model.at(&Place::Plain(mark.clone())).is_some();
        match (is_known, shown.plain.contains_key(&mark)) {
            (false, true) => {
                ensure!(
                    matches!(effect, Effect::Ended(_)),
                    "{mark} came from nowhere"
                );
                self.ended(pod, stream)?;
            }
            (true, false) => {
                ensure!(
                    matches!(effect, Effect::StreamRemoved(_)),
                    "{mark} vanished"
                );
                let place = Place::Plain(mark);
                self.model.files.retain(|_, file| file.place != place);
            }
            _ => {}
        }
        // It was a writer of a client that is dead.
        self.ends.forget(pod);
        Ok(())
    }
}
