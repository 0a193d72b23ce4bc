//! What the user said: flags and environment are read here and nowhere else, and become concrete types here.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use nix::unistd::getuid;
use vineyard_charge::{Payer, RemotePayer};
use vineyard_store::{Options, Volume};

use crate::exit::{self, Outcome};
use crate::output::Format;
use crate::verb;

/// A volume of Vineyard: objects in memory that several processes share and that somebody is billed for.
#[derive(Debug, Parser)]
#[command(name = "vineyard", version, after_help = exit::CODES, max_term_width = 100)]
pub(crate) struct Args {
    /// The volume's directory [default: /dev/shm/vineyard-UID]
    #[arg(
        long,
        global = true,
        env = "VINEYARD_VOLUME",
        hide_env_values = true,
        value_name = "DIR"
    )]
    volume: Option<OsString>,

    /// The socket of the sidecar that pays for what is put; without one, this process' own cgroup does
    #[arg(
        long,
        global = true,
        env = "VINEYARD_SOCKET",
        hide_env_values = true,
        value_name = "SOCKET"
    )]
    socket: Option<OsString>,

    /// Print JSON for programs: one value a line
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ls(verb::ls::Ls),
    Put(verb::put::Put),
    Get(verb::get::Get),
    Rm(verb::rm::Rm),
    Stat(verb::stat::Stat),
    Wait(verb::wait::Wait),
    Top(verb::top::Top),
    Charges(verb::charges::Charges),
    Recharge(verb::recharge::Recharge),
    Fsck(verb::fsck::Fsck),
    Doctor(verb::doctor::Doctor),
    Bench(verb::bench::Bench),
    Completions(verb::completions::Completions),
}

/// Where the verbs work and how they answer.
#[derive(Debug)]
pub(crate) struct Settings {
    volume: PathBuf,
    socket: Option<PathBuf>,
    /// Table or JSON.
    pub(crate) format: Format,
}

impl Settings {
    /// The volume's directory, whether or not it is a volume.
    pub(crate) fn directory(&self) -> &Path {
        &self.volume
    }

    /// The payer's socket, if one was named.
    pub(crate) fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The volume as it is, for verbs that put nothing: it must exist already.
    pub(crate) fn volume(&self) -> anyhow::Result<Arc<Volume>> {
        Ok(Arc::new(Volume::open(
            &self.volume,
            Options {
                payer: None,
                create: false,
            },
        )?))
    }

    /// The volume with its payer, for verbs that put; made if the directory is not a volume yet.
    pub(crate) fn billed_volume(&self) -> anyhow::Result<Arc<Volume>> {
        let payer = self.socket.as_deref().map(payer).transpose()?;
        if self.volume == default_volume() {
            own_directory(&self.volume)?;
        }
        Ok(Arc::new(Volume::open(
            &self.volume,
            Options {
                payer,
                create: true,
            },
        )?))
    }
}

/// The payer behind a socket.
pub(crate) fn payer(socket: &Path) -> anyhow::Result<Arc<dyn Payer>> {
    let client = format!(
        "vineyard {}, pid {}",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    );
    let payer = RemotePayer::connect(socket, &client).with_context(|| {
        format!(
            "no payer answers at {}: is the sidecar running, and may this user connect?",
            socket.display()
        )
    })?;
    Ok(Arc::new(payer))
}

/// Runs the verb that the command line names.
pub(crate) fn run() -> ExitCode {
    #[cfg(feature = "kubernetes")]
    if std::env::args_os()
        .next()
        .is_some_and(|program| crate::cluster::is_called(&program))
    {
        return crate::cluster::run();
    }
    let matches = Args::command().get_matches();
    for flag in ["volume", "socket"] {
        refuse_empty(&matches, flag);
    }
    let Args {
        volume,
        socket,
        json,
        verb,
    } = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let settings = Settings {
        volume: volume.and_then(place).unwrap_or_else(default_volume),
        socket: socket.and_then(place),
        format: if json { Format::Json } else { Format::Table },
    };
    let outcome = match verb {
        Verb::Ls(verb) => verb.run(&settings),
        Verb::Put(verb) => verb.run(&settings),
        Verb::Get(verb) => verb.run(&settings),
        Verb::Rm(verb) => verb.run(&settings),
        Verb::Stat(verb) => verb.run(&settings),
        Verb::Wait(verb) => verb.run(&settings),
        Verb::Top(verb) => verb.run(&settings),
        Verb::Charges(verb) => verb.run(&settings),
        Verb::Recharge(verb) => verb.run(&settings),
        Verb::Fsck(verb) => verb.run(&settings),
        Verb::Doctor(verb) => verb.run(&settings),
        Verb::Bench(verb) => verb.run(&settings),
        Verb::Completions(verb) => verb.run(),
    };
    outcome.map_or_else(|error| exit::report(&error, settings.format), Outcome::into)
}

/// Ends with a message when the flag was given without a path: `--volume "$UNSET"` must not mean the default.
fn refuse_empty(matches: &ArgMatches, flag: &str) {
    let is_empty = matches
        .get_one::<OsString>(flag)
        .is_some_and(|path| path.is_empty());
    if is_empty && matches.value_source(flag) == Some(ValueSource::CommandLine) {
        let text = format!("--{flag} is empty: name a path, or leave the flag out");
        Args::command().error(ErrorKind::InvalidValue, text).exit()
    }
}

/// An empty variable of the environment is as good as none.
fn place(text: OsString) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// Where `vineyard.open()` in Python works when nothing is configured.
fn default_volume() -> PathBuf {
    PathBuf::from(format!("/dev/shm/vineyard-{}", getuid()))
}

/// Makes the default directory; nobody else may have made it for us.
fn own_directory(path: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path)?;
            if !found.is_dir() || found.uid() != getuid().as_raw() {
                bail!(
                    "{} is not this user's directory: remove it, or name a volume with --volume",
                    path.display()
                );
            }
            Ok(())
        }
        made => made.with_context(|| format!("cannot make {}", path.display())),
    }
}
