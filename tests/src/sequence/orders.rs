//! What a client is told for a step.

use anyhow::{Result, bail};

use super::{DRAFTS, Effect, Play, Sealed};
use crate::body::Body;
use crate::commands::{Command, Content, Member};
use crate::model::{MAX_READ, Place};
use crate::steps::{NAMES, STREAMS, Step};

/// What a client is told, and what that changes.
pub(super) type Order = (Command, Effect);

impl Play {
    /// What the client is told for a step, and what that changes. Nothing when it cannot be done now.
    pub(super) fn orders(&mut self, step: &Step) -> Result<Vec<Order>> {
        let orders = match step {
            Step::Put { name, len, .. } => {
                let (content, name) = (self.content(*len), name.map(name_of));
                let command = Command::Put {
                    name: name.clone(),
                    content,
                    overwrite: true,
                };
                vec![(command, Sealed::value(content, name))]
            }
            Step::PutExpiring { name, len, .. } => {
                let (content, name) = (self.content(*len), name.map(name_of));
                let command = Command::PutExpiring {
                    name: name.clone(),
                    content,
                    seconds: TTL,
                };
                let effect = Effect::Sealed(Sealed {
                    body: Body::Value(content),
                    expires: Some(name.clone().unwrap_or_else(|| "-".into())),
                    name,
                    draft: None,
                });
                vec![(command, effect)]
            }
            Step::PutMany { name, lens, .. } => {
                let (members, name) = (self.members(lens), name.map(name_of));
                let command = Command::PutMany {
                    name: name.clone(),
                    members: members.clone(),
                };
                let effect = Effect::Sealed(Sealed {
                    body: Body::Pack(members),
                    name,
                    draft: None,
                    expires: None,
                });
                vec![(command, effect)]
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
                vec![(command, Sealed::value(content, name))]
            }
            Step::Again {
                name,
                lens,
                in_place,
                ..
            } => {
                let (first, second) = (self.content(lens.0), self.content(lens.1));
                let name = name_of(*name);
                let put = |content| {
                    let command = Command::Put {
                        name: Some(name.clone()),
                        content,
                        overwrite: true,
                    };
                    (command, Sealed::value(content, Some(name.clone())))
                };
                let remove = Command::Remove { name: name.clone() };
                let last = if *in_place {
                    let view = self.next();
                    let content = second;
                    (
                        Command::Create { view, content },
                        Effect::Drafted(content, view),
                    )
                } else {
                    put(second)
                };
                vec![put(first), (remove, Effect::Removed(name.clone())), last]
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
                let (name, body) = (name.map(name_of), self.model.files[inode].body.clone());
                let command = Command::Seal {
                    view: *view,
                    name: name.clone(),
                };
                let effect = Effect::Sealed(Sealed {
                    body,
                    name,
                    draft: Some(*view),
                    expires: None,
                });
                vec![(command, effect)]
            }
            Step::Get {
                name,
                shared,
                hold,
                dirty,
                ..
            } => self.get(&name_of(*name), *shared, *hold, *dirty),
            Step::GetMember {
                name, which, hold, ..
            } => vec![self.get_member(&name_of(*name), *which, *hold)],
            Step::Release { pod, which } => match pick(&self.model.views(*pod), *which) {
                Some(&(view, _)) => vec![
                    (Command::Check { view }, Effect::Nothing),
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
            Step::Append { pod, stream, len } => {
                vec![self.append(*pod, stream_of(*stream), *len)]
            }
            Step::End { pod, stream } => vec![self.end(*pod, stream_of(*stream))],
            Step::Consume { pod, stream } => {
                let order = self.consume(*pod, stream_of(*stream));
                order.into_iter().collect()
            }
            Step::RemoveStream { stream, .. } => {
                let stream = stream_of(*stream);
                let prefix = format!("{stream}/");
                let command = Command::RemovePrefix { prefix };
                vec![(command, Effect::StreamRemoved(stream))]
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

    fn get(&mut self, name: &str, shared: bool, hold: bool, dirty: bool) -> Vec<Order> {
        let found = self.model.named(name).map(|file| file.body.clone());
        let Some(body) = found else {
            return vec![(nothing(name), Effect::Absent)];
        };
        let inode = self.model.names[name];
        let command = match body {
            Body::Value(content) => {
                let view = (hold && content.len > MAX_READ).then(|| self.next());
                (get(name, content, shared, view), Effect::Got(inode, view))
            }
            Body::Pack(members) => {
                // Always mapped.
                let view = hold.then(|| self.next());
                let name = name.into();
                let command = Command::GetPack {
                    name,
                    members,
                    view,
                };
                (command, Effect::Got(inode, view))
            }
            Body::Text(_) => (nothing(name), Effect::Absent),
        };
        let mut orders = vec![command];
        if let (_, Effect::Got(_, Some(view))) = &orders[0]
            && dirty
            && !shared
        {
            orders.push((Command::Dirty { view: *view }, Effect::Nothing));
        }
        orders
    }

    fn get_member(&mut self, name: &str, which: u64, hold: bool) -> Order {
        let members = match self.model.named(name).map(|file| &file.body) {
            Some(Body::Pack(members)) => members.as_slice(),
            _ => &[],
        };
        let Some(member) = pick(members, which).cloned() else {
            return (nothing(&format!("{name}/00000000")), Effect::Absent);
        };
        let view = (hold && member.content.len > MAX_READ).then(|| self.next());
        let name_of_member = format!("{name}/{}", member.key);
        let command = get(&name_of_member, member.content, false, view);
        (command, Effect::Got(self.model.names[name], view))
    }

    fn members(&mut self, lens: &[u64]) -> Vec<Member> {
        let mut members = Vec::new();
        for (index, len) in lens.iter().enumerate() {
            let content = self.content(*len);
            let keyed = content.seed.is_multiple_of(3);
            let key = match keyed {
                true => format!("k{}/x", content.seed % 100),
                false => format!("{index:08}"),
            };
            let kind = match content.seed % 4 {
                0 => "other1",
                _ => "raw",
            };
            members.push(Member {
                key,
                keyed,
                kind: kind.into(),
                content,
            });
        }
        members
    }
}

/// Seconds until an object expires: more than any sequence lasts; what ends is made to end.
const TTL: u64 = 100_000;

impl Sealed {
    fn value(content: Content, name: Option<String>) -> Effect {
        Effect::Sealed(Self {
            body: Body::Value(content),
            name,
            draft: None,
            expires: None,
        })
    }
}

fn stream_of(number: u64) -> String {
    format!("stream-{}", number % STREAMS)
}

/// A get of a name that is not there.
fn nothing(name: &str) -> Command {
    get(name, Content { seed: 0, len: 0 }, false, None)
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

pub(super) fn pick<T>(all: &[T], which: u64) -> Option<&T> {
    let len = u64::try_from(all.len()).ok().filter(|len| *len > 0)?;
    all.get(usize::try_from(which % len).ok()?)
}
