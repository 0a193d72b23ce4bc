//! What survives the sidecar's death, and what is found again that nobody gave back.

use std::fs::File;
use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use vineyard_charge::{Extent, Payer, RemotePayer, ReserveError};
use vineyard_proto::payer::reply::Body as Reply;

use crate::harness::{Cgroup, Client, Sidecar, Volume, allocated};

const MIB: u64 = 1 << 20;

/// What the sidecar's own memory may add to a measurement of its cgroup.
const OWN: u64 = 16 * MIB;

struct Pod {
    cgroup: Cgroup,
    state: String,
    volume: Volume,
}

impl Pod {
    fn new() -> Option<Self> {
        let volume = Volume::own("256m")?;
        Some(Self {
            cgroup: Cgroup::new()?,
            state: volume.side().join("spent").to_str()?.to_owned(),
            volume,
        })
    }

    fn sidecar_in(&self, cgroup: &Cgroup) -> Sidecar {
        let flags = ["--state-file", &self.state, "--state-chunk", "4MiB"];
        Sidecar::spawn(cgroup.command(), &self.volume, &flags)
    }

    fn sidecar(&self) -> Sidecar {
        self.sidecar_in(&self.cgroup)
    }
}

fn reserve(client: &mut Client, file: &File, bytes: u64) {
    let reply = client.reserve(&[file], bytes);
    assert!(matches!(reply, Reply::Reserved(_)), "{reply:?}");
}

fn kill(mut sidecar: Sidecar) {
    sidecar.signal(Signal::SIGKILL);
    sidecar.end();
}

#[test]
fn a_killed_sidecar_comes_back_knowing_what_is_spent() {
    let volume = Volume::shared();
    let state = volume.side().join("spent");
    let flags = ["--state-file", state.to_str().unwrap()];
    let sidecar = Sidecar::start(&volume, &flags);
    let mut client = sidecar.client();
    let file = volume.file();
    reserve(&mut client, &file, 40 * MIB);
    kill(sidecar);
    let sidecar = Sidecar::start(&volume, &flags);
    let mut client = sidecar.client();
    assert!(client.spent() >= 40 * MIB);
    let more = volume.file();
    assert!(matches!(client.reserve(&[&more], 25 * MIB), Reply::Full(_)));
    assert_eq!(allocated(&more), 0);
}

#[test]
fn an_orderly_restart_changes_nothing() {
    let volume = Volume::shared();
    let state = volume.side().join("spent");
    let flags = ["--state-file", state.to_str().unwrap()];
    let mut sidecar = Sidecar::start(&volume, &flags);
    let mut client = sidecar.client();
    let file = volume.file();
    reserve(&mut client, &file, 5 * MIB);
    drop(client);
    sidecar.signal(Signal::SIGTERM);
    sidecar.end();
    let sidecar = Sidecar::start(&volume, &flags);
    assert_eq!(sidecar.client().spent(), 5 * MIB);
}

#[test]
fn without_a_state_file_reconnecting_clients_say_what_they_hold() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.stranger();
    client.hello_with(1, 10 * MIB);
    assert_eq!(client.spent(), 10 * MIB);
}

#[test]
fn the_real_client_goes_on_through_kills_and_nothing_is_spent_twice_or_lost() {
    let Some(pod) = Pod::new() else {
        return;
    };
    let mut sidecar = Some(pod.sidecar());
    let socket = pod.volume.side().join("v.sock");
    let payer = RemotePayer::connect(&socket, "test").unwrap();
    let mut held: Vec<File> = Vec::new();
    for round in 0..60 {
        if round % 10 == 9 {
            kill(sidecar.take().unwrap());
            sidecar = Some(pod.sidecar());
        }
        let file = pod.volume.file();
        let length = MIB + (round % 3) * MIB;
        let extent = Extent { offset: 0, length };
        match payer.reserve(&[(file.as_fd(), extent)]) {
            Ok(()) => {
                assert_eq!(allocated(&file), length);
                held.push(file);
            }
            Err(ReserveError::Full(full)) => {
                assert!(full.free < length, "{full}");
                let freed: u64 = held
                    .drain(..held.len() / 2)
                    .map(|file| allocated(&file))
                    .sum();
                payer.give_back(freed);
            }
            Err(error) => panic!("{error}"),
        }
        let truth: u64 = held.iter().map(allocated).sum();
        let usage = payer.usage().unwrap();
        assert!(usage.spent_bytes >= truth, "{usage:?} below {truth}");
        assert!(pod.cgroup.usage() <= usage.allowance_bytes + OWN);
    }
    held.clear();
    drop(payer);
    let sidecar = sidecar.unwrap();
    sidecar.client().eventually_spent(0..=0);
}

#[test]
fn what_a_killed_client_held_is_free_again() {
    let Some(pod) = Pod::new() else {
        return;
    };
    let sidecar = pod.sidecar();
    let mut living = sidecar.client();
    let kept = pod.volume.file();
    reserve(&mut living, &kept, 8 * MIB);
    let mut dying = sidecar.client();
    let lost = pod.volume.file();
    reserve(&mut dying, &lost, 50 * MIB);
    assert_eq!(living.spent(), 58 * MIB);
    drop((dying, lost));
    living.eventually_spent(8 * MIB..=8 * MIB + OWN);
}

#[test]
fn what_others_removed_is_found_before_anybody_hears_full() {
    let Some(pod) = Pod::new() else {
        return;
    };
    let sidecar = pod.sidecar();
    let mut client = sidecar.client();
    let removed = pod.volume.file();
    reserve(&mut client, &removed, 60 * MIB);
    drop(removed);
    pod.volume.holds_at_most(0);
    let file = pod.volume.file();
    reserve(&mut client, &file, 60 * MIB);
    assert_eq!(allocated(&file), 60 * MIB);
}

#[test]
fn bytes_of_an_earlier_container_count_until_the_volume_says_that_they_are_gone() {
    let (Some(pod), Some(next)) = (Pod::new(), Cgroup::new()) else {
        return;
    };
    let sidecar = pod.sidecar();
    let object = pod.volume.file();
    reserve(&mut sidecar.client(), &object, 40 * MIB);
    kill(sidecar);
    let sidecar = pod.sidecar_in(&next);
    let mut client = sidecar.client();
    assert!((40 * MIB..=44 * MIB).contains(&client.spent()));
    let more = pod.volume.file();
    assert!(matches!(client.reserve(&[&more], 30 * MIB), Reply::Full(_)));
    drop(object);
    pod.volume.holds_at_most(0);
    reserve(&mut client, &more, 60 * MIB);
}

#[test]
fn a_client_that_lies_about_what_it_freed_cannot_spend_twice() {
    let Some(pod) = Pod::new() else {
        return;
    };
    let flags = ["--allowance", "100MiB"];
    let sidecar = Sidecar::spawn(pod.cgroup.command(), &pod.volume, &flags);
    let mut client = sidecar.client();
    let mut held = Vec::new();
    loop {
        let file = pod.volume.file();
        match client.reserve(&[&file], 10 * MIB) {
            Reply::Reserved(_) => held.push(file),
            Reply::Full(_) => break,
            other => panic!("{other:?}"),
        }
        client.give_back(u64::MAX);
        assert!(held.len() < 14, "{} bytes are charged", pod.cgroup.usage());
    }
    assert!(held.len() >= 10);
}

#[test]
fn a_damaged_state_file_is_not_taken_for_an_empty_one() {
    let Some(pod) = Pod::new() else {
        return;
    };
    let object = pod.volume.file();
    let sidecar = pod.sidecar();
    reserve(&mut sidecar.client(), &object, 40 * MIB);
    kill(sidecar);
    std::fs::write(&pod.state, b"vineyard-all").unwrap();
    let sidecar = pod.sidecar();
    let spent = sidecar.client().spent();
    assert!((40 * MIB..=64 * MIB).contains(&spent), "{spent}");
}
