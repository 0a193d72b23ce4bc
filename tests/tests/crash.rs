//! `kill -9` at every single system call of what changes a volume: nothing half-written is ever visible, nothing leaks.
#![cfg(test)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vineyard_tests::sequence::Play;
use vineyard_tests::skip_unless_possible;
use vineyard_tests::steps::Step;
use vineyard_tests::watchdog::deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const LIMIT: Duration = Duration::from_secs(300);

/// Small: by the stock; middle: through the trash; large: collapsed; larger: recycled when it is removed.
const LENGTHS: [u64; 4] = [5_000, 70_000, (2 << 20) + 5_000, (9 << 20) + 5_000];

fn put(pod: usize, name: u64, len: u64) -> Step {
    Step::Put {
        pod,
        name: Some(name),
        len,
    }
}

fn hold(pod: usize, name: u64) -> Step {
    Step::Get {
        pod,
        name,
        shared: false,
        hold: true,
        dirty: true,
    }
}

/// Kills the client at every stop of the last of `steps`, after the others. Returns how many stops there were.
fn kill_at_every_stop(what: &str, steps: &[Step]) -> Result<()> {
    let mut play = Play::new(CLIENT)?;
    let (last, before) = steps.split_last().context("a step")?;
    let mut stop = 0;
    loop {
        let at = format!("{what}, killed at stop {stop}");
        let _deadline = deadline(LIMIT, at.clone());
        for step in before {
            play.step(step).with_context(|| at.clone())?;
        }
        if !play.kill_client_at(stop, last).with_context(|| at)? {
            break;
        }
        stop += 1;
    }
    ensure!(
        stop > 10,
        "{what} makes only {stop} stops: it was not traced"
    );
    println!("{what}: killed at {stop} stops");
    play.finish()
}

#[test]
fn a_client_killed_anywhere_in_a_put_leaves_the_old_object_or_the_new_one() -> Result<()> {
    skip_unless_possible!();
    for len in LENGTHS {
        kill_at_every_stop(
            &format!("put of {len}"),
            &[put(0, 0, 70_001), put(0, 0, len)],
        )?;
    }
    Ok(())
}

#[test]
fn a_client_killed_anywhere_in_a_put_with_a_time_to_live_leaves_no_object_without_its_mark()
-> Result<()> {
    skip_unless_possible!();
    for len in LENGTHS {
        let put = Step::PutExpiring {
            pod: 0,
            name: Some(0),
            len,
        };
        kill_at_every_stop(&format!("expiring put of {len}"), &[put])?;
    }
    Ok(())
}

#[test]
fn a_client_killed_anywhere_in_a_put_of_many_leaves_all_of_them_or_none() -> Result<()> {
    skip_unless_possible!();
    let put_many = Step::PutMany {
        pod: 0,
        name: Some(0),
        lens: vec![0, 100, 70_000, 3],
    };
    kill_at_every_stop("put of many", &[put(1, 0, 5000), put_many])
}

fn append(pod: usize, len: u64) -> Step {
    Step::Append {
        pod,
        stream: 0,
        len,
    }
}

fn remove_stream(pod: usize) -> Step {
    Step::RemoveStream { pod, stream: 0 }
}

/// A fresh stream of at least two parts: a writer of a stream that was removed fails once.
fn fresh_stream() -> Vec<Step> {
    let mut steps = vec![remove_stream(1)];
    steps.extend([5000, 70_000, 5000].map(|len| append(1, len)));
    steps
}

#[test]
fn a_client_killed_anywhere_at_a_stream_leaves_whole_parts_in_order() -> Result<()> {
    skip_unless_possible!();
    for len in LENGTHS {
        kill_at_every_stop(
            &format!("first part of {len}"),
            &[remove_stream(1), append(0, len)],
        )?;
    }
    let steps = [
        ("append", append(0, 70_000)),
        ("end", Step::End { pod: 0, stream: 0 }),
        ("consume", Step::Consume { pod: 0, stream: 0 }),
        ("removal of a stream", remove_stream(0)),
    ];
    for (what, last) in steps {
        let mut steps = fresh_stream();
        steps.push(last);
        kill_at_every_stop(what, &steps)?;
    }
    Ok(())
}

#[test]
fn a_client_killed_anywhere_in_a_write_in_pieces_leaves_nothing() -> Result<()> {
    skip_unless_possible!();
    let write = Step::Write {
        pod: 0,
        name: Some(1),
        len: 300_000,
        piece: 70_000,
    };
    kill_at_every_stop("write in pieces", &[write])
}

#[test]
fn a_client_killed_anywhere_in_create_or_seal_leaves_the_whole_object_or_nothing() -> Result<()> {
    skip_unless_possible!();
    // A seal that is cut off may leave an object without a name, for a minute: many large ones would not fit.
    for len in LENGTHS.into_iter().filter(|len| *len < 8 << 20) {
        let create = Step::Create { pod: 0, len };
        let seal = Step::Seal {
            pod: 0,
            name: Some(0),
            which: 0,
        };
        kill_at_every_stop(&format!("create of {len}"), std::slice::from_ref(&create))?;
        kill_at_every_stop(&format!("seal of {len}"), &[create, seal])?;
    }
    Ok(())
}

#[test]
fn a_client_killed_anywhere_in_a_removal_leaves_the_object_or_nothing() -> Result<()> {
    skip_unless_possible!();
    let remove = Step::Remove { pod: 0, name: 0 };
    for len in LENGTHS {
        kill_at_every_stop(
            &format!("removal of {len}"),
            &[put(0, 0, len), remove.clone()],
        )?;
        let release = Step::Release { pod: 1, which: 0 };
        let held = [release, put(0, 0, len), hold(1, 0), remove.clone()];
        kill_at_every_stop(&format!("removal of {len} that is mapped"), &held)?;
    }
    Ok(())
}

#[test]
fn a_client_killed_anywhere_in_another_object_that_gets_the_pages_of_a_removed_one_leaves_nothing()
-> Result<()> {
    skip_unless_possible!();
    for in_place in [false, true] {
        let lens = ((9 << 20) + 5_000, 8 << 20);
        let (pod, name) = (0, 0);
        let again = Step::Again {
            pod,
            name,
            lens,
            in_place,
        };
        let seal = Step::Seal {
            pod,
            name: Some(name),
            which: 0,
        };
        kill_at_every_stop(
            &format!("again, in place: {in_place}"),
            std::slice::from_ref(&again),
        )?;
        if in_place {
            kill_at_every_stop("seal of what was built in such a file", &[again, seal])?;
        }
    }
    Ok(())
}

#[test]
fn a_client_killed_anywhere_in_a_link_leaves_every_object_whole() -> Result<()> {
    skip_unless_possible!();
    let link = Step::Link {
        pod: 0,
        from: 0,
        to: 1,
    };
    let fresh = Step::Remove { pod: 1, name: 1 };
    kill_at_every_stop(
        "link to a fresh name",
        &[put(0, 0, 70_000), fresh, link.clone()],
    )?;
    kill_at_every_stop(
        "link over a name",
        &[put(0, 0, 5000), put(1, 1, 70_000), link],
    )
}

#[test]
fn a_sidecar_killed_anywhere_in_a_reserve_costs_its_client_nothing() -> Result<()> {
    skip_unless_possible!();
    let mut play = Play::new(CLIENT)?;
    for len in LENGTHS {
        let mut stop = 0;
        // A put that is served from the stock says nothing to the sidecar: a fresh client has none.
        let fresh = Step::KillClient {
            after: Duration::ZERO,
            what: Box::new(Step::Release { pod: 0, which: 0 }),
        };
        loop {
            let at = format!("put of {len}, sidecar killed at stop {stop}");
            let _deadline = deadline(LIMIT, at.clone());
            play.step(&fresh).with_context(|| at.clone())?;
            if !play
                .kill_sidecar_at(stop, &put(0, 0, len))
                .with_context(|| at)?
            {
                break;
            }
            stop += 1;
        }
        ensure!(stop > 4, "only {stop} stops: the sidecar was not traced");
        println!("put of {len}: sidecar killed at {stop} stops");
    }
    play.finish()
}
