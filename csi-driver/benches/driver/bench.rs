//! Calls of the driver, from the outside, against the bare system calls that do the same work, in one run.
//!
//! With a path as argument, the tables go between the marks of that page: `make bench-driver`. `VINEYARD_DRIVER` and
//! `VINEYARD_SIDECAR` name other programs than those that were built with it.

#![expect(clippy::unwrap_used, reason = "what cannot be measured ends the run")]

mod billed;
mod calls;
mod conditions;
mod floor;
mod hand_over;
mod process;
mod report;
mod samples;

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use calls::{Calls, VOLUMES};
use samples::{Samples, in_micros};

const NONE: Option<&str> = None;
const BEGIN: &str = "<!-- bench-driver: begin -->";
const END: &str = "<!-- bench-driver: end -->";

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    // The driver, a child, has this thread's mounts. No other thread exists yet.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
    let folder = tempfile::Builder::new()
        .prefix("vineyard-test-bench.")
        .tempdir()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let before = conditions::load();
    let table = runtime.block_on(async {
        let calls = measure(folder.path()).await;
        let bills = report::bills(folder.path()).await;
        format!("{calls}\n{bills}")
    });
    let text = format!(
        "{BEGIN}\n\n{}\n\n{table}\n{END}",
        conditions::describe(folder.path(), &before)
    );
    let page = std::env::args().skip(1).find(|it| !it.starts_with("--"));
    match page {
        Some(page) => replace(Path::new(&page), &text),
        None => println!("{text}"),
    }
}

fn replace(page: &Path, table: &str) {
    let text = fs::read_to_string(page).unwrap();
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    fs::write(page, format!("{head}{table}{tail}")).unwrap();
}

/// A bind mount with its flags, and its end, on a tmpfs of our own.
struct Bare<'a> {
    folder: &'a Path,
}

impl Bare<'_> {
    fn new(folder: &Path) -> Bare<'_> {
        let memory = folder.join("bare");
        fs::create_dir(&memory).unwrap();
        mount(Some("bare"), &memory, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        Bare { folder }
    }

    fn publish(&self, number: usize) {
        let target = self.folder.join(format!("bare-{number}"));
        fs::create_dir(&target).unwrap();
        let memory = self.folder.join("bare");
        mount(Some(&memory), &target, NONE, MsFlags::MS_BIND, NONE).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(NONE, &target, NONE, flags, NONE).unwrap();
    }

    fn unpublish(&self, number: usize) {
        let target = self.folder.join(format!("bare-{number}"));
        umount2(&target, MntFlags::UMOUNT_NOFOLLOW).unwrap();
        fs::remove_dir(&target).unwrap();
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        umount2(&self.folder.join("bare"), MntFlags::MNT_DETACH).unwrap();
    }
}

async fn measure(folder: &Path) -> String {
    let mut calls = Calls::start(folder, None).await;
    let idle = calls.driver().memory();
    let mut rows = Vec::new();
    let mut probe = Samples::default();
    for _ in 0..VOLUMES {
        probe.time(calls.probe()).await;
    }
    let mut create = Samples::default();
    for number in 0..VOLUMES {
        create.time(calls.create(number)).await;
    }
    let together = calls.create_together(VOLUMES..2 * VOLUMES).await;
    let mut delete = Samples::default();
    for number in VOLUMES..2 * VOLUMES {
        delete.time(calls.delete(number)).await;
    }
    let mut stage = Samples::default();
    for number in 0..VOLUMES {
        stage.time(calls.stage(number)).await;
    }
    let bare = Bare::new(folder);
    let (mut publish, mut bare_publish) = (Samples::default(), Samples::default());
    // In turns: whatever disturbs the machine disturbs both.
    for number in 0..VOLUMES {
        publish.time(calls.publish(number)).await;
        bare_publish.time(async { bare.publish(number) }).await;
    }
    let full = calls.driver().memory();
    let (mut unpublish, mut bare_unpublish) = (Samples::default(), Samples::default());
    for number in 0..VOLUMES {
        unpublish.time(calls.unpublish(number)).await;
        bare_unpublish.time(async { bare.unpublish(number) }).await;
    }
    drop(bare);
    let mut unstage = Samples::default();
    for number in 0..VOLUMES {
        unstage.time(calls.unstage(number)).await;
    }
    let mut drop_memory = Samples::default();
    for number in 0..VOLUMES {
        drop_memory.time(calls.delete(number)).await;
    }
    for (name, samples) in [
        ("Probe: a call that does nothing", &mut probe),
        ("CreateVolume, one caller", &mut create),
        ("DeleteVolume of a volume without memory", &mut delete),
        ("NodeStageVolume, the first: makes the memory", &mut stage),
        ("NodePublishVolume", &mut publish),
        (
            "… mkdir, bind mount, its flags: system calls alone",
            &mut bare_publish,
        ),
        ("NodeUnpublishVolume", &mut unpublish),
        ("… umount, rmdir: system calls alone", &mut bare_unpublish),
        ("NodeUnstageVolume", &mut unstage),
        ("DeleteVolume of a volume with memory", &mut drop_memory),
    ] {
        let (p50, p99) = (
            in_micros(samples.quantile(0.5)),
            in_micros(samples.quantile(0.99)),
        );
        rows.push(format!("| {name} | {p50} | {p99} |"));
    }
    let rate = f64::from(u32::try_from(VOLUMES).unwrap()) / create.total().as_secs_f64();
    let parallel = f64::from(u32::try_from(VOLUMES).unwrap()) / together.as_secs_f64();
    format!(
        "| over {VOLUMES} volumes | p50, µs | p99, µs |\n|---|---:|---:|\n{}\n\n\
         | | |\n|---|---:|\n\
         | CreateVolume, one caller | {rate:.0}/s |\n\
         | CreateVolume, {} callers | {parallel:.0}/s |\n\
         | resident memory of the idle node plugin with its controller | {idle:.1} MiB |\n\
         | … with {VOLUMES} volumes published | {full:.1} MiB |\n",
        rows.join("\n"),
        calls::CALLERS,
    )
}
