//! Random sequences of steps against the model. See `docs/testing.md`.
#![cfg(test)]

use std::time::Duration;

use anyhow::{Context, Result, bail};
use vineyard_tests::random;
use vineyard_tests::sequence::Play;
use vineyard_tests::steps::{Step, sequence};
use vineyard_tests::watchdog::deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");

/// How long one step may take on a busy machine before it hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Sequences of `make test`; `make soak` asks for more.
const SEQUENCES: u64 = 30;

#[test]
fn random_sequences_keep_every_byte_on_the_right_bill() -> Result<()> {
    vineyard_tests::skip_unless_possible!();
    let first = random::seed();
    let count = random::number("VINEYARD_SEQUENCES").unwrap_or(SEQUENCES);
    let mut steps = 0;
    for number in 0..count {
        let seed = first.wrapping_add(number);
        steps += play(seed, &sequence(seed))?;
        if (number + 1) % 50 == 0 {
            println!("{} of {count} sequences, {steps} steps", number + 1);
        }
    }
    println!("{count} sequences, {steps} steps, seeds from {first}");
    Ok(())
}

fn play(seed: u64, steps: &[Step]) -> Result<usize> {
    let steps = match random::number("VINEYARD_STEPS") {
        Some(most) => &steps[..steps.len().min(usize::try_from(most)?)],
        None => steps,
    };
    let result = play_steps(seed, steps);
    if let Err(error) = result {
        bail!(
            "{error:#}\nrepeat it by: VINEYARD_SEED={seed} VINEYARD_SEQUENCES=1 cargo test -p vineyard-tests --test model"
        );
    }
    Ok(steps.len())
}

fn play_steps(seed: u64, steps: &[Step]) -> Result<()> {
    let mut play = {
        let _deadline = deadline(LIMIT, format!("start of seed {seed}"));
        Play::new(CLIENT)?
    };
    for (number, step) in steps.iter().enumerate() {
        let at = format!("seed {seed}, step {number} of {}: {step:?}", steps.len());
        let _deadline = deadline(LIMIT, at.clone());
        play.step(step).context(at)?;
    }
    let _deadline = deadline(LIMIT, format!("end of seed {seed}"));
    play.finish().context("at the end")
}
