//! `kill -9`, and finding out what became of what was under way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::orders::Order;
use super::{Effect, Play, Sealed};
use crate::body::Body;
use crate::inspect::Shown;
use crate::model::Place;
use crate::pod::Pod;
use crate::steps::Step;
use crate::trace::Tracee;

impl Play {
    pub(super) fn kill_client(&mut self, after: Duration, what: &Step) -> Result<()> {
        let order = self.begin(after, what)?;
        self.pods[what.pod()].kill_client()?;
        self.settle(what.pod(), order)
    }

    pub(super) fn kill_sidecar(&mut self, after: Duration, what: &Step) -> Result<()> {
        let order = self.begin(after, what)?;
        self.pods[what.pod()].kill_sidecar()?;
        self.restart_sidecar(what.pod(), order)
    }

    /// Tells the client what to do, if there is anything, and waits.
    fn begin(&mut self, after: Duration, what: &Step) -> Result<Option<Order>> {
        let order = self.main_order(what)?;
        if let Some((command, _)) = &order {
            self.pods[what.pod()].client()?.send(command)?;
            wait_exactly(after);
        }
        Ok(order)
    }

    /// `kill -9` of the client when it has entered or left system calls so many times since it was told to do `what`.
    /// False, and nobody was killed, when it has done it before.
    ///
    /// # Errors
    /// When something is not as the model says.
    pub fn kill_client_at(&mut self, stop: usize, what: &Step) -> Result<bool> {
        let client = self.pods[what.pod()].client()?.process().pid();
        let kill = |pod: &mut Pod| pod.kill_client();
        self.kill_at(client, stop, what, kill, Self::settle)
    }

    /// The same for the sidecar, which is started again at once: the client must not notice.
    ///
    /// # Errors
    /// When something is not as the model says.
    pub fn kill_sidecar_at(&mut self, stop: usize, what: &Step) -> Result<bool> {
        let sidecar = self.pods[what.pod()].sidecar()?.pid();
        let kill = |pod: &mut Pod| pod.kill_sidecar();
        self.kill_at(sidecar, stop, what, kill, Self::restart_sidecar)
    }

    fn kill_at(
        &mut self,
        victim: u32,
        stop: usize,
        what: &Step,
        kill: impl FnOnce(&mut Pod) -> Result<()>,
        mend: impl FnOnce(&mut Self, usize, Option<Order>) -> Result<()>,
    ) -> Result<bool> {
        let pod = what.pod();
        let order = self.main_order(what)?;
        let order = order.context("nothing to do")?;
        let mut tracee = Tracee::attach(victim)?;
        let client = self.pods[pod].client()?;
        client.send(&order.0)?;
        let reached = tracee.run(stop, || client.has_answered())?;
        if reached {
            // Dead before it could run on.
            kill(&mut self.pods[pod])?;
            drop(tracee);
            mend(self, pod, Some(order))?;
        } else {
            drop(tracee);
            let answer = self.pods[pod].client()?.receive()?;
            self.apply(pod, &order.1, &answer)?;
        }
        self.check()?;
        Ok(reached)
    }

    /// The command of a step in the middle of which somebody is killed; what comes before it is done.
    fn main_order(&mut self, what: &Step) -> Result<Option<Order>> {
        let mut orders = self.orders(what)?;
        if !matches!(what, Step::Again { .. }) {
            return Ok(orders.into_iter().next());
        }
        let last = orders.pop();
        for (command, effect) in orders {
            let answer = self.pods[what.pod()].call(&command)?;
            self.apply(what.pod(), &effect, &answer)
                .with_context(|| format!("{command:?}"))?;
        }
        Ok(last)
    }

    /// A client was killed while it did this: find out what became of it, and start another.
    fn settle(&mut self, pod: usize, order: Option<Order>) -> Result<()> {
        self.forget_client(pod);
        if let Some((command, effect)) = &order {
            self.adopt(pod, effect)
                .with_context(|| format!("killed in {command:?}"))?;
        }
        self.pods[pod].start_client()?;
        // What is half removed is removed again, as whoever was killed would do it.
        if let Some((command, effect @ Effect::StreamRemoved(_))) = order {
            let answer = self.pods[pod].call(&command)?;
            self.apply(pod, &effect, &answer)?;
        }
        Ok(())
    }

    fn restart_sidecar(&mut self, pod: usize, order: Option<Order>) -> Result<()> {
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
        self.model.marked.extend(shown.marks.keys().cloned());
        self.adopt_object(pod, effect, &shown)?;
        self.adopt_stream(pod, effect, &shown)?;
        let mut lost = match effect {
            Effect::Discarded(inode) => vec![*inode],
            _ => Vec::new(),
        };
        for name in self.touched(effect, &shown) {
            let old = self.model.names.get(&name).copied();
            match shown.names.get(&name) {
                Some(object) => {
                    let inode = self.model.at(&Place::Objects(object.clone()));
                    let inode = inode.with_context(|| format!("{name} points to nothing"))?;
                    self.model.names.insert(name, inode);
                }
                None if effect.removes() => {
                    self.model.names.remove(&name);
                }
                None => ensure!(old.is_none(), "{name} vanished"),
            }
            lost.extend(old);
        }
        for inode in lost {
            if let Some(Place::Objects(object)) = self.model.files.get(&inode).map(|f| &f.place)
                && !shown.objects.contains_key(object)
            {
                self.model.discard(inode);
            }
        }
        self.litter = shown.tmp;
        Ok(())
    }

    /// The object that it made, if it came so far.
    fn adopt_object(&mut self, pod: usize, effect: &Effect, shown: &Shown) -> Result<()> {
        let known = |object: &String| self.model.at(&Place::Objects(object.clone()));
        let objects = shown.objects.keys();
        let fresh: Vec<_> = objects.filter(|o| known(o).is_none()).collect();
        let sealed = match effect {
            Effect::Sealed(sealed) => Sealed {
                draft: None,
                ..sealed.clone()
            },
            Effect::Appended(content, _) => Sealed {
                body: Body::Value(*content),
                name: None,
                draft: None,
                expires: None,
            },
            _ => {
                ensure!(fresh.is_empty(), "{fresh:?} came from nowhere");
                return Ok(());
            }
        };
        match fresh.as_slice() {
            [] => Ok(()),
            [object] => self.sealed(pod, object, &sealed).map(drop),
            fresh => bail!("{fresh:?} came from nowhere"),
        }
    }

    /// The names that it was about to change.
    fn touched(&self, effect: &Effect, shown: &Shown) -> Vec<String> {
        let name = match effect {
            Effect::Sealed(sealed) => sealed.name.as_ref(),
            Effect::Removed(name) | Effect::Linked(_, name) => Some(name),
            _ => None,
        };
        let below = effect.stream().map(|stream| format!("{stream}/"));
        let all = self.model.names.keys().chain(shown.names.keys());
        let mut names: Vec<String> = all
            .filter(|n| below.as_ref().is_some_and(|b| n.starts_with(b)))
            .chain(name)
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Sleeping would take longer than most of what is to be interrupted.
fn wait_exactly(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::yield_now();
    }
}
