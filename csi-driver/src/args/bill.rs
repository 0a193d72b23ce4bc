//! Flags of the bill, and what is built from them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args as Flags;

use crate::bill::{
    Bills, Engine, FileRequest, Pods, Retainer, RetainerEngine, RetainerRequest, Settings,
};
use crate::bytes::Bytes;
use crate::mount::Mounter;
use crate::records::Records;
use crate::volume::NodeId;

/// Who is billed for what is in the volumes.
#[derive(Debug, Flags)]
pub(super) struct BillFlags {
    /// Directory of records and sockets that die with the boot, on a tmpfs. Made private to root.
    #[arg(
        long,
        env = "VINEYARD_RUN_DIR",
        value_name = "PATH",
        default_value = "/run/vineyard"
    )]
    pub(super) run_dir: PathBuf,

    /// Socket of this node's retainer, normally `<run-dir>/retainer/retainer.sock`. None: bytes stay on the bill of whoever put them.
    #[arg(long, env = "VINEYARD_RETAINER", value_name = "PATH")]
    retainer: Option<PathBuf>,

    /// What the retainer's own process needs: its pod requests this on top of what the node retains.
    #[arg(
        long,
        env = "VINEYARD_RETAINER_OVERHEAD",
        value_name = "BYTES",
        default_value = "16MiB"
    )]
    retainer_overhead: Bytes,

    /// Cgroup that kubelet's `kubepods` is in, as a directory. Default: the whole hierarchy that accounts memory.
    #[arg(long, env = "VINEYARD_CGROUP_ROOT", value_name = "PATH")]
    cgroup_root: Option<PathBuf>,

    /// The longest that NodeUnpublishVolume waits until the pod's bytes are handed over, in milliseconds.
    #[arg(
        long,
        env = "VINEYARD_HAND_OVER_PATIENCE",
        value_name = "MILLISECONDS",
        default_value_t = 15_000
    )]
    hand_over_patience: u64,

    /// After a hand-over that left something, in milliseconds; doubled with each one in a row.
    #[arg(
        long,
        env = "VINEYARD_HAND_OVER_PAUSE",
        value_name = "MILLISECONDS",
        default_value_t = 1_000
    )]
    hand_over_pause: u64,

    /// The longest such pause, in milliseconds.
    #[arg(
        long,
        env = "VINEYARD_HAND_OVER_LONGEST_PAUSE",
        value_name = "MILLISECONDS",
        default_value_t = 300_000
    )]
    hand_over_longest_pause: u64,

    /// Hand-overs, each of one volume, at the same time.
    #[arg(
        long,
        env = "VINEYARD_HAND_OVERS",
        value_name = "NUMBER",
        default_value_t = 2,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64)
    )]
    hand_overs: usize,

    /// Between two looks at the pods that have volumes here, in milliseconds.
    #[arg(
        long,
        env = "VINEYARD_LOOK_PERIOD",
        value_name = "MILLISECONDS",
        default_value_t = 10_000
    )]
    look_period: u64,

    /// Between two surveys of a volume whose use changes, in milliseconds; more when they take long.
    #[arg(
        long,
        env = "VINEYARD_SURVEY_PERIOD",
        value_name = "MILLISECONDS",
        default_value_t = 60_000
    )]
    survey_period: u64,

    /// What the retainer's memory request is raised by, ahead of need.
    #[arg(long, env = "VINEYARD_REQUEST_CHUNK", value_name = "BYTES", default_value = "64MiB", value_parser = super::pages)]
    request_chunk: Bytes,
}

impl BillFlags {
    /// The bills of a node.
    ///
    /// # Errors
    /// When the run directory or the records in it cannot be used, or no memory cgroups are mounted.
    pub(super) fn build(
        self,
        records_of: &Records,
        node: &NodeId,
        layers: &Path,
        boot_id: &str,
        budget: Bytes,
        mounter: &Arc<dyn Mounter>,
    ) -> anyhow::Result<Bills> {
        let BillFlags {
            run_dir,
            retainer,
            retainer_overhead,
            cgroup_root,
            hand_over_patience,
            hand_over_pause,
            hand_over_longest_pause,
            hand_overs,
            look_period,
            survey_period,
            request_chunk,
        } = self;
        super::parts::private_directory(&run_dir)?;
        let records = run_dir.join("bill");
        super::parts::private_directory(&records)?;
        let pods = Arc::new(Pods::new(cgroup_root).context("cgroups of pods")?);
        let path = records.join("request.json");
        let request: Arc<dyn RetainerRequest> = match &retainer {
            Some(socket) => {
                open_to_the_retainer(&run_dir, socket)?;
                let overhead = retainer_overhead;
                records_of.retainer_request(&path, boot_id, node, budget, overhead)?
            }
            // Nothing is ever asked for.
            None => Arc::new(FileRequest::open(path, boot_id, budget)?),
        };
        let settings = Settings {
            layers: layers.to_owned(),
            records,
            boot_id: boot_id.to_owned(),
            join: Duration::from_millis(hand_over_patience),
            look: Duration::from_millis(look_period),
            survey: Duration::from_millis(survey_period),
            pause: Duration::from_millis(hand_over_pause),
            longest_pause: Duration::from_millis(hand_over_longest_pause),
            chunk: request_chunk,
            runs: hand_overs,
            furnish: true,
            events: records_of.events.clone(),
        };
        let connection = |socket| {
            let pods = Arc::clone(&pods);
            Retainer::new(socket, move |pid| pods.directory_of(pid).ok().flatten())
        };
        let engine = retainer.map(|socket| {
            let engine = RetainerEngine {
                moving: connection(socket.clone()),
                reserving: connection(socket),
            };
            Arc::new(engine) as Arc<dyn Engine>
        });
        Ok(Bills::open(
            settings,
            pods,
            engine,
            request,
            Arc::clone(mounter),
        )?)
    }
}

/// Makes the directory of the retainer's socket. It is a process of another user, and its pod mounts this directory alone; on the node
/// itself nobody else comes past the run directory.
fn open_to_the_retainer(run_dir: &Path, socket: &Path) -> anyhow::Result<()> {
    let Some(directory) = socket.parent().filter(|it| *it != run_dir) else {
        return Ok(());
    };
    if !directory.starts_with(run_dir) {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o777)))
        .with_context(|| directory.display().to_string())
}
