//! The command line and the environment: read here and nowhere else, turned into concrete types once.

mod bill;
mod report;
mod sockets;
mod sweep;
mod unused;
#[cfg(feature = "kubernetes")]
mod webhook;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args as Flags, Parser, Subcommand, ValueEnum};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tracing_subscriber::EnvFilter;
use vineyard_proto::csi::controller_server::ControllerServer;
use vineyard_proto::csi::identity_server::IdentityServer;
use vineyard_proto::csi::node_server::NodeServer;

use crate::bill::admin;
use crate::bytes::Bytes;
use crate::controller::{self, Controller, NodeBudget, Offers};
use crate::edge::Edge;
use crate::identity::Identity;
use crate::keyed_lock::KeyedLock;
use crate::metrics::Metrics;
use crate::mount::{LinuxMounter, Mounter, Unmounter, unmount_here};
use crate::node::{self, Clones, Node};
use crate::records::{RecordFlags, Records};
use crate::report::Page;
use crate::sockets::{Claims, RunDirectory};
use crate::sweep::Sweeper;
use crate::validation::Targets;
use crate::volume::{Catalog, NodeId, label_value};
use crate::{http, retainer, server};

use bill::BillFlags;
use report::{ReportFlags, WebFlags};
use sockets::SocketsFlags;
use sweep::SweepFlags;
#[cfg(feature = "kubernetes")]
use webhook::WebhookFlags;

/// How long a stage waits for a clone's content: kubelet gives up after two minutes.
const CLONE_PATIENCE: Duration = Duration::from_secs(100);

/// Who says so in events: qualified names, as Kubernetes wants them.
const CONTROLLER: &str = "vineyard.io/controller";
const NODE: &str = "vineyard.io/node";
const STANDALONE: &str = "vineyard.io/standalone";

/// Between two looks at what this node can offer.
const LOOK: Duration = Duration::from_secs(5);

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

/// What one process serves.
struct Parts {
    records: Records,
    catalog: Arc<dyn Catalog>,
    edge: Edge,
    routes: Routes,
    node: Option<(Arc<Node>, ReportFlags)>,
    /// The web page, and where it is served.
    page: Option<(SocketAddr, Page)>,
    registry: Option<PathBuf>,
    metrics: Metrics,
    sweeper: Option<Sweeper>,
    /// Where the node's operators find its socket.
    run_dir: PathBuf,
    #[cfg(feature = "kubernetes")]
    webhook: Option<crate::webhook::Webhook>,
}

impl Parts {
    #[cfg(feature = "kubernetes")]
    fn with_webhook(mut self, flags: WebhookFlags) -> anyhow::Result<Self> {
        self.webhook = flags.build(self.records.kubernetes(), &self.catalog)?;
        Ok(self)
    }

    fn with_controller(mut self, flags: ControllerFlags, nodes: Offers) -> Self {
        let ControllerFlags {
            default_capacity,
            drop_patience,
            node_grace,
            web,
        } = flags;
        let node_grace = Duration::from_secs(node_grace);
        self.page = web.address().map(|address| {
            let page = Page {
                catalog: Arc::clone(&self.catalog),
                nodes: nodes.clone(),
                node_grace,
                events: self.records.events.clone(),
            };
            (address, page)
        });
        let controller = Arc::new(Controller {
            catalog: Arc::clone(&self.catalog),
            nodes,
            default_capacity,
            drop_patience: Duration::from_secs(drop_patience),
            node_grace,
            events: self.records.events.clone(),
            cloning: tokio::sync::Mutex::default(),
            locks: KeyedLock::default(),
        });
        let service = controller::Service {
            edge: self.edge.clone(),
            controller,
        };
        self.routes = self.routes.add_service(ControllerServer::new(service));
        self.records.look_after_retainers();
        self
    }

    fn with_node(mut self, flags: NodeFlags) -> anyhow::Result<Self> {
        let NodeFlags {
            node_id,
            pool,
            budget,
            layers,
            kubelet_dirs,
            registry,
            bill,
            unmount_patience,
            sweep,
            sockets,
            report,
            boot_id_file,
        } = flags;
        let events = self.records.events.clone();
        private_directory(&layers)?;
        // As the kernel's table shows it.
        let layers = layers
            .canonicalize()
            .with_context(|| layers.display().to_string())?;
        let boot_id = fs::read_to_string(&boot_id_file)
            .with_context(|| format!("boot id in {}", boot_id_file.display()))?;
        let unmounter = Unmounter {
            program: std::env::current_exe().context("path of this program")?,
            arguments: vec![
                UNMOUNT.into(),
                format!("--parent={}", std::process::id()).into(),
            ],
            patience: Duration::from_secs(unmount_patience),
        };
        let boot_id = boot_id.trim().to_owned();
        let mounter: Arc<dyn Mounter> = Arc::new(LinuxMounter::new(unmounter));
        let run = RunDirectory::open(&bill.run_dir)
            .with_context(|| bill.run_dir.display().to_string())?;
        let run_dir = bill.run_dir.clone();
        let bills = bill.build(&self.records, &node_id, &layers, &boot_id, budget, &mounter)?;
        let targets = Targets::new(&kubelet_dirs);
        let claims = Claims {
            node: node_id.clone(),
            boot_id: boot_id.clone(),
            layers: layers.clone(),
            targets: targets.clone(),
            catalog: Arc::clone(&self.catalog),
            mounter: Arc::clone(&mounter),
        };
        let sidecars = sockets.sidecars(&self.records)?;
        self.sweeper = sweep.build(&bills, &self.metrics);
        let sockets = sockets.build(run, claims, Arc::new(bills.clone()))?;
        let node = Arc::new(Node {
            id: node_id,
            pool,
            boot_id,
            budget,
            layers,
            targets,
            catalog: Arc::clone(&self.catalog),
            mounter,
            locks: KeyedLock::default(),
            clones: Arc::new(Clones::new(CLONE_PATIENCE)),
            bills,
            sockets: Some(Arc::new(sockets)),
            events,
            sidecars,
        });
        let service = node::Service {
            edge: self.edge.clone(),
            node: Arc::clone(&node),
        };
        self.routes = self.routes.add_service(NodeServer::new(service));
        self.node = Some((node, report));
        self.registry = registry;
        self.run_dir = run_dir;
        Ok(self)
    }
}

fn serve(
    shared: Shared,
    component: &str,
    build: impl FnOnce(Parts) -> anyhow::Result<Parts>,
) -> anyhow::Result<()> {
    let Shared {
        endpoint,
        records,
        http: http_address,
        log_format,
    } = shared;
    start_log(log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("runtime")?;
    let ended = runtime.block_on(async {
        let metrics = Metrics::new();
        let edge = Edge::new(metrics.clone());
        let (ready, is_ready) = watch::channel(false);
        let records = records.open(component, metrics.events()).await?;
        let identity = Identity::new(edge.clone(), is_ready.clone());
        let routes = Routes::new(IdentityServer::new(identity));
        let parts = build(Parts {
            catalog: Arc::clone(&records.catalog),
            records,
            edge,
            routes,
            node: None,
            page: None,
            registry: None,
            metrics: metrics.clone(),
            sweeper: None,
            run_dir: PathBuf::new(),
            #[cfg(feature = "kubernetes")]
            webhook: None,
        })?;
        let shown = metrics.clone();
        if let Some(address) = http_address {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("listen on {address}"))?;
            tokio::spawn(http::serve(listener, metrics, is_ready));
        }
        if let Some((node, report)) = parts.node {
            node.reconcile()
                .await
                .context("compare records and mounts")?;
            node.bills.start().await;
            shown.show(node.bills.clone());
            admin::serve(&parts.run_dir, node.bills.clone())
                .await
                .context("listen for operators")?;
            if let Some(sockets) = &node.sockets {
                sockets.resume().await;
            }
            let offered = node.offers();
            parts.records.announce(&node, offered).await?;
            tokio::spawn(offer(parts.records, Arc::clone(&node), offered));
            tokio::spawn(Arc::clone(&node).sweep());
            let reporter = report.build(Arc::clone(&node), http_address);
            tokio::spawn(reporter.run());
            if let Some(sweeper) = parts.sweeper {
                tokio::spawn(sweeper.run());
            }
            tokio::spawn(node.live());
        }
        #[cfg(feature = "kubernetes")]
        if let Some(webhook) = parts.webhook {
            let listen = webhook.listen;
            let started = webhook.start(shown.clone()).await;
            started.with_context(|| format!("listen on {listen}"))?;
        }
        if let Some((address, page)) = parts.page {
            report::serve(address, page).await?;
        }
        ready.send_replace(true);
        server::run(parts.routes, endpoint, parts.registry).await
    });
    // An unmount that hangs must not hold the process.
    runtime.shutdown_background();
    ended
}

/// Says it when this node offers more or less than was said. Never ends.
async fn offer(records: Records, node: Arc<Node>, mut said: Bytes) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = node.offers();
        if now == said {
            continue;
        }
        match records.announce(&node, now).await {
            Ok(()) => said = now,
            Err(error) => tracing::warn!(%error, "nobody is told what this node offers"),
        }
    }
}

fn private_directory(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().context("the layers cannot be in the root")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.with_context(|| path.display().to_string())?,
    }
    Ok(())
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
