//! `kill -9`, and finding out what became of what was under way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Effect, Play};
use crate::commands::Command;
use crate::inspect::Shown;
use crate::model::Place;
use crate::steps::Step;
use crate::trace::Tracee;

impl Play {
    pub(super) fn kill_client(&mut self, after: Duration, what: &Step) -> Result<()> {
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

    pub(super) fn kill_sidecar(&mut self, after: Duration, what: &Step) -> Result<()> {
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
}

/// Sleeping would take longer than most of what is to be interrupted.
fn wait_exactly(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::yield_now();
    }
}
