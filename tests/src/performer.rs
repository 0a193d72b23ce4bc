//! The inside of the test client: performs [`Command`]s on a real volume, billed to a real sidecar.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hint::black_box;
use std::io::{self, BufRead, IoSlice, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vineyard_charge::{Limit, Payer, RemotePayer, ReserveError};
use vineyard_store::{
    Content as Bytes, Draft, Error, Key, Kind, ListOptions, Mapping, Mode, Name, Options, Pack,
    PutOptions, Ref, StreamReader, StreamWriter, Volume,
};

use crate::commands::{Answer, Cause, Command, Content, Failure, Member};
use crate::pattern::Pattern;

/// Bytes of a page: what `dirty` writes to, once each.
const PAGE: usize = 4096;

/// How long a part of a stream is waited for.
const PART: Duration = Duration::from_millis(300);

/// Serves standard input until its end. Arguments: the volume, and the socket of the payer if there is one.
///
/// # Errors
/// When the volume or the payer cannot be reached, or the input is nonsense.
pub fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let root = arguments.next().context("which volume?")?;
    let socket = arguments.next();
    let mut client = Performer::open(&root, socket.as_deref())?;
    let mut out = io::stdout().lock();
    let mut say = |answer: &Answer| -> Result<()> {
        let line = serde_json::to_string(answer)?;
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    };
    say(&Answer::Ready)?;
    for line in io::stdin().lock().lines() {
        let command = serde_json::from_str(&line?)?;
        say(&client.perform(command))?;
    }
    Ok(())
}

/// Memory that is held.
enum View {
    Draft(Draft, Pattern),
    Sealed(Mapping, Pattern, Dirty),
    Small(Vec<u8>, Pattern),
    Pack(Pack, Vec<Member>),
}

type Dirty = bool;

struct Performer {
    volume: Arc<Volume>,
    root: PathBuf,
    views: BTreeMap<u32, View>,
    writers: BTreeMap<String, StreamWriter>,
    readers: BTreeMap<String, StreamReader>,
}

/// Anything that ends a command early.
enum Stop {
    Store(Error),
    Wrong(anyhow::Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Wrong(error)
    }
}

impl Performer {
    fn open(root: &Path, socket: Option<&Path>) -> Result<Self> {
        let mut options = Options::default();
        if let Some(socket) = socket {
            let name = format!("vineyard-test-client, pid {}", std::process::id());
            let payer: Arc<dyn Payer> = Arc::new(RemotePayer::connect(socket, &name)?);
            options.payer = Some(payer);
        }
        Ok(Self {
            volume: Arc::new(Volume::open(root, options)?),
            root: root.into(),
            views: BTreeMap::new(),
            writers: BTreeMap::new(),
            readers: BTreeMap::new(),
        })
    }

    fn perform(&mut self, command: Command) -> Answer {
        match self.try_perform(command) {
            Ok(answer) => answer,
            Err(Stop::Store(error)) => Answer::Failed(Failure {
                cause: cause(&error),
                message: error.to_string(),
            }),
            Err(Stop::Wrong(error)) => Answer::Wrong(format!("{error:#}")),
        }
    }

    fn try_perform(&mut self, command: Command) -> Result<Answer, Stop> {
        match command {
            Command::Put {
                name,
                content,
                overwrite,
            } => {
                let options = PutOptions {
                    overwrite,
                    ..named(name)?
                };
                let bytes = Pattern::from(content).bytes();
                let object = self
                    .volume
                    .put(Kind::Raw, &[IoSlice::new(&bytes)], &options)?;
                Ok(sealed(&object))
            }
            Command::PutExpiring {
                name,
                content,
                seconds,
            } => {
                let options = PutOptions {
                    ttl: Some(Duration::from_secs(seconds)),
                    ..named(name)?
                };
                let bytes = Pattern::from(content).bytes();
                let content = [IoSlice::new(&bytes)];
                Ok(sealed(&self.volume.put(Kind::Raw, &content, &options)?))
            }
            Command::PutMany { name, members } => self.put_many(name, &members),
            Command::Write {
                name,
                content,
                piece,
            } => self.write(name, content, piece),
            Command::Link { from, to } => {
                self.volume
                    .link(Key::Name(&parse(from)?), &parse(to)?, true)?;
                Ok(Answer::Done)
            }
            Command::Create { view, content } => self.create(view, content),
            Command::Seal { view, name } => {
                let Some(View::Draft(draft, pattern)) = self.views.remove(&view) else {
                    return Err(anyhow::anyhow!("view {view} is no draft").into());
                };
                let (object, mapping) = draft.seal(&named(name)?).map_err(Error::from)?;
                self.views
                    .insert(view, View::Sealed(mapping, pattern, false));
                Ok(sealed(&object))
            }
            Command::Get {
                name,
                content,
                shared,
                view,
            } => self.get(name, content.into(), shared, view),
            Command::GetPack {
                name,
                members,
                view,
            } => {
                let pack = self
                    .volume
                    .open_pack(Key::Name(&parse(name)?), Mode::CopyOnWrite)?;
                check_pack(&pack, &members)?;
                let object = format!("{}.pack", pack.id);
                if let Some(view) = view {
                    self.views.insert(view, View::Pack(pack, members));
                }
                Ok(Answer::Object { object })
            }
            Command::GetOneOf { name, contents } => {
                let object = self
                    .volume
                    .get(Key::Name(&parse(name)?), Mode::CopyOnWrite)?;
                let bytes = object.bytes();
                let one = |c: &Content| Pattern::from(*c).check(bytes).is_ok();
                if contents.iter().any(one) {
                    return Ok(Answer::Done);
                }
                Ok(Answer::Wrong(format!(
                    "{} bytes are none of {contents:?}",
                    bytes.len()
                )))
            }
            Command::Dirty { view } => {
                if let Some(View::Sealed(mapping, _, dirty)) = self.views.get_mut(&view) {
                    invert_pages(mapping);
                    *dirty = !*dirty;
                }
                Ok(Answer::Done)
            }
            Command::Check { view } => {
                self.check(view)?;
                Ok(Answer::Done)
            }
            Command::Release { view } => {
                self.views.remove(&view);
                Ok(Answer::Done)
            }
            Command::Remove { name } => {
                let there = self.volume.remove(Key::Name(&parse(name)?))?;
                Ok(Answer::Count(u64::from(there)))
            }
            Command::RemovePrefix { prefix } => {
                Ok(Answer::Count(self.volume.remove_prefix(&prefix)?))
            }
            Command::RemoveObject { object } => {
                let (id, kind) = object.split_once('.').context("an object")?;
                let id = id.parse().map_err(anyhow::Error::from)?;
                let kind = Kind::parse(kind.as_bytes()).context("a kind")?;
                let there = self.volume.remove(Key::Object(id, kind))?;
                Ok(Answer::Count(u64::from(there)))
            }
            Command::Plain { name, content } => {
                let bytes = Pattern::from(content).bytes();
                std::fs::write(self.root.join(name), bytes).map_err(anyhow::Error::from)?;
                Ok(Answer::Done)
            }
            Command::Read { name } => {
                let object = self
                    .volume
                    .get(Key::Name(&parse(name)?), Mode::CopyOnWrite)?;
                Ok(Answer::Count(
                    object.bytes().iter().map(|b| u64::from(*b)).sum(),
                ))
            }
            Command::Stream { name } => {
                let mut reader = self.volume.stream_reader(&parse(name)?)?;
                let mut parts = 0;
                while reader.next(Some(Duration::from_millis(50)))?.is_some() {
                    parts += 1;
                }
                Ok(Answer::Count(parts))
            }
            Command::Append { stream, content } => {
                let bytes = Pattern::from(content).bytes();
                let writer = self.writer(stream.clone())?;
                let appended = writer.append(Kind::Raw, &[IoSlice::new(&bytes)]);
                if appended.is_err() {
                    self.writers.remove(&stream);
                }
                Ok(sealed(&appended?))
            }
            Command::End { stream } => {
                self.writer(stream.clone())?;
                let writer = self.writers.remove(&stream).context("a stream")?;
                Ok(Answer::Count(writer.end()?))
            }
            Command::Consume { stream, content } => self.consume(stream, content),
            Command::Walk => Ok(Answer::Count(self.walk()?)),
            Command::Fsck => {
                let report = self.volume.fsck(false)?;
                let problems = report.problems.iter();
                let faults = problems
                    .map(|p| format!("{}: {}", p.path, p.fault))
                    .collect();
                Ok(Answer::Faults(faults))
            }
            Command::Sweep => {
                self.volume.sweep()?;
                Ok(Answer::Done)
            }
        }
    }

    /// Errors are what a hostile volume is made of: only crashes and hangs count.
    fn walk(&self) -> Result<u64, Error> {
        let options = ListOptions {
            stat: true,
            ..ListOptions::default()
        };
        let mut count = 0;
        for listed in self.volume.list(&options)? {
            count += 1;
            let Ok(listed) = listed else {
                continue;
            };
            let key = Key::Name(&listed.name);
            let _ = self.volume.stat(key);
            let _ = self.volume.exists(&listed.name);
            let _ = self.volume.is_stream(&listed.name);
            if let Ok(object) = self.volume.get(key, Mode::CopyOnWrite) {
                // Every byte, so that a mapping of what is not there is found out.
                black_box(object.bytes().iter().fold(0_u8, |a, b| a ^ b));
            }
            if let Ok(pack) = self.volume.open_pack(key, Mode::ReadOnly) {
                count += pack.members().count() as u64;
            }
        }
        Ok(count)
    }

    fn write(&self, name: Option<String>, content: Content, piece: u64) -> Result<Answer, Stop> {
        let bytes = Pattern::from(content).bytes();
        let mut writer = self.volume.writer(Kind::Raw)?;
        let piece = usize::try_from(piece).unwrap_or(PAGE).max(1);
        for some in bytes.chunks(piece) {
            writer.append(some)?;
        }
        Ok(sealed(&writer.seal(&named(name)?)?))
    }

    fn put_many(&self, name: Option<String>, members: &[Member]) -> Result<Answer, Stop> {
        let bytes: Vec<Vec<u8>> = members
            .iter()
            .map(|m| Pattern::from(m.content).bytes())
            .collect();
        let slices: Vec<[IoSlice<'_>; 1]> = bytes.iter().map(|b| [IoSlice::new(b)]).collect();
        let mut all = Vec::new();
        for (member, slices) in members.iter().zip(&slices) {
            let key = member.keyed.then_some(member.key.as_str());
            let kind = Kind::parse(member.kind.as_bytes()).context("a kind")?;
            all.push((key, kind, &slices[..]));
        }
        Ok(sealed(&self.volume.put_many(&all, &named(name)?)?))
    }

    /// The writer of a stream: the one that this client has, or a new one.
    fn writer(&mut self, stream: String) -> Result<&mut StreamWriter, Error> {
        match self.writers.entry(stream) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(fresh) => {
                let name = parse(fresh.key().clone())?;
                Ok(fresh.insert(self.volume.stream_writer(&name)?))
            }
        }
    }

    fn consume(&mut self, stream: String, content: Option<Content>) -> Result<Answer, Stop> {
        let reader = match self.readers.entry(stream) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(fresh) => {
                let name = parse(fresh.key().clone())?;
                fresh.insert(self.volume.stream_reader(&name)?.consuming())
            }
        };
        match (reader.next(Some(PART))?, content) {
            (None, None) => Ok(Answer::Done),
            (Some(part), Some(content)) => {
                Pattern::from(content)
                    .check(part.bytes())
                    .context("a part")?;
                Ok(Answer::Done)
            }
            (part, _) => Ok(Answer::Wrong(format!("{part:?} instead of {content:?}"))),
        }
    }

    fn create(&mut self, view: u32, content: Content) -> Result<Answer, Stop> {
        let pattern = Pattern::from(content);
        let draft = self.volume.create(Kind::Raw, pattern.len)?;
        // SAFETY: a draft's memory is its own, writable for its whole length, and nothing else refers to it.
        let memory = unsafe { std::slice::from_raw_parts_mut(draft.as_mut_ptr(), draft.len()) };
        pattern.fill(0, memory);
        self.views.insert(view, View::Draft(draft, pattern));
        Ok(Answer::Done)
    }

    fn get(
        &mut self,
        name: String,
        pattern: Pattern,
        shared: bool,
        view: Option<u32>,
    ) -> Result<Answer, Stop> {
        let mode = if shared {
            Mode::ReadOnly
        } else {
            Mode::CopyOnWrite
        };
        let object = self.volume.get(Key::Name(&parse(name)?), mode)?;
        pattern.check(object.bytes()).context("get")?;
        let id = object
            .id
            .map_or_else(String::new, |id| format!("{id}.{}", object.kind.as_str()));
        if let Some(view) = view {
            let held = match object.content {
                Bytes::Mapped(mapping) => View::Sealed(mapping, pattern, false),
                Bytes::Small(bytes) => View::Small(bytes, pattern),
            };
            self.views.insert(view, held);
        }
        Ok(Answer::Object { object: id })
    }

    fn check(&self, view: u32) -> Result<()> {
        match self.views.get(&view) {
            Some(View::Draft(draft, pattern)) => {
                // SAFETY: as in `create`; nobody writes meanwhile.
                let memory = unsafe { std::slice::from_raw_parts(draft.as_mut_ptr(), draft.len()) };
                pattern.check(memory).context("draft")
            }
            Some(View::Small(bytes, pattern)) => pattern.check(bytes).context("copy"),
            Some(View::Pack(pack, members)) => check_pack(pack, members),
            Some(View::Sealed(mapping, pattern, false)) => {
                pattern.check(mapping.as_slice()).context("view")
            }
            Some(View::Sealed(mapping, pattern, true)) => {
                let mut bytes = mapping.as_slice().to_vec();
                for byte in bytes.iter_mut().step_by(PAGE) {
                    *byte = !*byte;
                }
                pattern.check(&bytes).context("dirty view")
            }
            None => bail!("there is no view {view}"),
        }
    }
}

/// Every member by its key, and no others.
fn check_pack(pack: &Pack, members: &[Member]) -> Result<()> {
    ensure!(
        pack.len() == members.len(),
        "{} members instead of {}",
        pack.len(),
        members.len()
    );
    for member in members {
        let found = pack.find(&member.key);
        let (kind, range) = found.with_context(|| format!("{} is missing", member.key))?;
        ensure!(kind.as_str() == member.kind, "{} is a {kind}", member.key);
        let bytes = pack.mapping().as_slice().get(range).context("a range")?;
        Pattern::from(member.content)
            .check(bytes)
            .with_context(|| member.key.clone())?;
    }
    Ok(())
}

/// Writes to every page.
fn invert_pages(mapping: &Mapping) {
    for offset in (0..mapping.len()).step_by(PAGE) {
        // SAFETY: inside of the mapping, which is private and writable: the test dirties no shared one.
        unsafe {
            let byte = mapping.as_mut_ptr().add(offset);
            byte.write_volatile(!byte.read_volatile());
        }
    }
}

fn parse(name: String) -> Result<Name, Error> {
    Name::new(name)
}

fn named(name: Option<String>) -> Result<PutOptions, Error> {
    Ok(PutOptions {
        name: name.map(Name::new).transpose()?,
        ..PutOptions::default()
    })
}

fn sealed(object: &Ref) -> Answer {
    Answer::Object {
        object: format!("{}.{}", object.id, object.kind.as_str()),
    }
}

fn cause(error: &Error) -> Cause {
    match error {
        Error::NotFound { .. } | Error::Lost { .. } => Cause::Absent,
        Error::Exists { .. } => Cause::Exists,
        Error::Timeout { .. } => Cause::Timeout,
        Error::Full { full, .. } => match full.limit {
            Limit::Allowance => Cause::Allowance,
            Limit::Cgroup => Cause::Cgroup,
            Limit::Volume => Cause::Volume,
        },
        Error::Payer(ReserveError::Unreachable(_)) => Cause::Unreachable,
        _ => Cause::Other,
    }
}
