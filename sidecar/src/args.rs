//! The command line and the environment: read here and nowhere else, turned into concrete types once.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore};
use tracing_subscriber::EnvFilter;
use vineyard_charge::{MemoryCgroup, OwnPayer};

use crate::bill::{Bill, KernelGauge};
use crate::bytes::Bytes;
use crate::driver::Driver;
use crate::grants::{DriverGrants, Grants, Place, StateFile, StaticAllowance};
use crate::metrics::Metrics;
use crate::open_files;
use crate::server::{End, Server, closing};
use crate::service::{Limits, Service};
use crate::signals::Signals;
use crate::volumes::Volumes;
use crate::{http, socket};

/// Stack of the threads that work on large requests.
const STACK: usize = 256 << 10;

/// Requests that wait for the driver's list of devices at the same time.
const REFRESHING: usize = 8;

/// Idle threads go after this time, with their stacks.
const KEEP_THREADS: Duration = Duration::from_secs(2);

/// The payer of a pod: allocates pages of volumes on its own bill for the clients in the pod.
///
/// It needs no privilege, no capability and no writable file system but the socket's directory. The environment
/// variable RUST_LOG selects what is logged (default: info).
#[derive(Debug, Parser)]
#[command(name = "vineyard-sidecar", version)]
pub(crate) struct Args {
    /// Path of the Unix socket to listen on, at most 107 bytes. A stale socket is replaced.
    #[arg(long, env = "VINEYARD_LISTEN", value_name = "PATH")]
    listen: PathBuf,

    /// Directory where a volume is mounted; descriptors on its device are accepted. Repeat it, or separate by ':'.
    #[arg(
        long = "volume",
        env = "VINEYARD_VOLUMES",
        value_name = "PATH",
        value_delimiter = ':',
        required_unless_present_any = ["driver", "probe"]
    )]
    volumes: Vec<PathBuf>,

    /// Bytes that this pod may add to its bill, e.g. 1GiB.
    #[arg(
        long,
        env = "VINEYARD_ALLOWANCE",
        value_name = "BYTES",
        required_unless_present_any = ["driver", "probe"]
    )]
    allowance: Option<Bytes>,

    /// Socket of the node driver, which says what the volumes are and grants the allowance. Instead of --volume, --allowance
    /// and --state-file.
    #[arg(
        long,
        env = "VINEYARD_DRIVER",
        value_name = "PATH",
        conflicts_with_all = ["volumes", "allowance", "state_file"]
    )]
    driver: Option<PathBuf>,

    /// Seconds that a request waits for a driver that is away, e.g. because it restarts.
    #[arg(
        long,
        env = "VINEYARD_DRIVER_PATIENCE",
        value_name = "SECONDS",
        default_value = "20",
        value_parser = seconds
    )]
    driver_patience: Duration,

    /// File that remembers what is spent across restarts. Without it a restarted sidecar trusts what clients say that
    /// they hold and what its cgroup shows.
    #[arg(long, env = "VINEYARD_STATE_FILE", value_name = "PATH")]
    state_file: Option<PathBuf>,

    /// Bytes by which the state file runs ahead: it is written once per so many bytes reserved.
    #[arg(
        long,
        env = "VINEYARD_STATE_CHUNK",
        value_name = "BYTES",
        default_value = "16MiB"
    )]
    state_chunk: Bytes,

    /// Address that serves /metrics and /healthz, e.g. 127.0.0.1:9090. None: not served.
    #[arg(long, env = "VINEYARD_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,

    /// The most connections of all clients.
    #[arg(
        long,
        env = "VINEYARD_MAX_CONNECTIONS",
        value_name = "COUNT",
        default_value_t = 2048
    )]
    max_connections: usize,

    /// The most connections of clients of one uid.
    #[arg(
        long,
        env = "VINEYARD_MAX_CONNECTIONS_PER_UID",
        value_name = "COUNT",
        default_value_t = 1024
    )]
    max_connections_per_uid: usize,

    /// The most requests of 1 MiB and more that are worked on at the same time.
    #[arg(
        long,
        env = "VINEYARD_MAX_LARGE",
        value_name = "COUNT",
        default_value_t = 4,
        value_parser = at_least_one
    )]
    max_large: usize,

    /// Seconds that a client may take to say hello, to finish a frame that it began, and to read a reply.
    #[arg(
        long,
        env = "VINEYARD_PATIENCE",
        value_name = "SECONDS",
        default_value = "5",
        value_parser = seconds
    )]
    patience: Duration,

    /// The most bytes that one client may keep reserved ahead of need; never more than an eighth of what is free.
    #[arg(
        long,
        env = "VINEYARD_STOCK",
        value_name = "BYTES",
        default_value = "32MiB"
    )]
    stock: Bytes,

    /// Format of the log on standard error.
    #[arg(
        long,
        env = "VINEYARD_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,

    /// Serves nothing: the exit status says whether a sidecar listens at --listen. For probes, in an image that has nothing else.
    #[arg(long)]
    probe: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Args {
    /// Runs the sidecar until it is told to stop.
    pub(crate) fn run(self) -> ExitCode {
        if self.probe {
            return probe(&self.listen);
        }
        start_log(self.log_format);
        match self.serve() {
            Ok(End::Orderly) => ExitCode::SUCCESS,
            Ok(End::Forced) => {
                tracing::warn!("stopped although clients were connected");
                ExitCode::FAILURE
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "cannot serve");
                ExitCode::FAILURE
            }
        }
    }

    fn serve(self) -> anyhow::Result<End> {
        let max_large = self.max_large;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(max_large.saturating_add(closing::THREADS))
            .thread_keep_alive(KEEP_THREADS)
            .thread_stack_size(STACK)
            .thread_name("payer")
            .build()
            .context("runtime")?;
        let end = runtime.block_on(self.assemble())?;
        // A forced stop does not wait for work that is under way.
        runtime.shutdown_background();
        Ok(end)
    }

    /// Destructured, so that a flag nobody uses is a warning.
    async fn assemble(self) -> anyhow::Result<End> {
        let Self {
            listen,
            volumes,
            allowance,
            driver,
            driver_patience,
            state_file,
            state_chunk,
            metrics: metrics_address,
            max_connections,
            max_connections_per_uid,
            max_large,
            patience,
            stock,
            log_format: _,
            probe: _,
        } = self;
        let signals = Signals::new().context("signals")?;
        let holding = match driver {
            Some(_) => max_large.saturating_mul(2).saturating_add(REFRESHING),
            None => max_large,
        };
        let connections = open_files::allow(max_connections, holding).context("open files")?;
        let volumes = Arc::new(Volumes::open(volumes)?);
        let cgroup = MemoryCgroup::own()
            .inspect_err(|error| tracing::warn!(%error, "the bill cannot be measured by cgroup"))
            .ok();
        let place = Place {
            boot_id: boot_id(),
            cgroup: cgroup.as_ref().map_or(0, |own| own.id().0),
        };
        let (grants, driver) = match (driver, allowance) {
            (Some(path), _) => {
                let grants = Arc::new(DriverGrants::default());
                let volumes = Arc::clone(&volumes);
                let driver = Driver::start(path, Arc::clone(&grants), volumes, driver_patience);
                (grants as Arc<dyn Grants>, Some(Arc::new(driver)))
            }
            (None, allowance) => {
                let allowance = allowance.context("no allowance")?;
                let state_file = state_file.as_deref();
                (grants(allowance, state_file, state_chunk, place)?, None)
            }
        };
        let gauge = KernelGauge::new(cgroup, Arc::clone(&volumes));
        let bill = Arc::new(Bill::new(grants, Box::new(gauge)));
        bill.reconcile();
        let metrics = Metrics::new(&bill);
        if let Some(address) = metrics_address {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("metrics on {address}"))?;
            tracing::info!(address = %listener.local_addr().unwrap_or(address), "metrics");
            tokio::spawn(http::serve(listener, metrics.clone()));
        }
        let service = Arc::new(Service {
            bill,
            payer: Box::new(OwnPayer::new()),
            volumes,
            limits: Limits {
                connections,
                connections_per_uid: max_connections_per_uid,
                patience,
                stock: stock.0,
            },
            metrics,
            driver,
            overflow: Semaphore::new(max_large),
            refreshing: Semaphore::new(REFRESHING),
            large: Semaphore::new(max_large),
            closing: Semaphore::new(closing::THREADS),
            settle: Notify::new(),
        });
        tokio::spawn(Arc::clone(&service).settle());
        tokio::spawn(Arc::clone(&service).measure_first());
        let (listener, _file) =
            socket::listen(&listen).with_context(|| format!("listen on {}", listen.display()))?;
        let listener = UnixListener::from_std(listener)?;
        let usage = service.bill.usage();
        let (allowance, spent) = (Bytes(usage.allowance), usage.spent);
        tracing::info!(listen = %listen.display(), %allowance, spent, connections, "serving");
        Ok(Server::new(listener, service).run(signals).await)
    }
}

fn probe(path: &Path) -> ExitCode {
    match UnixStream::connect(path) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn grants(
    allowance: Bytes,
    state_file: Option<&Path>,
    chunk: Bytes,
    place: Place,
) -> anyhow::Result<Arc<dyn Grants>> {
    let Some(path) = state_file else {
        return Ok(Arc::new(StaticAllowance::new(allowance.0)));
    };
    let file = StateFile::new(path);
    let grants = StaticAllowance::recorded(allowance.0, file, chunk.0, place)
        .with_context(|| format!("state file {}", path.display()))?;
    Ok(Arc::new(grants))
}

/// Unknown is a boot of its own: then only a measurement can free what an older record says.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        return Err("no client can be that fast".into());
    }
    Ok(duration)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a number of at least 1".into()),
        Ok(count) => Ok(count),
    }
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
