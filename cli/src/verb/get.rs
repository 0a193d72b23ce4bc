//! `get`: an object's bytes, to standard output or to a file.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Serialize;
use vineyard_store::{Key, Mode, Name};

use crate::args::Settings;
use crate::exit::Outcome;
use crate::{bytes, progress};

/// Bytes between two looks at the progress bar.
const STEP: usize = 8 << 20;

/// Write an object's bytes to standard output or to a file
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// The object's name; PACK/KEY is a member of a pack
    name: String,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Wait so long for the name to appear: 90, 1.5s, 10m
    #[arg(long, value_name = "TIME", value_parser = bytes::parse_duration)]
    timeout: Option<std::time::Duration>,
}

#[derive(Serialize)]
struct Got<'a> {
    name: &'a str,
    kind: &'a str,
    bytes: usize,
    output: &'a PathBuf,
}

impl Get {
    /// Writes the bytes.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let volume = settings.volume()?;
        let name = Name::new(self.name)?;
        if let Some(timeout) = self.timeout {
            volume.wait(std::slice::from_ref(&name), Some(timeout))?;
        }
        let object = volume.get(Key::Name(&name), Mode::ReadOnly)?;
        let Some(path) = &self.output else {
            if io::stdout().is_terminal() && object.kind.as_str() != "text" {
                bail!(
                    "{name} is binary ({}); name a file with -o, or send it through a pipe",
                    object.kind
                );
            }
            copy(object.bytes(), &mut io::stdout().lock(), name.as_str())?;
            return Ok(Outcome::Done);
        };
        let mut file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        copy(object.bytes(), &mut file, name.as_str())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let got = Got {
            name: name.as_str(),
            kind: object.kind.as_str(),
            bytes: object.bytes().len(),
            output: path,
        };
        settings.format.print(&got, |got| {
            format!(
                "{} ({}, {}) is in {}\n",
                got.name,
                got.kind,
                bytes::human(got.bytes as u64),
                path.display()
            )
        })?;
        Ok(Outcome::Done)
    }
}

fn copy(content: &[u8], out: &mut impl Write, what: &str) -> io::Result<()> {
    let bar = progress::bytes(what, content.len() as u64);
    for chunk in content.chunks(STEP) {
        out.write_all(chunk)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    out.flush()
}
