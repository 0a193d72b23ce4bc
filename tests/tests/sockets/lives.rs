//! Random lives of a pod: clients put and remove while driver and sidecar are killed in the middle of it.
//!
//! `VINEYARD_SEED=n` plays one life, `VINEYARD_LIVES=n` that many (default: 2).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use vineyard_tests::commands::{Answer, Cause, Command, Content};
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::random::Random;
use vineyard_tests::watchdog::deadline;

use crate::pod::{Pod, put, recorded};
use crate::{MIB, possible};

const CLIENTS: usize = 3;
const STEPS: u64 = 40;
const ALLOWANCE: u64 = 32 * MIB;

/// The tree's own files, which are on nobody's allowance.
const TREE: u64 = 64 << 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whoever_is_killed_nothing_is_spent_twice_and_nothing_that_was_put_is_lost() -> Result<()> {
    possible!();
    let seeds = match number("VINEYARD_SEED") {
        Some(seed) => vec![seed],
        None => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let lives = number("VINEYARD_LIVES").unwrap_or(2);
            (0..lives)
                .map(|life| now.wrapping_mul(1000) + life)
                .collect()
        }
    };
    for seed in seeds {
        println!("again: VINEYARD_SEED={seed} cargo test -p vineyard-tests --test sockets lives");
        let _limit = deadline(Duration::from_secs(400), format!("life {seed}"));
        live(seed).with_context(|| format!("life {seed}"))?;
    }
    Ok(())
}

struct Life {
    // Before the node, whose cgroup its cgroups are in.
    pod: Pod,
    node: Node,
    random: Random,
    /// What is known to be there.
    kept: BTreeMap<String, Content>,
    puts: u64,
    kills: u64,
}

fn live(seed: u64) -> Result<()> {
    let mut node = Node::new(&["--grant-chunk", "2MiB"])?;
    node.create("data", 48 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, Some("32MiB"))?;
    for _ in 0..CLIENTS {
        pod.start_client()?;
    }
    let mut life = Life {
        node,
        pod,
        random: Random::new(seed),
        kept: BTreeMap::new(),
        puts: 0,
        kills: 0,
    };
    for _ in 0..STEPS {
        match life.random.below(10) {
            0..=5 => life.put_all(false, false)?,
            6 => life.put_all(true, false)?,
            7 => life.put_all(false, true)?,
            8 => life.put_all(true, true)?,
            _ => life.remove()?,
        }
        life.check()?;
    }
    life.end()
}

impl Life {
    /// Every client puts something; meanwhile the driver or the sidecar may be killed.
    fn put_all(&mut self, driver: bool, sidecar: bool) -> Result<()> {
        let mut under_way = Vec::new();
        for client in 0..CLIENTS {
            let name = format!("n/{}", self.random.below(12) * 3 + client as u64);
            let most = self.random.one_of(&[500, 40_000, MIB, 4 * MIB]);
            let content = Content {
                seed: self.random.bits(),
                len: 1 + self.random.below(most),
            };
            self.pod.clients[client].send(&put(&name, content))?;
            under_way.push((name, content));
        }
        std::thread::sleep(Duration::from_micros(self.random.below(3000)));
        if driver {
            self.node.kill()?;
            self.kills += 1;
        }
        if sidecar {
            self.pod.kill_sidecar()?;
            self.kills += 1;
            self.pod.start_sidecar()?;
        }
        if driver {
            std::thread::sleep(Duration::from_millis(self.random.below(50)));
            self.node.start()?;
        }
        for (client, (name, content)) in under_way.into_iter().enumerate() {
            match self.pod.clients[client].receive()? {
                Answer::Object { .. } => {
                    self.kept.insert(name, content);
                    self.puts += 1;
                }
                Answer::Failed(failure) => {
                    let full = matches!(failure.cause, Cause::Allowance | Cause::Volume);
                    ensure!(full, "a put is lost: {failure:?}");
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        for _ in 0..4 {
            let index = self.random.index(self.kept.len());
            let Some(name) = self.kept.keys().nth(index).cloned() else {
                return Ok(());
            };
            self.kept.remove(&name);
            let client = self.random.index(CLIENTS);
            let removed = self.pod.clients[client].call(&Command::Remove { name })?;
            ensure!(!matches!(removed, Answer::Failed(_)), "{removed:?}");
        }
        Ok(())
    }

    /// The volume is this pod's alone: whatever it holds was granted.
    fn check(&mut self) -> Result<()> {
        let granted = recorded(&self.node, "p1", "granted")?.context("no grant")?;
        let used = used(&self.pod)?;
        ensure!(
            used <= granted + TREE,
            "{used} bytes of {granted} that were granted"
        );
        ensure!(granted <= ALLOWANCE, "{granted} bytes are granted");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        for (index, (name, content)) in self.kept.clone().into_iter().enumerate() {
            self.pod.get(index % CLIENTS, &name, content)?;
        }
        // What was lost with a sidecar or a client is found again: as much fits as is really free.
        for client in self.pod.clients.drain(..) {
            client.kill()?;
        }
        self.pod.kill_sidecar()?;
        self.pod.start_sidecar()?;
        self.pod.start_client()?;
        let len = ALLOWANCE
            .saturating_sub(used(&self.pod)?)
            .saturating_sub(MIB);
        let content = Content { seed: 1, len };
        let mut answer = None;
        let fits = poll(Duration::from_secs(60), || {
            answer = Some(self.pod.put(0, "rest", content));
            !matches!(answer, Some(Ok(Answer::Failed(_))))
        });
        ensure!(fits, "{len} bytes are free: {answer:?}");
        self.check()?;
        println!("{} puts, {} kills", self.puts, self.kills);
        self.pod.unpublish(&mut self.node, self.random.chance(50))?;
        self.node.unstage("data")?;
        self.node.delete("data")?;
        ensure!(self.node.mounts()?.is_empty(), "{:?}", self.node.mounts()?);
        Ok(())
    }
}

fn used(pod: &Pod) -> Result<u64> {
    let stat = statvfs(pod.volume())?;
    Ok((stat.blocks() - stat.blocks_free()) * stat.fragment_size())
}
