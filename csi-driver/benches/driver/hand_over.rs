//! Bills: what it takes to say who pays, and to have another pay.
//!
//! A pod puts objects through its sidecar, so that they are on its bill; then it ends, in one of two ways. Either its sidecar says so,
//! as kubelet has it, and the hand-over is done when NodeUnpublishVolume is called; or it is killed, and the call contains all of it.
//! Whatever is measured counts only if a survey finds every byte on the retainer's bill afterwards.

use std::fs;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use vineyard_charge::RemotePayer;
use vineyard_proto::admin::volume_bill::State;
use vineyard_store::{Kind, Options, PutOptions, Volume};

use crate::billed::{Node, Pod};
use crate::floor::{Files, Memory};
use crate::samples::Samples;

/// What a pod puts.
pub(crate) struct Load {
    objects: usize,
    bytes: usize,
    /// Whether a byte of them is ever zero: a huge page is split there at little cost (`charge::recharge::Large`).
    has_zeros: bool,
    runs: usize,
}

/// 1 GiB in sealed objects of huge pages, as arrays and tables are.
pub(crate) const LARGE: Load = Load {
    objects: 4,
    bytes: 256 << 20,
    has_zeros: true,
    runs: 5,
};

/// The same of text.
pub(crate) const TEXT: Load = Load {
    has_zeros: false,
    ..LARGE
};

/// A hundred thousand small ones.
pub(crate) const SMALL: Load = Load {
    objects: 100_000,
    bytes: 1 << 10,
    has_zeros: true,
    runs: 3,
};

/// Room beyond what is put: pages of small files, copies.
const CAPACITY: i64 = 2 << 30;

/// Time and processor time of one kind of step.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) time: Samples,
    pub(crate) processor: Samples,
}

/// All kinds of steps.
#[derive(Default)]
pub(crate) struct Steps {
    /// `memcpy`, or open, read, close.
    pub(crate) read: Measured,
    /// Open, read, close, create, write, rename.
    pub(crate) replace: Measured,
    pub(crate) survey: Measured,
    /// From the sidecar's SIGTERM to the driver's word that all is handed over.
    pub(crate) leaving: Measured,
    /// The call after that.
    pub(crate) after: Measured,
    /// The call of a pod whose sidecar was killed.
    pub(crate) within: Measured,
    /// Rounds that do not count, because memory was in pieces.
    pub(crate) in_pieces: usize,
}

impl Steps {
    fn append(&mut self, round: Self) {
        for (all, more) in [
            (&mut self.read, round.read),
            (&mut self.replace, round.replace),
            (&mut self.survey, round.survey),
            (&mut self.leaving, round.leaving),
            (&mut self.after, round.after),
            (&mut self.within, round.within),
        ] {
            all.time.append(more.time);
            all.processor.append(more.processor);
        }
    }
}

impl Load {
    fn total(&self) -> u64 {
        (self.objects * self.bytes.next_multiple_of(4096)) as u64
    }

    fn is_large(&self) -> bool {
        self.bytes > 1 << 20
    }

    /// Rounds that count. A busy machine may be spared some of them.
    fn runs(&self) -> usize {
        let fewer = std::env::var("VINEYARD_BENCH_RUNS").ok();
        let fewer = fewer.map(|it| it.parse().unwrap());
        fewer.map_or(self.runs, |fewer: usize| fewer.clamp(1, self.runs))
    }

    /// What it is called, and the least of its floors.
    pub(crate) fn title(&self) -> (String, &'static str) {
        let runs = self.runs();
        if self.is_large() {
            let what = if self.has_zeros {
                ""
            } else {
                " without a zero byte"
            };
            let title = format!("1 GiB in {} objects{what}, {runs} rounds", self.objects);
            (title, "memcpy of as many bytes, warm")
        } else {
            let title = format!(
                "{} objects of {} B, {runs} rounds",
                self.objects, self.bytes
            );
            (title, "system calls alone: open, read, close")
        }
    }

    /// The objects per second, or the gigabytes.
    pub(crate) fn rate(&self, time: Duration) -> String {
        let seconds = time.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (bytes, objects) = (self.total() as f64, self.objects as f64);
        if self.is_large() {
            format!("{:.2} GB/s", bytes / seconds / 1e9)
        } else {
            format!("{:.0}/s", objects / seconds)
        }
    }

    /// Measures all steps; `number` counts the pods of the whole benchmark.
    pub(crate) async fn measure(&self, node: &Node, folder: &Path, number: &mut usize) -> Steps {
        let mut steps = Steps::default();
        let mut floor = Floor::new(self, folder);
        // The first round warms up.
        let mut warm = false;
        let mut left = self.runs();
        while left > 0 {
            assert!(steps.in_pieces < 20, "there is no memory in one piece");
            let mut round = Steps::default();
            floor.measure(&mut round);
            let mut in_one_go = true;
            for is_killed in [false, true] {
                *number += 1;
                let pod = node.pod(*number, CAPACITY).await;
                let content = self.put(node, &pod, *number);
                let ledger = own(&mut round.survey, || node.survey(&pod));
                node.assert_pays(&pod, &ledger, self.total());
                let (pod, went) = if is_killed {
                    end_killed(node, pod, *number, &mut round, self.total()).await
                } else {
                    end_leaving(node, pod, *number, &mut round, self.total()).await
                };
                in_one_go &= went;
                node.assert_retained(&node.survey(&pod), self.total());
                self.assert_unchanged(&node.calls.layer(*number), &content);
                node.end(pod).await;
            }
            if !in_one_go {
                steps.in_pieces += 1;
            } else if std::mem::replace(&mut warm, true) {
                steps.append(round);
                left -= 1;
            }
        }
        steps
    }

    /// As a client in the pod does it: the sidecar reserves, so that the pod is billed.
    fn put(&self, node: &Node, pod: &Pod, number: usize) -> Vec<u8> {
        let payer = RemotePayer::connect(&pod.socket, "benchmark").unwrap();
        let options = Options {
            payer: Some(Arc::new(payer)),
            create: false,
        };
        let volume = Volume::open(&node.calls.target(number), options).unwrap();
        let content: Vec<u8> = (0..self.bytes)
            .map(|it| u8::try_from(it % 251).unwrap() + u8::from(!self.has_zeros))
            .collect();
        for _ in 0..self.objects {
            let put = volume.put(Kind::Raw, &[IoSlice::new(&content)], &PutOptions::default());
            put.unwrap();
        }
        content
    }

    fn assert_unchanged(&self, layer: &Path, content: &[u8]) {
        let mut found = 0;
        for entry in fs::read_dir(layer.join(".vineyard/objects")).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            assert!(bytes == content, "an object has changed");
            found += 1;
        }
        assert_eq!(found, self.objects);
    }
}

/// Its sidecar is told to end, as kubelet does before anything is unpublished. Whether all was handed over in one go.
async fn end_leaving(
    node: &Node,
    mut pod: Pod,
    number: usize,
    steps: &mut Steps,
    bytes: u64,
) -> (Pod, bool) {
    let (begin, busy) = (Instant::now(), node.processor());
    pod.sidecar.tell_to_end();
    let in_one_go = settle(node, &pod, bytes);
    steps.leaving.add(begin.elapsed(), node.processor() - busy);
    pod.sidecar.wait();
    call(node, number, &mut steps.after).await;
    (pod, in_one_go)
}

/// Nobody has said anything: the call finds all of it on the pod's bill.
async fn end_killed(
    node: &Node,
    mut pod: Pod,
    number: usize,
    steps: &mut Steps,
    bytes: u64,
) -> (Pod, bool) {
    pod.sidecar.end();
    call(node, number, &mut steps.within).await;
    let in_one_go = settle(node, &pod, bytes);
    (pod, in_one_go)
}

/// Waits until everything is on the retainer's bill. Whether nothing was left in between, as where the machine has no 2 MiB in one
/// piece: then the driver tries again after a pause, which says nothing about its work.
fn settle(node: &Node, pod: &Pod, bytes: u64) -> bool {
    let mut in_one_go = true;
    loop {
        let view = node.view(pod);
        if view.state() == State::Settled && view.retained_bytes >= bytes {
            return in_one_go;
        }
        in_one_go &= view.state() != State::Waiting;
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn call(node: &Node, number: usize, measured: &mut Measured) {
    let (begin, busy) = (Instant::now(), node.processor());
    node.calls.unpublish(number).await;
    measured.add(begin.elapsed(), node.processor() - busy);
}

/// Work of this process.
fn own<T>(measured: &mut Measured, work: impl FnOnce() -> T) -> T {
    let processor = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let micros = (usage.user_time() + usage.system_time()).num_microseconds();
        Duration::from_micros(micros.unsigned_abs())
    };
    let (begin, busy) = (Instant::now(), processor());
    let done = work();
    measured.add(begin.elapsed(), processor() - busy);
    done
}

impl Measured {
    fn add(&mut self, time: Duration, processor: Duration) {
        self.time.push(time);
        self.processor.push(processor);
    }
}

/// What it is compared with.
enum Floor {
    Memory(Memory, usize),
    Files(Files),
}

impl Floor {
    fn new(load: &Load, folder: &Path) -> Self {
        if load.is_large() {
            Self::Memory(Memory::new(load.bytes), load.objects)
        } else {
            Self::Files(Files::new(folder, load.objects, load.bytes))
        }
    }

    fn measure(&mut self, steps: &mut Steps) {
        match self {
            Self::Memory(memory, times) => own(&mut steps.read, || memory.copy(*times)),
            Self::Files(files) => {
                own(&mut steps.read, || files.read());
                own(&mut steps.replace, || files.replace());
            }
        }
    }
}
