//! The command line and the environment: read here and nowhere else, turned into concrete types once.

mod bill;
mod parts;
mod report;
mod sockets;
mod sweep;
mod unused;
#[cfg(feature = "kubernetes")]
mod webhook;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as Flags, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::bytes::Bytes;
use crate::controller::NodeBudget;
use crate::mount::unmount_here;
use crate::records::RecordFlags;
use crate::retainer;
use crate::volume::{NodeId, label_value};

use bill::BillFlags;
use parts::serve;
use report::{ReportFlags, WebFlags};
use sockets::SocketsFlags;
use sweep::SweepFlags;
#[cfg(feature = "kubernetes")]
use webhook::WebhookFlags;

/// Who says so in events: qualified names, as Kubernetes wants them.
const CONTROLLER: &str = "vineyard.io/controller";
const NODE: &str = "vineyard.io/node";
const STANDALONE: &str = "vineyard.io/standalone";

/// Name of the subcommand that unmounts one path.
const UNMOUNT: &str = "unmount";

/// CSI driver for memory volumes.
///
/// The environment variable RUST_LOG selects what is logged (default: info).
#[derive(Debug, Parser)]
#[command(name = "vineyard-csi", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The Controller service.
    Controller {
        #[command(flatten)]
        shared: Shared,
        #[command(flatten)]
        controller: ControllerFlags,
        /// With records in a directory: a node, its budget and its pool, e.g. node-1=4GiB,default. Repeat it.
        #[arg(
            long = "node",
            env = "VINEYARD_NODES",
            value_name = "NAME=BYTES[,POOL]",
            value_delimiter = ';'
        )]
        nodes: Vec<NodeBudget>,
        #[cfg(feature = "kubernetes")]
        #[command(flatten)]
        webhook: WebhookFlags,
    },
    /// The Node service.
    Node {
        #[command(flatten)]
        shared: Shared,
        #[command(flatten)]
        node: NodeFlags,
    },
    /// Controller and node in one process and on one socket, without Kubernetes.
    Standalone {
        #[command(flatten)]
        shared: Shared,
        #[command(flatten)]
        controller: ControllerFlags,
        #[command(flatten)]
        node: NodeFlags,
    },
    /// The payer of bytes whose producers have gone: a process of its own, in the pod that is billed for them.
    Retainer {
        /// Unix socket to serve, at most 107 bytes. A stale socket is replaced.
        #[arg(long, env = "VINEYARD_RETAINER", value_name = "PATH", value_parser = endpoint)]
        listen: PathBuf,
        /// Format of the log on standard error.
        #[arg(
            long,
            env = "VINEYARD_LOG_FORMAT",
            value_name = "FORMAT",
            default_value = "text"
        )]
        log_format: LogFormat,
    },
    /// Fails when there are volumes, and names them: asked before everything is uninstalled.
    Unused {
        #[command(flatten)]
        records: RecordFlags,
    },
    /// Prints the definitions of the custom resources, as YAML.
    #[cfg(feature = "kubernetes")]
    Definitions,
    /// Takes one mount off a path. The driver runs this as a child, because it may hang.
    #[command(name = UNMOUNT, hide = true)]
    Unmount {
        /// Process that wants it; without it nothing is done.
        #[arg(long)]
        parent: u32,
        /// The mount point.
        path: PathBuf,
    },
}

#[derive(Debug, Flags)]
struct Shared {
    /// Unix socket to serve, at most 107 bytes; `unix://` in front is fine. A stale socket is replaced.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "PATH", value_parser = endpoint)]
    endpoint: PathBuf,

    #[command(flatten)]
    records: RecordFlags,

    /// Address that serves /healthz, /readyz and /metrics, e.g. 127.0.0.1:9808. None: not served.
    #[arg(long, env = "VINEYARD_HTTP", value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,

    /// Format of the log on standard error.
    #[arg(
        long,
        env = "VINEYARD_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

#[derive(Debug, Flags)]
struct ControllerFlags {
    /// Capacity of a volume whose claim names none.
    #[arg(long, env = "VINEYARD_DEFAULT_CAPACITY", value_name = "BYTES", default_value = "1GiB", value_parser = pages)]
    default_capacity: Bytes,

    /// Seconds that DeleteVolume waits for nodes to drop the memory, before its caller is told to come again.
    #[arg(
        long,
        env = "VINEYARD_DROP_PATIENCE",
        value_name = "SECONDS",
        default_value_t = 8
    )]
    drop_patience: u64,

    /// Seconds that a node may be silent before it is taken for dead: then DeleteVolume does not wait for it.
    #[arg(
        long,
        env = "VINEYARD_NODE_GRACE",
        value_name = "SECONDS",
        default_value_t = 40
    )]
    node_grace: u64,

    /// Seconds that a staging keeps a volume from being deleted that is published nowhere. After that, nobody is expected to undo it: a
    /// kubelet that was killed between NodeUnpublishVolume and NodeUnstageVolume never does.
    #[arg(
        long,
        env = "VINEYARD_STAGING_GRACE",
        value_name = "SECONDS",
        default_value_t = 30
    )]
    staging_grace: u64,

    #[command(flatten)]
    web: WebFlags,
}

#[derive(Debug, Flags)]
struct NodeFlags {
    /// Name of this node, as Kubernetes has it.
    #[arg(long, env = "VINEYARD_NODE", value_name = "NAME", value_parser = NodeId::parse)]
    node_id: NodeId,

    /// Pool that this node belongs to.
    #[arg(long, env = "VINEYARD_POOL", value_name = "NAME", default_value = "default", value_parser = pool)]
    pool: String,

    /// Memory that this node offers to volumes, e.g. 4GiB.
    #[arg(long, env = "VINEYARD_BUDGET", value_name = "BYTES")]
    budget: Bytes,

    /// Directory of the volumes' own mounts. Made private to root.
    #[arg(
        long,
        env = "VINEYARD_LAYERS",
        value_name = "PATH",
        default_value = "/var/lib/vineyard/layers"
    )]
    layers: PathBuf,

    /// Directory that staging and target paths must be in. Repeat it.
    #[arg(
        long = "kubelet-dir",
        env = "VINEYARD_KUBELET_DIRS",
        value_name = "PATH",
        value_delimiter = ':',
        default_value = "/var/lib/kubelet"
    )]
    kubelet_dirs: Vec<PathBuf>,

    /// Kubelet's directory of plugins, normally /var/lib/kubelet/plugins_registry. None: the plugin does not register.
    #[arg(long, env = "VINEYARD_REGISTRY", value_name = "PATH")]
    registry: Option<PathBuf>,

    #[command(flatten)]
    bill: BillFlags,

    /// Seconds that an unmount may take, before its caller is told to come again.
    #[arg(
        long,
        env = "VINEYARD_UNMOUNT_PATIENCE",
        value_name = "SECONDS",
        default_value_t = 60
    )]
    unmount_patience: u64,

    #[command(flatten)]
    sweep: SweepFlags,

    #[command(flatten)]
    sockets: SocketsFlags,

    #[command(flatten)]
    report: ReportFlags,

    /// File with the identity of this boot. Tests put another one here to reboot.
    #[arg(
        long,
        hide = true,
        value_name = "PATH",
        default_value = "/proc/sys/kernel/random/boot_id"
    )]
    boot_id_file: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Args {
    /// Runs the driver until it is told to stop.
    pub(crate) fn run(self) -> ExitCode {
        let result = match self.role {
            Role::Unmount { parent, path } => {
                unmount_here(parent, &path).map_err(anyhow::Error::from)
            }
            Role::Unused { records } => unused::run(&records),
            #[cfg(feature = "kubernetes")]
            Role::Definitions => crate::resources::definitions().map(|text| print!("{text}")),
            Role::Retainer { listen, log_format } => {
                start_log(log_format);
                retainer::run(&listen)
            }
            Role::Controller {
                shared,
                controller,
                nodes,
                #[cfg(feature = "kubernetes")]
                webhook,
            } => serve(shared, CONTROLLER, |parts| {
                #[cfg(feature = "kubernetes")]
                let parts = parts.with_webhook(webhook)?;
                let offers = parts.records.offers(nodes)?;
                Ok(parts.with_controller(controller, offers))
            }),
            Role::Node { shared, node } => serve(shared, NODE, |parts| parts.with_node(node)),
            Role::Standalone {
                shared,
                controller,
                node,
            } => serve(shared, STANDALONE, |parts| {
                let budget = NodeBudget {
                    node: node.node_id.clone(),
                    pool: node.pool.clone(),
                    budget: node.budget,
                };
                let offers = parts.records.offers(vec![budget])?;
                parts.with_controller(controller, offers).with_node(node)
            }),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            // Not the log: the parent of `unmount` reads it, and a person who mistyped a flag.
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

fn endpoint(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(
        text.strip_prefix("unix://")
            .or(text.strip_prefix("unix:"))
            .unwrap_or(text),
    );
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("not an absolute path".into())
    }
}

fn pool(text: &str) -> Result<String, String> {
    label_value(text).map(str::to_owned)
}

fn pages(text: &str) -> Result<Bytes, String> {
    let bytes: Bytes = text.parse()?;
    if bytes.0 == 0 || !bytes.0.is_multiple_of(crate::volume::PAGE) {
        return Err("not a positive multiple of 4KiB".into());
    }
    Ok(bytes)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
