//! `kubectl vineyard`, asked as people ask it, by way of kubectl: what it says of bills is what the kernel says.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vineyard_tests::commands::Content;
use vineyard_tests::process::poll;

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::{MIB, cluster};

const CONTENT: Content = Content {
    seed: 11,
    len: 20 * MIB,
};

const CAPACITY: u64 = 64 * MIB;

/// Surveys and reports come by themselves, each within some seconds; a machine may have other things to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// What records may differ by: a change below a hundredth of the capacity, at least 1 MiB, is not written.
const SLACK: u64 = 2 * MIB;

/// The exit code for something that a person should look at.
const PROBLEMS: i32 = 6;

/// The plugin on kubectl's path.
struct Plugin<'a> {
    namespace: &'a Namespace<'a>,
    folder: PathBuf,
}

impl<'a> Plugin<'a> {
    fn new(namespace: &'a Namespace<'a>) -> Result<Self> {
        let test = std::env::current_exe()?;
        // target/<profile>/deps/<test>-<hash>
        let target = test.ancestors().nth(3).context("the target directory")?;
        let found = newest(target).context("kubectl-vineyard is not built: run make plugin")?;
        let folder = found.parent().context("a folder")?.to_owned();
        Ok(Self { namespace, folder })
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let cluster = self.namespace.cluster;
        let mut command = cluster.command(cluster.program("kubectl"))?;
        let known = command.get_envs().find(|(name, _)| *name == "PATH");
        let known = known.and_then(|(_, path)| path).unwrap_or_default();
        let folders = std::iter::once(self.folder.clone()).chain(std::env::split_paths(known));
        let path = std::env::join_paths(folders)?;
        command.env("PATH", path).arg("vineyard").args(arguments);
        command
            .args(["--namespace", &self.namespace.name])
            .output()
            .context("kubectl vineyard")
    }

    /// What it prints for people.
    fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        if !output.status.success() {
            bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What it prints for programs.
    fn rows(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        let rows = text.lines().map(serde_json::from_str);
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Waits until it charges these with their bytes, and nobody else.
    fn expect(&self, target: &str, expected: &[(&str, u64)]) -> Result<()> {
        let mut found = Ok(Vec::new());
        let is_so = poll(PATIENCE, || {
            thread::sleep(Duration::from_millis(500));
            found = self.rows(&["charges", target]).map(|it| charged(&it));
            found.as_ref().is_ok_and(|found| is_as(found, expected))
        });
        ensure!(is_so, "charges {target}: {found:?}, not {expected:?}");
        Ok(())
    }
}

/// The plugin that was built last, whatever its profile.
fn newest(target: &Path) -> Option<PathBuf> {
    let below = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let folders = below(target).into_iter().flat_map(|folder| below(&folder));
    let found = folders.map(|folder| folder.join("kubectl-vineyard"));
    found
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
}

fn charged(rows: &[Value]) -> Vec<(String, u64)> {
    let one = |row: &Value| {
        let who = match row["payer"].as_str() {
            Some("Retainer") => "retainer",
            Some("Pod") => row["pod"]["name"].as_str().unwrap_or("a pod"),
            _ => "nobody",
        };
        (who.to_owned(), row["bytes"].as_u64().unwrap_or(0))
    };
    rows.iter().map(one).collect()
}

fn is_as(found: &[(String, u64)], expected: &[(&str, u64)]) -> bool {
    let of = |who: &str| -> u64 {
        let its = found.iter().filter(|(name, _)| name == who);
        its.map(|(_, bytes)| bytes).sum()
    };
    let known = |who: &str| expected.iter().any(|(name, _)| *name == who);
    let all_there = expected
        .iter()
        .all(|(who, bytes)| of(who).abs_diff(*bytes) <= SLACK);
    all_there
        && found
            .iter()
            .all(|(who, bytes)| known(who) || *bytes <= SLACK)
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn kubectl_vineyard_says_of_pods_claims_and_nodes_what_the_kernel_says() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "plugin")?;
    let plugin = Plugin::new(&namespace)?;
    namespace.claim("data", CAPACITY)?;
    let writer = Pod {
        writes: Some(32 * MIB),
        ..Pod::waiting("writer", "data")
    };
    namespace.apply(writer.object())?;
    namespace.wait_for("pod/writer", "{.status.phase}", "Running")?;
    let node = namespace.node("writer")?;
    let home = format!("n{node}");
    let mut client = Client::start(&namespace, "writer")?;
    client.put("object", CONTENT)?;
    drop(client);
    let bills = Bills::new(&namespace, "data", node)?;
    let put = bills.expect(&[("writer", CONTENT.len)])?["writer"];
    for target in ["pod/writer", "pvc/data", "writer", "data"] {
        plugin.expect(target, &[("writer", put)])?;
    }
    // The node may have volumes of others.
    let rows = plugin.rows(&["charges", &format!("node/{home}")])?;
    ensure!(
        is_as(&charged(&rows), &[("writer", put), ("retainer", 0)]),
        "{rows:?}"
    );

    let all = plugin.rows(&["volumes", "--mine"])?;
    let [volume] = &all[..] else {
        bail!("volumes: {all:?}");
    };
    ensure!(volume["id"] == namespace.volume("data")?, "{volume}");
    ensure!(
        volume["claim"]["name"] == "data" && volume["node"] == home,
        "{volume}"
    );
    ensure!(
        volume["capacity_bytes"] == CAPACITY && volume["phase"] == "Resident",
        "{volume}"
    );
    let text = plugin.text(&["volumes", "--mine"])?;
    let shown = format!("pod {}/writer", namespace.name);
    ensure!(text.contains(&shown) && text.contains("64.0 MiB"), "{text}");

    namespace.delete(&["pod", "writer"])?;
    let kept = bills.expect(&[("retainer", CONTENT.len)])?["retainer"];
    plugin.expect("pvc/data", &[("retainer", kept)])?;
    let rows = plugin.rows(&["charges", "pod/writer"])?;
    ensure!(rows.is_empty(), "a pod that is gone is charged: {rows:?}");
    retained(&plugin, &home, kept)
}

/// What `top` and `doctor` say when a node retains `kept` bytes.
fn retained(plugin: &Plugin<'_>, home: &str, kept: u64) -> Result<()> {
    let mut looks = Vec::new();
    let is_so = poll(PATIENCE, || {
        thread::sleep(Duration::from_millis(500));
        looks = plugin.rows(&["top", "--once"]).unwrap_or_default();
        let nodes = looks.first().and_then(|look| look["nodes"].as_array());
        let mut nodes = nodes.into_iter().flatten();
        nodes.any(|it| {
            let bytes = |field: &str| it[field].as_u64().unwrap_or(0);
            it["node"] == home
                && bytes("retained_bytes") + SLACK >= kept
                && bytes("requested_bytes") + SLACK >= kept
                && bytes("booked_bytes") >= CAPACITY
                && bytes("budget_bytes") >= bytes("booked_bytes")
        })
    });
    ensure!(
        is_so,
        "top, with {kept} bytes retained on {home}: {looks:?}"
    );
    let text = plugin.text(&["top", "--once"])?;
    ensure!(text.contains("BUDGET") && text.contains(home), "{text}");

    let said = plugin.run(&["doctor", "--json"])?;
    let report: Value = serde_json::from_slice(&said.stdout)?;
    let checks = report["checks"].as_array().context("checks")?;
    for name in [
        "vineyard-controller",
        "vineyard-node",
        "vineyard-retainer",
        "alive",
        "retainer",
    ] {
        let mut its = checks
            .iter()
            .filter(|check| check["name"] == name)
            .peekable();
        ensure!(its.peek().is_some(), "no word of {name}: {report}");
        ensure!(
            its.all(|check| check["status"] != "problem"),
            "{name}: {report}"
        );
    }
    let code = if report["is_healthy"] == true {
        0
    } else {
        PROBLEMS
    };
    ensure!(said.status.code() == Some(code), "{said:?}");
    Ok(())
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn kubectl_vineyard_says_what_it_does_not_find() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "nothing")?;
    let plugin = Plugin::new(&namespace)?;
    ensure!(plugin.rows(&["volumes", "--mine"])?.is_empty());
    let unknown = plugin.run(&["charges", "nobody-has-this-name"])?;
    let said = String::from_utf8_lossy(&unknown.stderr);
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    ensure!(said.contains("no volume has to do with"), "{said}");
    let elsewhere = plugin.run(&["volumes", "--system-namespace", "default"])?;
    ensure!(elsewhere.status.success(), "{elsewhere:?}");
    let wrong = plugin.run(&["charges", "deployment/x"])?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    Ok(())
}
