//! The command line of `vineyard-test-cluster`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use nix::unistd::Uid;

use super::hold::{hold, hold_on};
use super::interrupt::start_in_child;
use super::{Cluster, ClusterId, MOST_NODES, Place, Wanted, remove};

/// A real Kubernetes on this machine, for tests. Needs root.
#[derive(Debug, Parser)]
#[command(name = "vineyard-test-cluster")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a cluster, unless it is up.
    Up {
        #[command(flatten)]
        which: Which,
        /// Number of nodes.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
        nodes: u8,
        /// Memory that a node offers to pods, in MiB.
        #[arg(long, default_value_t = 3072)]
        node_memory: u64,
        /// Directory of the programs.
        #[arg(long)]
        programs: PathBuf,
        /// Directory of archives of images that the nodes get.
        #[arg(long)]
        images: PathBuf,
        /// The process that does it, and may be ended at any moment.
        #[arg(long, hide = true)]
        child: bool,
    },
    /// Ends a cluster and removes everything of it.
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Runs a command where the cluster is, with its kubectl, helm and KUBECONFIG.
    Exec {
        #[command(flatten)]
        which: Which,
        /// Runs it on this node (1, 2, …) instead: with its processes, mounts and network.
        #[arg(long)]
        node: Option<u8>,
        /// The command.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Gives all nodes of a cluster an image.
    Import {
        #[command(flatten)]
        which: Which,
        /// Its archive.
        archive: PathBuf,
    },
    /// Lists clusters, also those that only left something.
    List,
    /// The first process of a namespace.
    #[command(hide = true)]
    Hold {
        /// Ends only when it is killed.
        #[arg(long)]
        stay: bool,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// Name of the cluster: a letter, then letters and digits, at most 8.
    #[arg(long, default_value = "dev")]
    id: ClusterId,
}

/// Runs the program.
///
/// # Errors
/// What went wrong, for the user.
pub fn run() -> Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::Up {
            which: Which { id },
            nodes,
            node_memory,
            programs,
            images,
            child,
        } => {
            if !Uid::effective().is_root() {
                anyhow::bail!("namespaces, mounts and cgroups need root");
            }
            if !child {
                return start_in_child(&id);
            }
            let started = Instant::now();
            let wanted = Wanted {
                programs,
                images: archives(&images)?,
                nodes,
                node_memory: node_memory << 20,
            };
            let cluster = Cluster::up(&id, &wanted)?;
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "cluster {id} is up after {seconds:.1} s, {}",
                cluster.place().root().display()
            );
        }
        Verb::Down {
            which: Which { id },
        } => {
            if remove(&id)? {
                println!("cluster {id} is removed");
            }
        }
        Verb::Exec {
            which: Which { id },
            node,
            command,
        } => return execute(&id, node, &command),
        Verb::Import {
            which: Which { id },
            archive,
        } => Cluster::open(&id)?.import(&archive)?,
        Verb::List => {
            for place in Place::all()? {
                let state = match Cluster::open(place.id()) {
                    Ok(_) => format!("{} nodes", place.nodes()?),
                    Err(_) => "left over".to_owned(),
                };
                println!("{}\t{state}\t{}", place.id(), place.root().display());
            }
        }
        Verb::Hold { stay: false } => hold()?,
        Verb::Hold { stay: true } => hold_on()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn execute(id: &ClusterId, node: Option<u8>, command: &[OsString]) -> Result<ExitCode> {
    let cluster = Cluster::open(id)?;
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = match node {
        Some(n) => cluster.node(n).namespaces()?.command(program)?,
        None => cluster.command(program)?,
    };
    let status = command.args(arguments).status().context("run")?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(u8::try_from(code.unwrap_or(1)).unwrap_or(1)))
}

fn archives(folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("{}: run make images", folder.display()))?;
    let mut archives: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
        .collect();
    archives.sort();
    Ok(archives)
}
