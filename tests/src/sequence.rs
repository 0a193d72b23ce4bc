//! Plays a sequence of steps on a real volume with real pods, and compares with the model after every step.

mod kills;
mod orders;
mod streams;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vineyard_charge::RemotePayer;
use vineyard_store::{Fault, Options, Volume};

use crate::body::Body;
use crate::commands::{Answer, Cause, Command, Content};
use crate::inspect::{self, Shown};
use crate::ledger;
use crate::model::{Ends, File, Model, Place, part};
use crate::pod::{Pod, PodSettings, World};
use crate::process::poll;
use crate::recharge::recharge;
use crate::steps::{PODS, Step};

/// Capacity of the volume: sequences fill it now and then.
const SIZE: u64 = 64 << 20;

/// What a client may hold reserved ahead of need, and what a reserve may need beyond its bytes.
const AHEAD: u64 = 2 << 20;

/// How long another test may take from fork to exec.
const SWEEP: Duration = Duration::from_secs(5);

/// Drafts have no inode that anybody sees: their numbers begin here.
const DRAFTS: u64 = 1 << 62;

/// What a command changes when it succeeds.
#[derive(Clone, Debug)]
enum Effect {
    Sealed(Sealed),
    Drafted(Content, u32),
    /// The object got this name too.
    Linked(u64, String),
    /// Got, and held as this view.
    Got(u64, Option<u32>),
    /// Nothing: there is no such name.
    Absent,
    /// Nothing: the stream has ended.
    Taken,
    Nothing,
    Released(u32),
    Removed(String),
    Discarded(u64),
    Written(Content, String),
    /// A part of the stream.
    Appended(Content, String),
    Ended(String),
    /// This part was taken.
    Consumed(String, u64),
    /// Nothing was left at this part, and nothing will come.
    Finished(String, u64),
    StreamRemoved(String),
}

impl Effect {
    /// The stream that it is about.
    fn stream(&self) -> Option<&str> {
        match self {
            Self::Appended(_, stream)
            | Self::Ended(stream)
            | Self::Consumed(stream, _)
            | Self::StreamRemoved(stream) => Some(stream),
            _ => None,
        }
    }

    /// Whether names go by it.
    fn removes(&self) -> bool {
        matches!(
            self,
            Self::Removed(_) | Self::Consumed(..) | Self::StreamRemoved(_)
        )
    }
}

/// An object that is sealed.
#[derive(Clone, Debug)]
struct Sealed {
    body: Body,
    name: Option<String>,
    /// The draft that it had been.
    draft: Option<u32>,
    /// What the mark of its time to live says.
    expires: Option<String>,
}

/// The stage of a sequence.
#[derive(Debug)]
pub struct Play {
    pods: Vec<Pod>,
    payer: RemotePayer,
    retainer: Pod,
    model: Model,
    ends: Ends,
    driver: Arc<Volume>,
    litter: BTreeSet<String>,
    serial: u32,
    world: World,
}

impl Play {
    /// A fresh volume, two pods and a retainer. `client` is the test client's program.
    ///
    /// # Errors
    /// When something does not start.
    pub fn new(client: &'static str) -> Result<Self> {
        let world = World::new(SIZE, client)?;
        let driver = Arc::new(Volume::open(world.volume(), Options::default())?);
        let pods = (0..PODS)
            .map(|pod| world.started(settings(pod, 0)))
            .collect::<Result<_>>()?;
        let (retainer, payer) = world.payer(PodSettings::new("retainer", 9))?;
        let model = Model {
            tree: ledger::survey(world.volume())?,
            ..Model::default()
        };
        Ok(Self {
            pods,
            payer,
            retainer,
            model,
            ends: Ends::default(),
            driver,
            litter: BTreeSet::new(),
            serial: 0,
            world,
        })
    }

    /// Does one step and checks everything.
    ///
    /// # Errors
    /// When something is not as the model says.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Recharge { pod } => self.recharge(*pod)?,
            Step::ReplacePod { pod } => self.replace(*pod)?,
            Step::Expire { which } => self.expire(*which)?,
            Step::KillClient { after, what } => self.kill_client(*after, what)?,
            Step::KillSidecar { after, what } => self.kill_sidecar(*after, what)?,
            what => {
                for (command, effect) in self.orders(what)? {
                    let answer = self.pods[what.pod()].call(&command)?;
                    self.apply(what.pod(), &effect, &answer)
                        .with_context(|| format!("{command:?}"))?;
                }
            }
        }
        self.check()
    }

    /// Checks every view that is still held, and that nothing is left once the clients are gone.
    ///
    /// # Errors
    /// When something is not as the model says.
    pub fn finish(mut self) -> Result<()> {
        for pod in 0..PODS {
            for (view, _) in self.model.views(pod) {
                match self.pods[pod].call(&Command::Check { view })? {
                    Answer::Done => {}
                    other => bail!("view {view} of pod {pod}: {other:?}"),
                }
            }
        }
        for pod in 0..PODS {
            self.pods[pod].kill_client()?;
            self.forget_client(pod);
        }
        self.check()?;
        // Notes of clients that were killed are no harm; everything else is.
        let report = self.driver.fsck(false)?;
        let mut problems = report
            .problems
            .into_iter()
            .filter(|p| p.fault != Fault::Orphan);
        problems
            .next()
            .map_or(Ok(()), |problem| bail!("{problem:?}"))
    }

    /// Changes the model as the answer says.
    fn apply(&mut self, pod: usize, effect: &Effect, answer: &Answer) -> Result<()> {
        let payer = self.pods[pod].sidecar_cgroup().id();
        match (effect, answer) {
            (Effect::Sealed(sealed), Answer::Object { object }) => {
                let inode = self.sealed(pod, object, sealed)?;
                if let Some(name) = &sealed.name {
                    self.model.point(name, inode);
                }
            }
            (Effect::Drafted(content, view), Answer::Done) => {
                let file = File {
                    body: Body::Value(*content),
                    payer,
                    place: Place::Nowhere,
                    holders: [(pod, *view)].into(),
                    expires: None,
                };
                self.model.files.insert(DRAFTS + u64::from(*view), file);
            }
            (Effect::Got(inode, view), Answer::Object { .. }) => {
                if let (Some(view), Some(file)) = (view, self.model.files.get_mut(inode)) {
                    file.holders.insert((pod, *view));
                }
            }
            (Effect::Absent, Answer::Failed(failure)) if failure.cause == Cause::Absent => {}
            (Effect::Taken, Answer::Failed(failure)) if failure.cause == Cause::Exists => {}
            (Effect::Nothing, Answer::Done) => {}
            (Effect::Linked(inode, to), Answer::Done) => self.model.point(to, *inode),
            (Effect::Released(view), Answer::Done) => self.model.release((pod, *view)),
            (Effect::Removed(name), Answer::Count(there)) => {
                let expected = self.model.remove(name);
                ensure!(expected == (*there > 0), "the name was there: {expected}");
            }
            (Effect::Discarded(inode), Answer::Count(1)) => self.model.discard(*inode),
            (Effect::Written(content, name), Answer::Done) => self.written(pod, *content, name)?,
            (Effect::Appended(content, stream), Answer::Object { object }) => {
                self.opened(pod, stream);
                let sealed = Sealed {
                    body: Body::Value(*content),
                    name: Some(part(stream, self.model.next_part(stream))),
                    draft: None,
                    expires: None,
                };
                let inode = self.sealed(pod, object, &sealed)?;
                self.model.names.extend(sealed.name.map(|n| (n, inode)));
            }
            (Effect::Ended(stream), Answer::Count(parts)) => {
                self.opened(pod, stream);
                self.ends.writers.remove(&(pod, stream.clone()));
                let expected = self.model.next_part(stream);
                ensure!(*parts == expected, "{parts} parts instead of {expected}");
                self.ended(pod, stream)?;
            }
            (Effect::Consumed(stream, index), Answer::Done) => {
                self.model.consume(stream, *index);
                let reader = (pod, stream.clone());
                self.ends.readers.insert(reader, index + 1);
            }
            (Effect::Finished(stream, index), Answer::Done) => {
                self.ends.readers.insert((pod, stream.clone()), *index);
            }
            (Effect::StreamRemoved(stream), Answer::Count(parts)) => {
                self.stream_removed(stream, *parts)?;
            }
            (Effect::Appended(_, stream) | Effect::Ended(stream), Answer::Failed(failure)) => {
                // The stream is there, and the writer is dropped.
                self.opened(pod, stream);
                self.ends.writers.remove(&(pod, stream.clone()));
                let len = match effect {
                    Effect::Appended(content, _) => content.len,
                    _ => 1,
                };
                self.justify(len, failure.cause)?;
            }
            (Effect::Sealed(sealed), Answer::Failed(failure)) => {
                ensure!(
                    sealed.draft.is_none(),
                    "a draft could not be sealed: {failure:?}"
                );
                self.justify(sealed.body.len(), failure.cause)?;
            }
            (Effect::Drafted(content, _), Answer::Failed(failure)) => {
                self.justify(content.len, failure.cause)?;
            }
            (Effect::Written(content, name), Answer::Wrong(_)) => {
                self.justify(content.len, Cause::Volume)?;
                // Half-written, as ordinary files are.
                let _ = fs::remove_file(self.world.volume().join(name));
                self.model
                    .files
                    .retain(|_, f| f.place != Place::Plain(name.clone()));
            }
            (effect, answer) => bail!("{effect:?} was expected, not {answer:?}"),
        }
        Ok(())
    }

    /// An object was sealed, maybe from a draft.
    fn sealed(&mut self, pod: usize, object: &str, sealed: &Sealed) -> Result<u64> {
        let place = Place::Objects(object.into());
        let path = inspect::path(self.world.volume(), &place).context("a path")?;
        let inode = fs::metadata(&path)?.ino();
        let mut file = File {
            body: sealed.body.clone(),
            payer: self.pods[pod].sidecar_cgroup().id(),
            place,
            holders: BTreeSet::new(),
            expires: sealed.expires.clone(),
        };
        if file.expires.is_some() {
            self.model.marked.insert(object.into());
        }
        if let Some(view) = sealed.draft {
            self.model.release((pod, view));
            // The memory stays mapped; a mapping without bytes is none.
            if !file.body.is_empty() {
                file.holders.insert((pod, view));
            }
        }
        self.model.files.insert(inode, file);
        Ok(inode)
    }

    fn written(&mut self, pod: usize, content: Content, name: &str) -> Result<()> {
        let place = Place::Plain(name.into());
        self.model.files.retain(|_, file| file.place != place);
        let inode = fs::metadata(self.world.volume().join(name))?.ino();
        let file = File {
            body: Body::Value(content),
            payer: self.pods[pod].client_cgroup().id(),
            place,
            holders: BTreeSet::new(),
            expires: None,
        };
        self.model.files.insert(inode, file);
        Ok(())
    }

    /// A volume may be full only when it is.
    fn justify(&self, len: u64, cause: Cause) -> Result<()> {
        ensure!(cause == Cause::Volume, "{cause:?}");
        let (used, capacity) = (self.model.used(), self.world.mount().capacity()?);
        ensure!(
            used + len + AHEAD > capacity,
            "{len} bytes are refused although {used} of {capacity} bytes are in use"
        );
        Ok(())
    }

    fn recharge(&mut self, pod: usize) -> Result<()> {
        let from = self.pods[pod].cgroup().memory().subtree()?;
        let owners = self.retainer.cgroup().memory().subtree()?;
        recharge(self.world.mount(), &from, &owners, &self.payer)?;
        let to = self.retainer.sidecar_cgroup().id();
        let shown = Shown::scan(self.world.volume())?;
        let moved: Vec<u64> = self
            .model
            .files
            .iter()
            .filter(|(_, f)| from.contains(&f.payer) && f.place != Place::Nowhere)
            .map(|(inode, _)| *inode)
            .collect();
        for old in moved {
            let file = self.model.files[&old].clone();
            let now = match &file.place {
                Place::Objects(name) => shown.objects.get(name),
                Place::Trash(name) => shown.trash.get(name),
                Place::Plain(name) => shown.plain.get(name),
                Place::Nowhere => None,
            };
            let now = *now.with_context(|| format!("{:?} vanished", file.place))?;
            if now == old {
                self.model.files.entry(old).and_modify(|f| f.payer = to);
                continue;
            }
            // Copied into another file: views keep the old one.
            let copy = File {
                payer: to,
                holders: BTreeSet::new(),
                ..file
            };
            self.model
                .files
                .entry(old)
                .and_modify(|f| f.place = Place::Nowhere);
            self.model.files.insert(now, copy);
            for inode in self.model.names.values_mut().filter(|i| **i == old) {
                *inode = now;
            }
        }
        self.model.collect();
        Ok(())
    }

    fn replace(&mut self, pod: usize) -> Result<()> {
        self.serial += 1;
        let old = self.pods.remove(pod);
        let ids = old.cgroup().memory().subtree()?;
        old.remove()?;
        self.forget_client(pod);
        for id in ids {
            self.model.inherit(id, self.world.run().id());
        }
        let next = self.world.started(settings(pod, self.serial))?;
        self.pods.insert(pod, next);
        Ok(())
    }

    /// A client is gone with all that it held.
    fn forget_client(&mut self, pod: usize) {
        self.model.release_all(pod);
        self.ends.forget(pod);
    }

    /// Turns the clock: the time of an object is over, and the driver, which sweeps before every check, sees it.
    fn expire(&mut self, which: u64) -> Result<()> {
        let expiring: Vec<(u64, String)> = self
            .model
            .files
            .iter()
            .filter_map(|(inode, file)| match (&file.place, &file.expires) {
                (Place::Objects(object), Some(_)) => Some((*inode, object.clone())),
                _ => None,
            })
            .collect();
        let Some((inode, object)) = orders::pick(&expiring, which) else {
            return Ok(());
        };
        let marks = self.world.volume().join(".vineyard/ttl");
        for mark in fs::read_dir(&marks)? {
            let mark = mark?.path();
            if mark.to_string_lossy().ends_with(object) {
                fs::rename(&mark, marks.join(format!("{:012}.{object}", 1)))?;
            }
        }
        self.model.expire(*inode);
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        for pod in &mut self.pods {
            pod.check_alive()?;
        }
        self.retainer.check_alive()?;
        self.model.collect();
        self.sweep()?;
        inspect::compare(self.world.volume(), &self.model, &self.litter)?;
        ledger::check(self.world.volume(), &self.model.bill())?;
        let ahead = self.pods.iter().filter(|pod| pod.has_client()).count() as u64 * AHEAD;
        ledger::check_used(self.world.mount(), self.model.used(), ahead)
    }

    /// Removes what is not needed any more. An object that somebody was about to name, or to remove, when he was killed a minute ago is not.
    fn sweep(&mut self) -> Result<()> {
        while let swept @ 1.. = self.sweep_trash()? {
            self.forget_swept(swept)?;
        }
        Ok(())
    }

    fn forget_swept(&mut self, swept: u64) -> Result<()> {
        let shown = Shown::scan(self.world.volume())?;
        let mut gone = self.model.unnamed();
        gone.retain(|inode| match &self.model.files[inode].place {
            Place::Objects(object) => !shown.objects.contains_key(object),
            _ => false,
        });
        ensure!(
            gone.len() as u64 == swept,
            "{swept} objects were swept, and {gone:?} are gone"
        );
        for inode in gone {
            self.model.discard(inode);
        }
        Ok(())
    }

    /// Removes from the trash what nobody maps, and returns how many objects without a name were found. Another test that forks at this
    /// moment holds what the sweep has open until it executes its program: then it is asked again.
    fn sweep_trash(&self) -> Result<u64> {
        let trash = |f: &&File| matches!(f.place, Place::Trash(_));
        let expected = self.model.files.values().filter(trash).count() as u64;
        let (mut unnamed, mut result) = (0, Ok(()));
        poll(SWEEP, || match self.driver.sweep() {
            Ok(report) => {
                unnamed += report.unnamed;
                report.mapped <= expected + unnamed
            }
            Err(error) => {
                result = Err(error);
                true
            }
        });
        result?;
        Ok(unnamed)
    }

    fn content(&mut self, len: u64) -> Content {
        Content {
            seed: u64::from(self.next()),
            len,
        }
    }

    fn next(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }
}

fn settings(pod: usize, generation: u32) -> PodSettings {
    let number = u32::try_from(pod).unwrap_or(0) * 5000 + 20 + generation % 4000;
    PodSettings::new(&format!("pod-{pod}"), number)
}
