//! Plays kubelet and the provisioner: one CSI call, repeated while the driver says that it is busy, as they do.
//!
//! Prints the milliseconds that the call took. The demo runs this; it is also handy for trying a standalone driver by hand.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use vineyard_proto::csi::controller_client::ControllerClient;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use vineyard_proto::csi::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};

/// How long a driver may be away or busy.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// What Kubernetes says about claims and pods.
const CLAIM: [&str; 2] = [
    "csi.storage.k8s.io/pvc/namespace",
    "csi.storage.k8s.io/pvc/name",
];
const POD: [&str; 3] = [
    "csi.storage.k8s.io/pod.namespace",
    "csi.storage.k8s.io/pod.name",
    "csi.storage.k8s.io/pod.uid",
];

#[derive(Debug, Parser)]
#[command(about)]
struct Args {
    /// Socket of the driver.
    #[arg(long)]
    endpoint: PathBuf,
    #[command(subcommand)]
    call: Call,
}

#[derive(Clone, Debug, Subcommand)]
enum Call {
    /// CreateVolume
    Create {
        name: String,
        bytes: i64,
        /// The claim that it is for, as the provisioner says it: NAMESPACE/NAME
        #[arg(long)]
        claim: Option<String>,
    },
    /// NodeStageVolume
    Stage { id: String, staging: String },
    /// NodePublishVolume of a claim
    Publish {
        id: String,
        staging: String,
        target: String,
        /// The pod, as kubelet says it: NAMESPACE/NAME/UID
        #[arg(long)]
        pod: Option<String>,
    },
    /// NodePublishVolume of a pod's inline sockets volume
    PublishSockets {
        id: String,
        target: String,
        writes: String,
    },
    /// NodeUnpublishVolume
    Unpublish { id: String, target: String },
    /// NodeUnstageVolume
    Unstage { id: String, staging: String },
    /// DeleteVolume
    Delete { id: String },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Args { endpoint, call } = Args::parse();
    let endpoint = Endpoint::from_shared(format!("unix:{}", endpoint.display()))?;
    let began = Instant::now();
    loop {
        let busy = match endpoint.connect().await {
            Ok(channel) => match answer(channel, call.clone()).await {
                Ok(()) => break,
                Err(status) if status.code() == Code::Aborted => status.to_string(),
                Err(status) if status.code() == Code::Unavailable => status.to_string(),
                Err(status) => bail!("{status}"),
            },
            Err(error) => error.to_string(),
        };
        if began.elapsed() > PATIENCE {
            bail!("no answer for {} s: {busy}", PATIENCE.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
    println!("{:.3}", began.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

async fn answer(channel: Channel, call: Call) -> Result<(), Status> {
    let mut controller = ControllerClient::new(channel.clone());
    let mut node = NodeClient::new(channel);
    match call {
        Call::Create { name, bytes, claim } => {
            let capacity_range = Some(CapacityRange {
                required_bytes: bytes,
                limit_bytes: 0,
            });
            let request = CreateVolumeRequest {
                name,
                capacity_range,
                volume_capabilities: vec![capability()],
                parameters: context(&CLAIM, claim.as_deref()),
                ..Default::default()
            };
            done(controller.create_volume(request).await)
        }
        Call::Stage { id, staging } => {
            let request = NodeStageVolumeRequest {
                volume_id: id,
                staging_target_path: staging,
                volume_capability: Some(capability()),
                ..Default::default()
            };
            done(node.node_stage_volume(request).await)
        }
        Call::Publish {
            id,
            staging,
            target,
            pod,
        } => {
            let request = NodePublishVolumeRequest {
                volume_id: id,
                staging_target_path: staging,
                target_path: target,
                volume_capability: Some(capability()),
                volume_context: context(&POD, pod.as_deref()),
                ..Default::default()
            };
            done(node.node_publish_volume(request).await)
        }
        Call::PublishSockets { id, target, writes } => {
            let attributes = [
                ("csi.storage.k8s.io/ephemeral", "true"),
                ("vineyard.io/writes", &writes),
            ];
            let request = NodePublishVolumeRequest {
                volume_id: id,
                target_path: target,
                volume_capability: Some(capability()),
                volume_context: attributes
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                ..Default::default()
            };
            done(node.node_publish_volume(request).await)
        }
        Call::Unpublish { id, target } => {
            let request = NodeUnpublishVolumeRequest {
                volume_id: id,
                target_path: target,
            };
            done(node.node_unpublish_volume(request).await)
        }
        Call::Unstage { id, staging } => {
            let request = NodeUnstageVolumeRequest {
                volume_id: id,
                staging_target_path: staging,
            };
            done(node.node_unstage_volume(request).await)
        }
        Call::Delete { id } => {
            let request = DeleteVolumeRequest {
                volume_id: id,
                ..Default::default()
            };
            done(controller.delete_volume(request).await)
        }
    }
}

/// The parts of a reference, each under its key.
fn context(keys: &[&str], reference: Option<&str>) -> HashMap<String, String> {
    let parts = reference.into_iter().flat_map(|it| it.split('/'));
    let pairs = keys.iter().zip(parts);
    pairs
        .map(|(key, part)| ((*key).to_owned(), part.to_owned()))
        .collect()
}

fn done<T>(answer: Result<Response<T>, Status>) -> Result<(), Status> {
    answer.map(|_| ())
}

/// Several pods of one node write.
fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeMultiWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}
