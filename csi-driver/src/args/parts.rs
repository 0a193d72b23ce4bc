//! What one process serves: put together from the flags, then started.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use vineyard_proto::csi::controller_server::ControllerServer;
use vineyard_proto::csi::identity_server::IdentityServer;
use vineyard_proto::csi::node_server::NodeServer;

use crate::bill::admin;
use crate::bytes::Bytes;
use crate::controller::{self, Controller, Forgotten, Offers};
use crate::edge::Edge;
use crate::identity::Identity;
use crate::keyed_lock::KeyedLock;
use crate::metrics::Metrics;
use crate::mount::{LinuxMounter, Mounter, Unmounter};
use crate::node::{self, Clones, Node};
use crate::records::Records;
use crate::report::Page;
use crate::sockets::{Claims, RunDirectory};
use crate::sweep::Sweeper;
use crate::validation::Targets;
use crate::volume::Catalog;
use crate::{http, server};

use super::report::{self, ReportFlags};
#[cfg(feature = "kubernetes")]
use super::webhook::WebhookFlags;
use super::{ControllerFlags, NodeFlags, Shared, UNMOUNT, start_log};

/// How long a stage waits for a clone's content: kubelet gives up after two minutes.
const CLONE_PATIENCE: Duration = Duration::from_secs(100);

/// How long a webhook that is told to end is served still: until the API server has heard that it is no endpoint any more.
#[cfg(feature = "kubernetes")]
const LINGER: Duration = Duration::from_secs(5);

/// Between two looks at what this node can offer.
const LOOK: Duration = Duration::from_secs(5);

/// What one process serves.
pub(super) struct Parts {
    pub(super) records: Records,
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
    pub(super) fn with_webhook(mut self, flags: WebhookFlags) -> anyhow::Result<Self> {
        self.webhook = flags.build(self.records.kubernetes(), &self.catalog)?;
        Ok(self)
    }

    pub(super) fn with_controller(mut self, flags: ControllerFlags, nodes: Offers) -> Self {
        let ControllerFlags {
            default_capacity,
            drop_patience,
            node_grace,
            staging_grace,
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
            forgotten: Forgotten::after(Duration::from_secs(staging_grace)),
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

    pub(super) fn with_node(mut self, flags: NodeFlags) -> anyhow::Result<Self> {
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

/// Builds the parts that a role asks for and serves them until the process is told to stop.
pub(super) fn serve(
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
        let mut operators = None;
        if let Some((node, report)) = parts.node {
            node.reconcile()
                .await
                .context("compare records and mounts")?;
            node.bills.start().await;
            shown.show(node.bills.clone());
            let listening = admin::serve(&parts.run_dir, node.bills.clone()).await;
            operators = Some(listening.context("listen for operators")?);
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
        let webhook = match parts.webhook {
            Some(webhook) => {
                let listen = webhook.listen;
                let started = webhook.start(shown.clone()).await;
                Some(started.with_context(|| format!("listen on {listen}"))?)
            }
            None => None,
        };
        if let Some((address, page)) = parts.page {
            report::serve(address, page).await?;
        }
        ready.send_replace(true);
        let served = server::run(parts.routes, endpoint, parts.registry).await;
        if let Some(socket) = operators {
            socket.remove();
        }
        #[cfg(feature = "kubernetes")]
        if let Some(webhook) = webhook {
            webhook.end(LINGER).await;
        }
        served
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

pub(super) fn private_directory(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().context("the layers cannot be in the root")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.with_context(|| path.display().to_string())?,
    }
    Ok(())
}
