//! The table of bills.

use std::path::Path;
use std::time::Duration;

use crate::billed::Node;
use crate::hand_over::{LARGE, Load, Measured, SMALL, Steps, TEXT};

/// Measures and describes it, or says why it is left out.
pub(crate) async fn bills(folder: &Path) -> String {
    let node = match Node::start(&folder.join("billed")).await {
        Ok(node) => node,
        Err(reason) => return format!("Bills are left out: {reason}.\n"),
    };
    let mut number = 0;
    let pod = node.pod(number, 1 << 20).await;
    // What starts takes more than what waits.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (retainer, sidecar) = (node.retainer.memory(), pod.sidecar.memory());
    node.calls.unpublish(number).await;
    node.end(pod).await;
    let large = LARGE.measure(&node, folder, &mut number).await;
    let text = TEXT.measure(&node, folder, &mut number).await;
    let small = SMALL.measure(&node, folder, &mut number).await;
    format!(
        "{}\n{}\n{}\n\
         | | |\n|---|---:|\n\
         | resident memory of the idle retainer | {retainer:.1} MiB |\n\
         | … after all of that | {:.1} MiB |\n\
         | resident memory of an idle sidecar | {sidecar:.1} MiB |\n",
        table(&LARGE, large),
        table(&TEXT, text),
        table(&SMALL, small),
        node.retainer.memory(),
    )
}

fn table(load: &Load, steps: Steps) -> String {
    let Steps {
        mut read,
        mut replace,
        survey,
        leaving,
        after,
        within,
        in_pieces,
    } = steps;
    let mut rows = Vec::new();
    let least = (read.time.quantile(0.5), read.processor.quantile(0.5));
    let (title, reading) = load.title();
    rows.push(row(load, reading, read, least));
    let mut most = least;
    if !replace.time.is_empty() {
        most = (replace.time.quantile(0.5), replace.processor.quantile(0.5));
        let name = "system calls alone: … and create, write, rename, close";
        rows.push(row(load, name, replace, most));
    }
    rows.push(row(load, "survey: who pays for every page", survey, least));
    for (name, measured) in [
        ("hand-over, from the sidecar's SIGTERM on", leaving),
        ("NodeUnpublishVolume after that", after),
        ("NodeUnpublishVolume with the hand-over in it", within),
    ] {
        rows.push(row(load, name, measured, most));
    }
    format!(
        "| {title} | p50, ms | longest | | of the floor | processor, ms | of the floor |\n\
         |---|---:|---:|---:|---:|---:|---:|\n{}\n{}",
        rows.join("\n"),
        match in_pieces {
            0 => String::new(),
            rounds => format!("\nLeft out: {rounds} rounds in which memory was in pieces.\n"),
        }
    )
}

fn row(load: &Load, name: &str, mut measured: Measured, floor: (Duration, Duration)) -> String {
    let (time, busy) = (
        measured.time.quantile(0.5),
        measured.processor.quantile(0.5),
    );
    let millis = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
    let ratio = |of: Duration, by: Duration| format!("{:.2}", of.as_secs_f64() / by.as_secs_f64());
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} |",
        millis(time),
        millis(measured.time.quantile(1.0)),
        load.rate(time),
        ratio(time, floor.0),
        millis(busy),
        ratio(busy, floor.1),
    )
}
