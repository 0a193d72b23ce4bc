//! What a client is told for a step.

use anyhow::{Result, bail};

use super::{DRAFTS, Effect, Play};
use crate::commands::{Command, Content};
use crate::model::{MAX_READ, Place};
use crate::steps::{NAMES, Step};

impl Play {
    /// What the client is told for a step, and what that changes. Nothing when it cannot be done now.
    pub(super) fn orders(&mut self, step: &Step) -> Result<Vec<(Command, Effect)>> {
        let orders = match step {
            Step::Put { name, len, .. } => {
                let (content, name) = (self.content(*len), name.map(name_of));
                let command = Command::Put {
                    name: name.clone(),
                    content,
                    overwrite: true,
                };
                vec![(command, Effect::Sealed(content, name, None))]
            }
            Step::Write {
                name, len, piece, ..
            } => {
                let (content, name) = (self.content(*len), name.map(name_of));
                let command = Command::Write {
                    name: name.clone(),
                    content,
                    piece: *piece,
                };
                vec![(command, Effect::Sealed(content, name, None))]
            }
            Step::Link { from, to, .. } => {
                let (from, to) = (name_of(*from), name_of(*to));
                let effect = match self.model.names.get(&from) {
                    Some(inode) => Effect::Linked(*inode, to.clone()),
                    None => Effect::Absent,
                };
                vec![(Command::Link { from, to }, effect)]
            }
            Step::Create { len, .. } => {
                let (content, view) = (self.content(*len), self.next());
                let command = Command::Create { view, content };
                vec![(command, Effect::Drafted(content, view))]
            }
            Step::Seal { pod, name, which } => {
                let views = self.model.views(*pod);
                let drafts: Vec<_> = views.iter().filter(|(_, inode)| *inode >= DRAFTS).collect();
                let Some((view, inode)) = pick(&drafts, *which) else {
                    return Ok(Vec::new());
                };
                let (name, content) = (name.map(name_of), self.model.files[inode].content);
                let command = Command::Seal {
                    view: *view,
                    name: name.clone(),
                };
                vec![(command, Effect::Sealed(content, name, Some(*view)))]
            }
            Step::Get {
                name,
                shared,
                hold,
                dirty,
                ..
            } => self.get(&name_of(*name), *shared, *hold, *dirty),
            Step::Release { pod, which } => match pick(&self.model.views(*pod), *which) {
                Some(&(view, _)) => vec![
                    (Command::Check { view }, Effect::Dirtied),
                    (Command::Release { view }, Effect::Released(view)),
                ],
                None => Vec::new(),
            },
            Step::Remove { name, .. } => {
                let name = name_of(*name);
                vec![(
                    Command::Remove { name: name.clone() },
                    Effect::Removed(name),
                )]
            }
            Step::RemoveUnnamed { which, .. } => {
                let Some(inode) = pick(&self.model.unnamed(), *which).copied() else {
                    return Ok(Vec::new());
                };
                let Place::Objects(object) = self.model.files[&inode].place.clone() else {
                    bail!("an object outside of objects/");
                };
                vec![(Command::RemoveObject { object }, Effect::Discarded(inode))]
            }
            Step::Plain { pod, name, len } => {
                let uid = self.pods[*pod].settings().client_uid;
                let (content, name) = (self.content(*len), format!("plain-{uid}-{name}"));
                let command = Command::Plain {
                    name: name.clone(),
                    content,
                };
                vec![(command, Effect::Written(content, name))]
            }
            other => bail!("{other:?} is nothing that a client does"),
        };
        Ok(orders)
    }

    fn get(&mut self, name: &str, shared: bool, hold: bool, dirty: bool) -> Vec<(Command, Effect)> {
        let found = self
            .model
            .named(name)
            .map(|file| (file.content, self.model.names[name]));
        let Some((content, inode)) = found else {
            let content = Content { seed: 0, len: 0 };
            let command = get(name, content, shared, None);
            return vec![(command, Effect::Absent)];
        };
        let view = (hold && content.len > MAX_READ).then(|| self.next());
        let command = get(name, content, shared, view);
        let mut orders = vec![(command, Effect::Got(inode, view))];
        if let Some(view) = view
            && dirty
            && !shared
        {
            orders.push((Command::Dirty { view }, Effect::Dirtied));
        }
        orders
    }
}

fn name_of(number: u64) -> String {
    format!("name-{}", number % NAMES)
}

fn get(name: &str, content: Content, shared: bool, view: Option<u32>) -> Command {
    Command::Get {
        name: name.into(),
        content,
        shared,
        view,
    }
}

fn pick<T>(all: &[T], which: u64) -> Option<&T> {
    let len = u64::try_from(all.len()).ok().filter(|len| *len > 0)?;
    all.get(usize::try_from(which % len).ok()?)
}
