//! Who is billed, as the kernel says: a survey of the volume on its node, page by page, and the counters of the pods' cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use serde_json::Value;
use vineyard_charge::survey::Ledger;
use vineyard_tests::cluster::Cluster;

use crate::namespace::Namespace;
use crate::{MIB, PATIENCE, SYSTEM, compact, reached};

/// What a bill may differ by: a region that is filled in part, and what the store keeps for itself.
const SLACK: u64 = 2 * MIB;

/// After how many looks at a bill that is not what it should be memory is compacted.
const COMPACTED: u32 = 30;

/// Memory of containers that is not the volume's.
const OWN: u64 = 24 * MIB;

/// Bytes of a volume by who is billed: a pod's name, `retainer`, or the path of a cgroup.
pub(crate) type Bill = BTreeMap<String, u64>;

/// The volume of a claim, on the node that has its memory.
pub(crate) struct Bills<'a> {
    namespace: &'a Namespace<'a>,
    node: u8,
    volume: String,
}

/// A pod on record.
pub(crate) struct Known {
    name: String,
    uid: String,
}

impl<'a> Bills<'a> {
    pub(crate) fn new(namespace: &'a Namespace<'a>, claim: &str, node: u8) -> Result<Self> {
        Ok(Self::of(namespace, namespace.volume(claim)?, node))
    }

    /// Of a volume that is known already.
    pub(crate) fn of(namespace: &'a Namespace<'a>, volume: String, node: u8) -> Self {
        Self {
            namespace,
            node,
            volume,
        }
    }

    /// Number of the node.
    pub(crate) fn node(&self) -> u8 {
        self.node
    }

    /// Where the volume is mounted, as this process reaches it.
    pub(crate) fn layer(&self) -> Result<PathBuf> {
        let root = self.namespace.cluster.node(self.node).root()?;
        Ok(root.join("var/lib/vineyard/layers").join(&self.volume))
    }

    /// The bill now.
    pub(crate) fn now(&self) -> Result<Bill> {
        self.among(&known(self.namespace, self.node)?)
    }

    /// The bill now, of these pods; whoever else has one is named by his cgroup.
    pub(crate) fn among(&self, known: &[Known]) -> Result<Bill> {
        let layer = self.layer()?;
        let ledger = Ledger::of(&layer)?;
        ensure!(
            ledger.tree.unseen == 0,
            "{} bytes unseen",
            ledger.tree.unseen
        );
        let mut bill = Bill::new();
        for row in ledger.bills {
            let path = row.path.map(|path| path.display().to_string());
            let path = path.unwrap_or_else(|| "a cgroup that is gone".into());
            let pod = known.iter().find(|pod| path.contains(&pod.uid));
            let who = pod.map_or(path, |pod| pod.name.clone());
            *bill.entry(who).or_default() += row.bytes;
        }
        if ledger.unreached > 0 {
            bill.insert("unreached".into(), ledger.unreached);
        }
        Ok(bill)
    }

    /// Waits until these have their bytes and nobody else more than a little, and returns that bill.
    pub(crate) fn expect(&self, expected: &[(&str, u64)]) -> Result<Bill> {
        self.expect_of(|| self.now(), expected)
    }

    /// The same, of pods that are known already.
    pub(crate) fn expect_among(&self, known: &[Known], expected: &[(&str, u64)]) -> Result<Bill> {
        self.expect_of(|| self.among(known), expected)
    }

    fn expect_of(&self, look: impl Fn() -> Result<Bill>, expected: &[(&str, u64)]) -> Result<Bill> {
        let mut found = look();
        let mut looks = 0;
        let is_so = reached(|| {
            looks += 1;
            if looks % COMPACTED == 0 {
                compact();
            }
            found = look();
            found.as_ref().is_ok_and(|bill| is_as(bill, expected))
        });
        ensure!(is_so, "{}: {found:?}, not {expected:?}", self.volume);
        found
    }

    /// What the cgroup of a pod says: bytes of file systems in memory that are charged to it.
    pub(crate) fn counter(&self, pod: &str) -> Result<u64> {
        let uid = match pod {
            "retainer" => known(self.namespace, self.node)?
                .into_iter()
                .find(|it| it.name == pod)
                .map(|it| it.uid),
            _ => Some(
                self.namespace
                    .field(&format!("pod/{pod}"), "{.metadata.uid}")?,
            ),
        };
        let uid = uid.context("no retainer")?;
        let cluster = self.namespace.cluster;
        let stat = pod_cgroup(cluster, self.node, &uid)?.join("memory.stat");
        let stat = fs::read_to_string(&stat).with_context(|| stat.display().to_string())?;
        let shmem = stat
            .lines()
            .find_map(|line| line.strip_prefix("total_shmem "));
        Ok(shmem.context("total_shmem")?.parse()?)
    }

    /// Waits until kubelet tells of at least `bytes` for a pod, and not of much more. Returns what it tells, and after how long.
    pub(crate) fn summary(&self, pod: &str, bytes: u64) -> Result<(u64, Duration)> {
        let begin = Instant::now();
        loop {
            let told = self.told(pod);
            if let Ok(told) = told
                && (bytes..bytes + OWN).contains(&told)
            {
                return Ok((told, begin.elapsed()));
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "kubelet tells {told:?} of {pod}, not {bytes}"
            );
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn told(&self, pod: &str) -> Result<u64> {
        let path = format!("/api/v1/nodes/n{}/proxy/stats/summary", self.node);
        let summary = self.namespace.cluster.kubectl(&["get", "--raw", &path])?;
        let summary: Value = serde_json::from_str(&summary)?;
        let is_it = |it: &&Value| {
            let reference = &it["podRef"];
            match pod {
                "retainer" => {
                    let name = reference["name"].as_str().unwrap_or_default();
                    reference["namespace"] == SYSTEM && name.starts_with("vineyard-retainer")
                }
                _ => {
                    reference["namespace"] == self.namespace.name.as_str()
                        && reference["name"] == pod
                }
            }
        };
        let found = summary["pods"]
            .as_array()
            .and_then(|all| all.iter().find(is_it));
        let bytes = found.and_then(|it| it["memory"]["workingSetBytes"].as_u64());
        bytes.with_context(|| format!("kubelet tells nothing of {pod}"))
    }
}

/// The pods of a namespace, and the driver's on a node by their parts.
pub(crate) fn known(namespace: &Namespace<'_>, node: u8) -> Result<Vec<Known>> {
    let cluster = namespace.cluster;
    let lines = |namespace: &str| {
        let path =
            "{range .items[*]}{.metadata.name} {.metadata.uid} {.spec.nodeName}{\"\\n\"}{end}";
        cluster.field(namespace, "pods", path)
    };
    let here = format!("n{node}");
    let mut known = Vec::new();
    for line in lines(&namespace.name)?.lines() {
        if let [name, uid, _] = line.split(' ').collect::<Vec<_>>()[..] {
            known.push(Known {
                name: name.into(),
                uid: uid.into(),
            });
        }
    }
    for line in lines(SYSTEM)?.lines() {
        if let [name, uid, node] = line.split(' ').collect::<Vec<_>>()[..]
            && node == here
        {
            let parts = ["retainer", "node", "controller"];
            let part = parts.into_iter().find(|it| name.contains(it));
            known.push(Known {
                name: part.unwrap_or(name).into(),
                uid: uid.into(),
            });
        }
    }
    Ok(known)
}

/// Whether these are billed what they should, within reason, and nobody else anything.
fn is_as(bill: &Bill, expected: &[(&str, u64)]) -> bool {
    let should = |who: &str| {
        let found = expected.iter().find(|(it, _)| *it == who);
        found.map_or(0, |(_, bytes)| *bytes)
    };
    let names = expected.iter().map(|(who, _)| *who);
    let mut everybody = bill.keys().map(String::as_str).chain(names);
    everybody.all(|who| {
        let is = bill.get(who).copied().unwrap_or(0);
        // The retainer also has what the store keeps for itself, others nothing that they did not put.
        let most = match who {
            "retainer" => should(who) + SLACK,
            _ if should(who) > 0 => should(who) + SLACK,
            _ => 0,
        };
        (should(who)..=most).contains(&is)
    })
}

/// The cgroup of a pod in the hierarchy that accounts memory.
pub(crate) fn pod_cgroup(cluster: &Cluster, node: u8, uid: &str) -> Result<PathBuf> {
    let root = cluster.node(node).memory_cgroup()?.join("kubepods");
    let classes = ["burstable", "besteffort", ""].map(|class| root.join(class));
    let candidates = classes.map(|class| class.join(format!("pod{uid}")));
    let found = candidates.into_iter().find(|path| path.is_dir());
    found.with_context(|| format!("pod {uid} has no cgroup on n{node}"))
}

/// The processes of a pod that run a program of this name.
pub(crate) fn pod_processes(
    cluster: &Cluster,
    node: u8,
    uid: &str,
    program: &str,
) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for container in fs::read_dir(pod_cgroup(cluster, node, uid)?)?.flatten() {
        let processes = fs::read_to_string(container.path().join("cgroup.procs"));
        for pid in processes.unwrap_or_default().lines() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // The kernel keeps 15 bytes of it.
            if !name.is_empty() && program.starts_with(name.trim_end()) {
                found.push(Pid::from_raw(pid.parse()?));
            }
        }
    }
    Ok(found)
}
