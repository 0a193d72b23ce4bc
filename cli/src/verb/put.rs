//! `put`: a file's bytes, or standard input, become an object.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use vineyard_store::{Kind, Name, PutOptions};

use crate::args::Settings;
use crate::bytes::{self, human};
use crate::exit::Outcome;
use crate::output::printable;
use crate::progress;
use crate::utf8::Utf8;

/// Bytes between two writes.
const STEP: usize = 4 << 20;

/// Make an object of a file's bytes or of standard input, and name it
#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    /// The file; `-` is standard input
    file: PathBuf,
    /// The object's name; directories are made
    name: String,
    /// How the bytes are decoded: raw, text, npy, arrow, safetensors, pickle … [default: by the file's extension]
    #[arg(long, value_parser = kind)]
    kind: Option<Kind>,
    /// Not needed after so long: 90, 10m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = bytes::parse_duration)]
    ttl: Option<Duration>,
    /// Fail when the name is taken
    #[arg(long)]
    no_overwrite: bool,
}

#[derive(Serialize)]
struct Done {
    name: String,
    id: String,
    kind: String,
    bytes: u64,
}

impl Put {
    /// Puts.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let name = Name::new(self.name)?;
        let from_stdin = self.file == Path::new("-");
        let extension = if from_stdin {
            Path::new(name.file_name())
        } else {
            &self.file
        };
        let kind = self
            .kind
            .unwrap_or_else(|| Kind::of_extension(&extension.to_string_lossy()));
        let (mut source, len): (Box<dyn Read>, u64) = if from_stdin {
            (Box::new(io::stdin().lock()), 0)
        } else {
            let path = self.file.display();
            let file = File::open(&self.file).with_context(|| format!("cannot read {path}"))?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                bail!("{path} is a directory; put its files one by one");
            }
            (Box::new(file), metadata.len())
        };
        let mut writer = settings.billed_volume()?.writer(kind)?;
        // Known sizes are reserved at once, which is faster and fails before anything is copied.
        writer.set_len(len)?;
        let bar = if from_stdin {
            progress::spinner("stdin")
        } else {
            progress::bytes(name.as_str(), len)
        };
        let mut text = (kind == Kind::Text).then(Utf8::default);
        let mut chunk = vec![0; STEP];
        let mut total = 0;
        loop {
            let read = match source.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.with_context(|| format!("cannot read {}", self.file.display()))?,
            };
            let valid = text
                .as_mut()
                .is_none_or(|text| text.accepts(&chunk[..read]));
            if !valid {
                bail!(
                    "{} is not UTF-8 text; say --kind raw to put its bytes",
                    self.file.display()
                );
            }
            if read == 0 {
                break;
            }
            writer.append(&chunk[..read])?;
            total += read as u64;
            bar.inc(read as u64);
        }
        bar.finish_and_clear();
        // The file may have shrunk meanwhile.
        writer.set_len(total)?;
        let options = PutOptions {
            name: Some(name),
            ttl: self.ttl,
            overwrite: !self.no_overwrite,
        };
        let object = writer.seal(&options)?;
        let done = Done {
            name: options
                .name
                .map(|name| name.to_string())
                .unwrap_or_default(),
            id: object.id.to_string(),
            kind: kind.to_string(),
            bytes: object.len,
        };
        settings.format.print(&done, |done| {
            format!(
                "{} ({}, {})\n",
                printable(&done.name),
                done.kind,
                human(done.bytes)
            )
        })?;
        io::stdout().flush()?;
        Ok(Outcome::Done)
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::parse(text.as_bytes())
        .ok_or_else(|| format!("{text:?} is no kind: 1 to 16 of a-z and 0-9"))
}
