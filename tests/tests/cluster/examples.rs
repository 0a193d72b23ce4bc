//! The examples of the chart, as they are printed: Python in pods, nothing else changed than the name of the image.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::bills::Bills;
use crate::namespace::Namespace;
use crate::pods::PYTHON;
use crate::table::Table;
use crate::{cluster, left};

/// The image that the examples name, which users replace by theirs.
const THEIRS: &str = "example.com/python-with-vineyard:1";

/// What the producer puts: a million integers of eight bytes.
const NUMBERS: u64 = 8_000_000;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn the_examples_run_as_they_are_printed() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("examples");
    let namespace = Namespace::new(&cluster, "examples")?;

    apply(&namespace, "claim-and-two-pods.yaml")?;
    namespace.wait_for("pod/producer", "{.status.phase}", "Succeeded")?;
    let node = namespace.node("producer")?;
    let bills = Bills::new(&namespace, "shared", node)?;
    namespace.delete(&["pod/producer"])?;
    namespace.wait_for("pod/consumer", "{.status.phase}", "Succeeded")?;
    let sum = namespace.kubectl(&["logs", "consumer"])?;
    ensure!(sum.trim() == "499999500000", "{sum}");
    let bill = bills.expect(&[("retainer", NUMBERS)])?;
    table.row(
        "`claim-and-two-pods.yaml`: a producer puts a million integers and is deleted; the consumer adds them up",
        Some(&bill),
        format!("its log: {}", sum.trim()),
    );
    let shared = namespace.volume("shared")?;
    namespace.delete(&["pod/consumer", "pvc/shared"])?;

    apply(&namespace, "ephemeral.yaml")?;
    apply(&namespace, "job.yaml")?;
    namespace.wait_for("pod/scratch", "{.status.phase}", "Succeeded")?;
    let read = namespace.kubectl(&["logs", "scratch", "-c", "main"])?;
    ensure!(read.trim() == "1024", "{read}");
    let scratch = namespace.volume("scratch-scratch")?;
    namespace.wait_for("job/squares", "{.status.succeeded}", "4")?;
    let results = namespace.volume("results")?;
    table.row(
        "`ephemeral.yaml` and `job.yaml`",
        None,
        "the scratch pod and the Job's four workers complete",
    );
    namespace.delete(&["job/squares", "pod/scratch", "pvc/results"])?;
    for volume in [shared, scratch, results] {
        left::nothing(&cluster, &volume)?;
    }
    table.row("everything is deleted", None, "nothing is left");
    table.write()
}

fn apply(namespace: &Namespace<'_>, example: &str) -> Result<()> {
    let path = format!(
        "{}/../manifests/examples/{example}",
        env!("CARGO_MANIFEST_DIR")
    );
    let printed = fs::read_to_string(&path).with_context(|| path)?;
    ensure!(printed.contains(THEIRS), "{example} names another image");
    let text = printed.replace(THEIRS, PYTHON);
    namespace
        .cluster
        .feed(&["-n", &namespace.name, "apply", "-f", "-"], &text)?;
    Ok(())
}
