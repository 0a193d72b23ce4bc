//! Times of one kind of call.

use std::time::{Duration, Instant};

/// What each call took.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Takes the time until `call` is done.
    pub(crate) async fn time<T>(&mut self, call: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = call.await;
        self.0.push(begin.elapsed());
        done
    }

    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub(crate) fn append(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// The sample that this share of all is not above.
    pub(crate) fn quantile(&mut self, share: f64) -> Duration {
        self.0.sort();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index among a few hundred"
        )]
        let index = (share * self.0.len() as f64).ceil() as usize;
        self.0[index.clamp(1, self.0.len()) - 1]
    }
}

/// Three digits are more than such a figure is worth.
pub(crate) fn in_micros(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..100.0 => format!("{micros:.1}"),
        _ => format!("{micros:.0}"),
    }
}
