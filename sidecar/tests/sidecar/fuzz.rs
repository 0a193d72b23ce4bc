//! Structured random conversations: valid requests, damaged ones, noise; good and bad descriptors; any cut.
//!
//! `VINEYARD_TEST_SEED` repeats a failure, `VINEYARD_TEST_ROUNDS` makes it longer.

use std::fs::{self, File};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use vineyard_charge::wire;
use vineyard_proto::payer::request::Body as Ask;
use vineyard_proto::payer::{GetUsage, GiveBack, Hello, Pull, Range, Reserve};

use crate::harness::{Sidecar, Volume, allocated};

const MIB: u64 = 1 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let words = self.index(9_000);
        (0..words).flat_map(|_| self.next().to_le_bytes()).collect()
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// Small, at a border, or anything.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(3),
            1 => self.below(3 * MIB),
            2 => 2 * MIB * self.below(5),
            3 => i64::MAX as u64 - self.below(3) * 4096,
            4 => u64::MAX - self.below(3),
            _ => self.next(),
        }
    }
}

/// Says which seed failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with VINEYARD_TEST_SEED={}", self.0);
        }
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn ranges(random: &mut Random, count: usize) -> Vec<Range> {
    let sane = random.one_in(2);
    (0..count)
        .map(|_| match sane {
            true => Range {
                offset: 2 * MIB * random.below(2),
                length: 1 + random.below(64 * 1024),
            },
            false => Range {
                offset: random.number(),
                length: random.number(),
            },
        })
        .collect()
}

fn ask(random: &mut Random, descriptors: usize) -> Ask {
    let count = if random.one_in(5) {
        random.index(300)
    } else {
        descriptors
    };
    match random.below(6) {
        0 => Ask::Hello(Hello {
            version: u32::from(!random.one_in(5)),
            client: "f".repeat(random.index(500)),
            held_bytes: random.number(),
        }),
        1 => Ask::GiveBack(GiveBack {
            bytes: random.number(),
        }),
        2 => Ask::GetUsage(GetUsage {}),
        3 => Ask::Pull(Pull {
            ranges: ranges(random, count),
        }),
        _ => Ask::Reserve(Reserve {
            ranges: ranges(random, count),
        }),
    }
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.index(frame.len().max(1));
        match random.below(5) {
            0 => frame.truncate(at),
            1 => frame.extend((0..50).take(random.index(50))),
            2 => frame
                .iter_mut()
                .skip(at)
                .take(4)
                .for_each(|byte| *byte = 0xff),
            _ => {
                let bit = 1 << random.below(8);
                frame
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|byte| *byte ^= bit);
            }
        }
    }
}

fn descriptors(random: &mut Random, volume: &Volume, file: &File) -> Vec<OwnedFd> {
    let count = match random.below(8) {
        0 => random.index(220),
        1 | 2 => 0,
        _ => 1 + random.index(3),
    };
    (0..count)
        .map(|_| match random.below(12) {
            0 => File::open("/dev/null").unwrap().into(),
            1 => File::open(volume.path()).unwrap().into(),
            2 => std::io::pipe().unwrap().1.into(),
            _ => file.try_clone().unwrap().into(),
        })
        .collect()
}

/// One client's life. It ends by closing its side, so the sidecar has to end the connection, whatever was said.
fn converse(random: &mut Random, sidecar: &Sidecar, volume: &Volume, file: &File) {
    let mut client = if random.one_in(10) {
        sidecar.stranger()
    } else {
        sidecar.client()
    };
    for _ in 0..random.below(8) {
        let passed = descriptors(random, volume, file);
        let ask = ask(random, passed.len());
        let mut frame = client.encode(ask);
        if random.one_in(3) {
            damage(random, &mut frame);
        }
        if random.one_in(20) {
            frame = random.bytes();
        }
        let borrowed: Vec<BorrowedFd<'_>> = passed.iter().map(AsFd::as_fd).collect();
        let cut = random.index(frame.len().max(1));
        let (head, tail) = frame.split_at(cut);
        let sent = match head.is_empty() {
            true => wire::send(client.stream().as_fd(), tail, &borrowed),
            false => {
                wire::send(client.stream().as_fd(), head, &borrowed).and_then(|()| client.raw(tail))
            }
        };
        if sent.is_err() {
            break;
        }
        if random.one_in(4) && client.has_reply() && client.reply().is_err() {
            break;
        }
    }
    if !random.one_in(4) {
        let _ = client.stream().shutdown(Shutdown::Write);
        client.is_dropped();
    }
}

#[test]
fn whatever_clients_say_the_sidecar_lives_answers_and_keeps_to_the_allowance() {
    let seed = Seed(from_environment("VINEYARD_TEST_SEED", 20_261_125));
    let rounds = from_environment("VINEYARD_TEST_ROUNDS", 3000);
    let mut random = Random(seed.0);
    let volume = Volume::shared();
    let mut sidecar = Sidecar::start(&volume, &["--patience", "10"]);
    let mut witness = sidecar.client();
    for _ in 0..rounds {
        let file = volume.file();
        converse(&mut random, &sidecar, &volume, &file);
        assert!(allocated(&file) <= 64 * MIB);
        assert!(witness.usage().spent_bytes <= 64 * MIB);
        witness.give_back(u64::MAX);
        assert!(sidecar.is_running());
    }
    sidecar.eventually("vineyard_sidecar_connections", 1.0);
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(peak < 64 * 1024, "{peak} KiB were resident");
    std::thread::sleep(Duration::from_millis(10));
    let open = fs::read_dir(format!("/proc/{}/fd", sidecar.pid()))
        .unwrap()
        .count();
    assert!(open < 60, "{open} descriptors are still open");
}
