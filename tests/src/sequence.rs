//! Plays a sequence of steps on a real volume with real pods, and compares with the model after every step.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vineyard_charge::RemotePayer;
use vineyard_store::{Fault, Options, Volume};

use crate::commands::{Answer, Cause, Command, Content};
use crate::inspect::{self, Shown};
use crate::ledger;
use crate::model::{File, MAX_READ, Model, Place};
use crate::pod::{Pod, PodSettings, World};
use crate::process::poll;
use crate::recharge::recharge;
use crate::steps::{NAMES, PODS, Step};
use crate::trace::Tracee;

/// Capacity of the volume: sequences fill it now and then.
const SIZE: u64 = 48 << 20;

/// What a client may hold reserved ahead of need, and what a reserve may need beyond its bytes.
const AHEAD: u64 = 2 << 20;

/// How long another test may take from fork to exec.
const SWEEP: Duration = Duration::from_secs(5);

/// Drafts have no inode that anybody sees: their numbers begin here.
const DRAFTS: u64 = 1 << 62;

/// What a command changes when it succeeds.
#[derive(Clone, Debug)]
enum Effect {
    /// An object with this content, sealed under this name; it had been this draft.
    Sealed(Content, Option<String>, Option<u32>),
    Drafted(Content, u32),
    /// The object got this name too.
    Linked(u64, String),
    /// Got, and held as this view.
    Got(u64, Option<u32>),
    /// Nothing: there is no such name.
    Absent,
    Dirtied,
    Released(u32),
    Removed(String),
    Discarded(u64),
    Written(Content, String),
}

/// The stage of a sequence.
#[derive(Debug)]
pub struct Play {
    pods: Vec<Pod>,
    payer: RemotePayer,
    retainer: Pod,
    model: Model,
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
        let mut retainer = world.pod(PodSettings::new("retainer", 9))?;
        retainer.start_sidecar()?;
        let payer = RemotePayer::connect(retainer.socket(), "driver")?;
        let model = Model {
            tree: ledger::survey(world.volume())?,
            ..Model::default()
        };
        Ok(Self {
            pods,
            payer,
            retainer,
            model,
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
            self.model.release_all(pod);
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

    /// What the client is told for a step, and what that changes. Nothing when it cannot be done now.
    fn orders(&mut self, step: &Step) -> Result<Vec<(Command, Effect)>> {
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

    /// Changes the model as the answer says.
    fn apply(&mut self, pod: usize, effect: &Effect, answer: &Answer) -> Result<()> {
        let payer = self.pods[pod].sidecar_cgroup().id();
        match (effect, answer) {
            (Effect::Sealed(content, name, draft), Answer::Object { object }) => {
                let inode = self.sealed(pod, object, *content, *draft)?;
                if let Some(name) = name {
                    self.model.point(name, inode);
                }
            }
            (Effect::Drafted(content, view), Answer::Done) => {
                let file = File {
                    content: *content,
                    payer,
                    place: Place::Nowhere,
                    holders: [(pod, *view)].into(),
                };
                self.model.files.insert(DRAFTS + u64::from(*view), file);
            }
            (Effect::Got(inode, view), Answer::Object { .. }) => {
                if let (Some(view), Some(file)) = (view, self.model.files.get_mut(inode)) {
                    file.holders.insert((pod, *view));
                }
            }
            (Effect::Absent, Answer::Failed(failure)) if failure.cause == Cause::Absent => {}
            (Effect::Dirtied, Answer::Done) => {}
            (Effect::Linked(inode, to), Answer::Done) => self.model.point(to, *inode),
            (Effect::Released(view), Answer::Done) => self.model.release((pod, *view)),
            (Effect::Removed(name), Answer::Count(there)) => {
                let expected = self.model.remove(name);
                ensure!(expected == (*there > 0), "the name was there: {expected}");
            }
            (Effect::Discarded(inode), Answer::Count(1)) => self.model.discard(*inode),
            (Effect::Written(content, name), Answer::Done) => self.written(pod, *content, name)?,
            (Effect::Sealed(content, _, draft), Answer::Failed(failure)) => {
                ensure!(draft.is_none(), "a draft could not be sealed: {failure:?}");
                self.justify(content.len, failure.cause)?;
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
    fn sealed(
        &mut self,
        pod: usize,
        object: &str,
        content: Content,
        draft: Option<u32>,
    ) -> Result<u64> {
        let place = Place::Objects(object.into());
        let path = inspect::path(self.world.volume(), &place).context("a path")?;
        let inode = fs::metadata(&path)?.ino();
        let mut file = File {
            content,
            payer: self.pods[pod].sidecar_cgroup().id(),
            place,
            holders: BTreeSet::new(),
        };
        if let Some(view) = draft {
            self.model.release((pod, view));
            // The memory stays mapped; a mapping without bytes is none.
            if content.len > 0 {
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
            content,
            payer: self.pods[pod].client_cgroup().id(),
            place,
            holders: BTreeSet::new(),
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

    fn kill_client(&mut self, after: Duration, what: &Step) -> Result<()> {
        let pod = what.pod();
        let order = self.orders(what)?.into_iter().next();
        if let Some((command, _)) = &order {
            self.pods[pod].client()?.send(command)?;
            wait_exactly(after);
        }
        self.pods[pod].kill_client()?;
        self.settle(pod, order)
    }

    /// `kill -9` of the client when it has entered or left system calls so many times since it was told to do `what`.
    /// False, and nobody was killed, when it has done it before.
    ///
    /// # Errors
    /// When something is not as the model says.
    pub fn kill_client_at(&mut self, stop: usize, what: &Step) -> Result<bool> {
        let pod = what.pod();
        let order = self
            .orders(what)?
            .into_iter()
            .next()
            .context("nothing to do")?;
        let client = self.pods[pod].client()?;
        let mut tracee = Tracee::attach(client.process().pid())?;
        client.send(&order.0)?;
        let reached = tracee.run(stop, || client.has_answered())?;
        if reached {
            // Dead before it could run on.
            self.pods[pod].kill_client()?;
            drop(tracee);
            self.settle(pod, Some(order))?;
        } else {
            drop(tracee);
            let answer = self.pods[pod].client()?.receive()?;
            self.apply(pod, &order.1, &answer)?;
        }
        self.check()?;
        Ok(reached)
    }

    /// A client was killed while it did this: find out what became of it, and start another.
    fn settle(&mut self, pod: usize, order: Option<(Command, Effect)>) -> Result<()> {
        self.model.release_all(pod);
        if let Some((command, effect)) = order {
            self.adopt(pod, &effect)
                .with_context(|| format!("killed in {command:?}"))?;
        }
        self.pods[pod].start_client()
    }

    fn kill_sidecar(&mut self, after: Duration, what: &Step) -> Result<()> {
        let pod = what.pod();
        let order = self.orders(what)?.into_iter().next();
        if let Some((command, _)) = &order {
            self.pods[pod].client()?.send(command)?;
            wait_exactly(after);
        }
        self.pods[pod].kill_sidecar()?;
        self.restart_sidecar(pod, order)
    }

    /// The same for the sidecar, which is started again at once: the client must not notice.
    ///
    /// # Errors
    /// When something is not as the model says.
    pub fn kill_sidecar_at(&mut self, stop: usize, what: &Step) -> Result<bool> {
        let pod = what.pod();
        let order = self
            .orders(what)?
            .into_iter()
            .next()
            .context("nothing to do")?;
        let mut tracee = Tracee::attach(self.pods[pod].sidecar()?.pid())?;
        let client = self.pods[pod].client()?;
        client.send(&order.0)?;
        let reached = tracee.run(stop, || client.has_answered())?;
        if reached {
            self.pods[pod].kill_sidecar()?;
            drop(tracee);
            self.restart_sidecar(pod, Some(order))?;
        } else {
            drop(tracee);
            let answer = self.pods[pod].client()?.receive()?;
            self.apply(pod, &order.1, &answer)?;
        }
        self.check()?;
        Ok(reached)
    }

    fn restart_sidecar(&mut self, pod: usize, order: Option<(Command, Effect)>) -> Result<()> {
        self.pods[pod].start_sidecar()?;
        if let Some((command, effect)) = order {
            let answer = self.pods[pod].client()?.receive()?;
            self.apply(pod, &effect, &answer)
                .with_context(|| format!("{command:?}: {answer:?}"))?;
        }
        Ok(())
    }

    /// A client was killed in the middle: what it was doing is done, or not, or only its last step, the removal of what
    /// lost its name, is missing. Whichever it is, the model follows.
    fn adopt(&mut self, pod: usize, effect: &Effect) -> Result<()> {
        let shown = Shown::scan(self.world.volume())?;
        let (added, name) = match effect {
            Effect::Sealed(content, name, _) => (Some(*content), name.as_ref()),
            Effect::Removed(name) | Effect::Linked(_, name) => (None, Some(name)),
            _ => (None, None),
        };
        let known = |object: &String| self.model.at(&Place::Objects(object.clone()));
        let fresh: Vec<_> = shown
            .objects
            .keys()
            .filter(|o| known(o).is_none())
            .collect();
        match (fresh.as_slice(), added) {
            ([], _) => {}
            ([object], Some(content)) => {
                self.sealed(pod, object, content, None)?;
            }
            (fresh, _) => bail!("{fresh:?} came from nowhere"),
        }
        let old = name.and_then(|name| self.model.names.get(name)).copied();
        if let Some(name) = name {
            match shown.names.get(name) {
                Some(object) => {
                    let inode = self.model.at(&Place::Objects(object.clone()));
                    let inode = inode.with_context(|| format!("{name} points to nothing"))?;
                    self.model.names.insert(name.clone(), inode);
                }
                None if matches!(effect, Effect::Removed(_)) => {
                    self.model.names.remove(name);
                }
                None => ensure!(old.is_none(), "{name} vanished"),
            }
        }
        let removable = match effect {
            Effect::Discarded(inode) => Some(*inode),
            _ => old,
        };
        if let Some(inode) = removable
            && let Some(Place::Objects(object)) = self.model.files.get(&inode).map(|f| &f.place)
            && !shown.objects.contains_key(object)
        {
            self.model.discard(inode);
        }
        self.litter = shown.tmp;
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
        self.model.release_all(pod);
        for id in ids {
            self.model.inherit(id, self.world.run().id());
        }
        let next = self.world.started(settings(pod, self.serial))?;
        self.pods.insert(pod, next);
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
        ledger::compare_used(self.world.mount().used()?, self.model.used(), ahead)
    }

    /// Removes from the trash what nobody maps. Another test that forks at this moment holds what the sweep has open
    /// until it executes its program: then it is asked again.
    fn sweep(&self) -> Result<()> {
        let trash = |f: &&File| matches!(f.place, Place::Trash(_));
        let expected = self.model.files.values().filter(trash).count() as u64;
        let mut result = Ok(());
        poll(SWEEP, || match self.driver.sweep() {
            Ok(report) => report.mapped <= expected,
            Err(error) => {
                result = Err(error);
                true
            }
        });
        Ok(result?)
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

/// Sleeping would take longer than most of what is to be interrupted.
fn wait_exactly(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::yield_now();
    }
}
