//! Random schedules: pods with several claims come and go, clients put, get and remove, and the driver, the retainer and sidecars
//! die in the middle of it. The model knows every object and who must pay for it.

mod reboot;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::commands::{Answer, Cause, Command, Content};
use crate::kubepods::Layout;
use crate::node::Node;
use crate::random::Random;

use super::bill::{self, Expected};
use super::pod::{Farewell, Mount, Pod};
use super::retainer::{POD, Place, Retainer};

const MIB: u64 = 1 << 20;
const STEPS: u64 = 24;
/// Orders to every client, one after the other.
const ROUNDS: u64 = 4;
const CAPACITY: u64 = 48 * MIB;
/// What a pod may add to its bill, when it may at all.
const WRITES: u64 = 16 * MIB;
const MOST_VOLUMES: usize = 3;
const MOST_PODS: usize = 3;
/// Fail points from an order to the death: a call passes about so many.
const PASSAGES: u64 = 40;

/// Hand-overs and looks at short intervals, so that a schedule does not take long; and waiting in vain does not either.
const FLAGS: [&str; 18] = [
    "--look-period",
    "100",
    "--survey-period",
    "1000",
    "--hand-over-pause",
    "20",
    "--hand-over-longest-pause",
    "200",
    "--hand-over-patience",
    "500",
    "--sweep-period",
    "100",
    "--sweep-rest",
    "0",
    "--grant-chunk",
    "1MiB",
    "--request-chunk",
    "4MiB",
];

#[derive(Debug)]
struct Object {
    content: Content,
    /// The pod that put it; none: the retainer pays.
    payer: Option<String>,
}

#[derive(Debug, Default)]
struct Volume {
    staged: bool,
    /// It has memory, with the directories and the mark of the store.
    made: bool,
    /// It had some before the node rebooted.
    lost: bool,
    objects: BTreeMap<String, Object>,
}

struct Schedule {
    // Before the node: its cgroup lies below the node's.
    pods: Vec<Pod>,
    retainer: Retainer,
    node: Node,
    client: &'static Path,
    random: Random,
    volumes: BTreeMap<String, Volume>,
    next: u32,
    kills: u64,
    puts: u64,
    refused: u64,
}

/// What a schedule had in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Played {
    /// Objects that were put.
    pub puts: u64,
    /// Puts that were refused, because there was no room or no allowance.
    pub refused: u64,
    /// Processes that were killed, and fail points at which the driver died.
    pub kills: u64,
}

/// Plays the schedule of `seed`. `client` is the test client's program.
///
/// # Errors
/// Whatever is not as the model says: a bill, a content, or what is left.
pub fn play(seed: u64, client: &'static str) -> Result<Played> {
    let place = Place::new()?;
    let socket = place.socket();
    let mut flags = vec!["--retainer", socket.to_str().context("a plain path")?];
    flags.extend(FLAGS);
    let layout = Layout::ALL[usize::try_from(seed % 2)?];
    let node = Node::laid_out(layout, &flags)?;
    let mut schedule = Schedule {
        retainer: Retainer::start(place, node.pods())?,
        node,
        client: Path::new(client),
        random: Random::new(seed),
        pods: Vec::new(),
        volumes: BTreeMap::new(),
        next: 0,
        kills: 0,
        puts: 0,
        refused: 0,
    };
    schedule.create()?;
    schedule.start_pod()?;
    for step in 0..STEPS {
        schedule.step().with_context(|| format!("step {step}"))?;
    }
    schedule.end().context("the end")?;
    Ok(Played {
        puts: schedule.puts,
        refused: schedule.refused,
        kills: schedule.kills,
    })
}

impl Schedule {
    fn step(&mut self) -> Result<()> {
        match self.random.below(20) {
            0..=1 => self.create(),
            2..=6 => self.start_pod(),
            7..=12 => (0..ROUNDS).try_for_each(|_| self.use_volumes()),
            13..=15 => self.stop_pod(),
            16 => self.restart_kubelet(),
            17 => self.kill_driver(),
            18 => self.check(),
            19 if self.random.chance(50) => self.reboot(),
            _ => self.delete(),
        }
    }

    /// Calls the driver, which may have to die meanwhile.
    fn call<T>(&mut self, call: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
        if self.random.chance(30) {
            self.node.order_death(self.random.below(PASSAGES) + 1)?;
        }
        let answer = call(&mut self.node);
        if self.node.spare()? {
            self.kills += 1;
            self.node.start()?;
        }
        answer
    }

    fn create(&mut self) -> Result<()> {
        if self.volumes.len() < MOST_VOLUMES {
            self.next += 1;
            let name = format!("pvc-{}", self.next);
            self.call(|node| node.create(&name, CAPACITY))?;
            self.volumes.insert(name, Volume::default());
        }
        Ok(())
    }

    fn start_pod(&mut self) -> Result<()> {
        if self.pods.len() == MOST_PODS || self.volumes.values().all(|it| it.lost) {
            return Ok(());
        }
        self.next += 1;
        let (number, uid) = (self.next, Pod::uid(self.next));
        let mut mounts = Vec::new();
        for (name, _) in self.volumes.iter().filter(|(_, volume)| !volume.lost) {
            if mounts.is_empty() || self.random.chance(30) {
                let read_only = !mounts.is_empty() && self.random.chance(30);
                mounts.push(Mount {
                    volume: name.clone(),
                    read_only,
                });
            }
        }
        // Kubelet makes the cgroup before it mounts, but does not promise it, and mounts in any order.
        let early = self.random.chance(80);
        let mut own = early.then(|| self.node.pods().pod(&uid)).transpose()?;
        let sockets_first = self.random.chance(50);
        let writes = if self.random.chance(75) { WRITES } else { 0 };
        let writes = writes.to_string();
        let mut sockets = None;
        if sockets_first {
            sockets = Some(self.call(|node| node.publish_sockets(&uid, Some(&writes)))?);
        }
        let mut paths = Vec::new();
        for mount in &mounts {
            paths.push(self.call(|node| node.publish(&mount.volume, &uid, mount.read_only))?);
            let volume = self.volumes.get_mut(&mount.volume).context("a volume")?;
            (volume.staged, volume.made) = (true, true);
        }
        let sockets = match sockets {
            Some(sockets) => sockets,
            None => self.call(|node| node.publish_sockets(&uid, Some(&writes)))?,
        };
        let own = match own.take() {
            Some(own) => own,
            None => self.node.pods().pod(&uid)?,
        };
        let mut pod = Pod::start(number, mounts, own, sockets)?;
        for path in &paths {
            pod.start_client(self.client, path)?;
        }
        self.pods.push(pod);
        Ok(())
    }

    /// Every client does something, and somebody may be killed in the middle.
    fn use_volumes(&mut self) -> Result<()> {
        let mut under_way = Vec::new();
        for pod in 0..self.pods.len() {
            for claim in 0..self.pods[pod].mounts.len() {
                // One at a time for a name: who wins a race is not what this is about.
                let mount = self.pods[pod].mounts[claim].clone();
                let name = format!("{}/{}", pod, self.random.below(6));
                let command = self.command(&mount, &name);
                self.pods[pod].client(claim).send(&command)?;
                under_way.push((pod, claim, command));
            }
        }
        std::thread::sleep(Duration::from_micros(self.random.below(3_000)));
        let (driver, retainer) = (self.random.chance(25), self.random.chance(25));
        if driver {
            self.node.kill()?;
            self.kills += 1;
        }
        if retainer {
            self.retainer.kill()?;
            self.kills += 1;
        }
        let place = self.random.index(self.pods.len().max(1));
        if self.random.chance(20)
            && let Some(pod) = self.pods.get_mut(place)
        {
            pod.restart_sidecar()?;
            self.kills += 1;
        }
        std::thread::sleep(Duration::from_micros(self.random.below(3_000)));
        if retainer {
            self.retainer.run()?;
        }
        if driver {
            self.node.start()?;
        }
        for (pod, claim, command) in under_way {
            let answer = self.pods[pod].client(claim).receive()?;
            self.done(pod, claim, &command, answer)
                .with_context(|| format!("{command:?}"))?;
        }
        Ok(())
    }

    fn command(&mut self, mount: &Mount, name: &str) -> Command {
        let objects = &self.volumes[&mount.volume].objects;
        let known = objects.get(name).map(|object| object.content);
        let content = known.unwrap_or(Content { seed: 0, len: 0 });
        let name = name.to_owned();
        match self.random.below(10) {
            0..=5 if !mount.read_only => {
                let most = self.random.one_of(&[4_096, 100_000, 300_000, MIB, 3 * MIB]);
                let content = Content {
                    seed: self.random.bits(),
                    len: 1 + self.random.below(most),
                };
                Command::Put {
                    name: Some(name),
                    content,
                    overwrite: true,
                }
            }
            6..=7 if !mount.read_only => Command::Remove { name },
            _ => Command::Get {
                name,
                content,
                shared: self.random.chance(50),
                view: None,
            },
        }
    }

    /// What the model makes of an answer.
    fn done(&mut self, pod: usize, claim: usize, command: &Command, answer: Answer) -> Result<()> {
        let uid = self.pods[pod].uid.clone();
        let name = self.pods[pod].mounts[claim].volume.clone();
        let objects = &mut self.volumes.get_mut(&name).context("a volume")?.objects;
        match (command, answer) {
            (
                Command::Put {
                    name: Some(name),
                    content,
                    ..
                },
                Answer::Object { .. },
            ) => {
                self.puts += 1;
                self.pods[pod].put += content.len;
                let object = Object {
                    content: *content,
                    payer: Some(uid),
                };
                objects.insert(name.clone(), object);
            }
            (Command::Remove { name }, Answer::Count(removed)) => {
                let known = u64::from(objects.remove(name).is_some());
                ensure!(removed == known, "{removed} were there instead of {known}");
            }
            (Command::Get { name, .. }, Answer::Object { .. } | Answer::Done) => {
                ensure!(objects.contains_key(name), "it is not there");
            }
            // What was refused has changed nothing; what is not there cannot be got.
            (Command::Put { .. }, Answer::Failed(failure)) => {
                let full = matches!(failure.cause, Cause::Allowance | Cause::Volume);
                ensure!(full, "a put is lost: {failure:?}");
                self.refused += 1;
            }
            (Command::Get { name, .. } | Command::Remove { name }, Answer::Failed(failure)) => {
                ensure!(!objects.contains_key(name), "{failure:?}");
            }
            (_, answer) => bail!("{answer:?}"),
        }
        Ok(())
    }

    fn stop_pod(&mut self) -> Result<()> {
        if self.pods.is_empty() {
            return Ok(());
        }
        let pod = self.pods.swap_remove(self.random.index(self.pods.len()));
        self.stop(pod)
    }

    /// In kubelet's order; the retainer may be away for all of it.
    fn stop(&mut self, mut pod: Pod) -> Result<()> {
        if self.random.chance(20) && !self.retainer.is_gone() {
            self.retainer.kill()?;
            self.kills += 1;
        }
        let farewell = self.random.one_of(&[Farewell::Told, Farewell::Killed]);
        if self.random.chance(20) {
            // It may die in the middle of the farewell, and of the hand-over that begins with it.
            self.node.order_death(self.random.below(PASSAGES) + 1)?;
        }
        pod.end(farewell)?;
        if self.node.spare()? {
            self.kills += 1;
            self.node.start()?;
        }
        let mut names: Vec<_> = pod
            .mounts
            .iter()
            .map(|mount| mount.volume.clone())
            .collect();
        let place = self.random.index(names.len() + 1);
        names.insert(place, "sockets".into());
        let (uid, mounts) = (pod.uid.clone(), pod.mounts.clone());
        // The cgroup normally lives until everything is unmounted.
        let mut pod = Some(pod);
        if self.random.chance(20) {
            drop(pod.take());
        }
        for name in &names {
            self.call(|node| node.unpublish(name, &uid))?;
        }
        drop(pod);
        if self.retainer.is_gone() {
            self.retainer.run()?;
        }
        let _ = fs::remove_file(self.node.folder().join(&uid));
        for object in self
            .volumes
            .values_mut()
            .flat_map(|it| it.objects.values_mut())
        {
            object.payer.take_if(|payer| *payer == uid);
        }
        for mount in mounts {
            let mut others = self.pods.iter().flat_map(|pod| &pod.mounts);
            if others.all(|other| other.volume != mount.volume) && self.random.chance(70) {
                self.unstage(&mount.volume)?;
            }
        }
        Ok(())
    }

    fn unstage(&mut self, name: &str) -> Result<()> {
        self.call(|node| node.unstage(name))?;
        self.volumes.get_mut(name).context("a volume")?.staged = false;
        Ok(())
    }

    /// A restarted kubelet publishes again what its pods have.
    fn restart_kubelet(&mut self) -> Result<()> {
        for pod in 0..self.pods.len() {
            let uid = self.pods[pod].uid.clone();
            for mount in self.pods[pod].mounts.clone() {
                self.call(|node| node.publish(&mount.volume, &uid, mount.read_only))?;
            }
        }
        Ok(())
    }

    fn kill_driver(&mut self) -> Result<()> {
        self.node.kill()?;
        self.kills += 1;
        self.node.start()
    }

    fn delete(&mut self) -> Result<()> {
        let unused = self.volumes.iter().find(|(name, _)| {
            let mut mounts = self.pods.iter().flat_map(|pod| &pod.mounts);
            mounts.all(|mount| mount.volume != **name)
        });
        let Some((name, volume)) = unused else {
            return Ok(());
        };
        let (name, staged) = (name.clone(), volume.staged);
        if staged {
            self.unstage(&name)?;
        }
        self.call(|node| node.delete(&name))?;
        self.volumes.remove(&name);
        Ok(())
    }

    /// Every byte is on the bill of whoever must pay for it.
    fn check(&mut self) -> Result<()> {
        let names: Vec<_> = self.volumes.keys().cloned().collect();
        for name in names {
            if self.volumes[&name].lost {
                self.is_nowhere(&name)?;
            }
            if !self.volumes[&name].made {
                continue;
            }
            let expected = self.expected(&name)?;
            let nobody = self.pods.iter().flat_map(|pod| &pod.mounts);
            let nobody = nobody.clone().all(|mount| mount.volume != name);
            let layer = self.layer(&name);
            bill::settle(&self.node, &layer, &expected, nobody)?;
        }
        Ok(())
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.node.folder().join("layers").join(name)
    }

    fn expected(&self, name: &str) -> Result<Expected> {
        let mut expected = Expected::default();
        // The mark of the store's format.
        expected.add(None, true, 1);
        for object in self.volumes[name].objects.values() {
            let payer = object.payer.as_deref();
            let pod = self.pods.iter().find(|pod| Some(pod.uid.as_str()) == payer);
            let mut exact = true;
            if let Some(pod) = pod {
                let record = self.node.record(&pod.uid)?.context("no record")?;
                let allowance = record["allowance"].as_u64().unwrap_or(0);
                // Else some of it may have been reserved by the retainer.
                exact = !pod.was_restarted && pod.put * 2 <= allowance;
            }
            expected.add(payer, exact, object.content.len);
        }
        Ok(expected)
    }

    fn end(&mut self) -> Result<()> {
        self.check()?;
        while let Some(pod) = self.pods.pop() {
            self.stop(pod)?;
        }
        self.check().context("after the last pod")?;
        self.check_content()?;
        for name in self.volumes.keys().cloned().collect::<Vec<_>>() {
            if self.volumes[&name].staged {
                self.unstage(&name)?;
            }
            self.call(|node| node.delete(&name))?;
        }
        self.check_nothing_is_left()
    }

    /// A new pod sees everything.
    fn check_content(&mut self) -> Result<()> {
        let names: Vec<_> = self.volumes.keys().cloned().collect();
        for name in names.into_iter().filter(|name| self.volumes[name].made) {
            for (object, known) in &self.volumes[&name].objects {
                let path = self.layer(&name).join(object);
                crate::inspect::content(&path, known.content.into(), true)
                    .with_context(|| format!("{name}/{object}"))?;
            }
        }
        Ok(())
    }

    fn check_nothing_is_left(&self) -> Result<()> {
        let mounts = self.node.mounts()?;
        ensure!(mounts.is_empty(), "mounts are left: {mounts:?}");
        for folder in [
            "layers",
            "run/pods",
            "run/book",
            "run/bill/volumes",
            "run/bill/leaving",
        ] {
            let path = self.node.folder().join(folder);
            let left: Vec<_> = fs::read_dir(&path)
                .into_iter()
                .flatten()
                .flatten()
                .collect();
            ensure!(left.is_empty(), "{folder} holds {left:?}");
        }
        let catalog = fs::read_dir(self.node.folder().join("catalog"))?;
        for entry in catalog {
            let name = entry?.file_name();
            ensure!(
                name == "lock" || name == "nodes",
                "the catalog holds {name:?}"
            );
        }
        let pods = self.node.pods().uids()?;
        ensure!(pods == [POD], "cgroups of pods are left: {pods:?}");
        Ok(())
    }
}
