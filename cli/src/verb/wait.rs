//! `wait`: until names are there.

use std::time::{Duration, Instant};

use serde::Serialize;
use vineyard_store::Name;

use crate::args::Settings;
use crate::bytes;
use crate::exit::Outcome;
use crate::progress;

/// Wait until all names are there
#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Give up after so long, with exit code 5: 90, 1.5s, 10m; for ever if left out
    #[arg(long, value_name = "TIME", value_parser = bytes::parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Serialize)]
struct Waited {
    names: Vec<String>,
    seconds: f64,
}

impl Wait {
    /// Waits.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let volume = settings.volume()?;
        let start = Instant::now();
        let bar = progress::spinner("waiting");
        let names = self
            .names
            .iter()
            .map(Name::new)
            .collect::<Result<Vec<_>, _>>()?;
        volume.wait(&names, self.timeout)?;
        bar.finish_and_clear();
        let waited = Waited {
            names: self.names,
            seconds: start.elapsed().as_secs_f64(),
        };
        settings.format.print(&waited, |_| String::new())?;
        Ok(Outcome::Done)
    }
}
