//! A volume and a node as they are in Kubernetes, for who reads them without these types: `kubectl vineyard` and scripts.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::{VineyardNode, VineyardNodeSpec, VineyardNodeStatus, VineyardVolume};
use crate::bytes::Bytes;
use crate::volume::catalog::conformance;
use crate::volume::{
    AccessMode, Bill, Claim, ClaimReference, HandOver, Layer, NodeId, NodeReport, Payer,
    PodReference, Publication, RetainerReport, Usage,
};

const MIB: u64 = 1 << 20;

/// Compares with the file, or writes it when `VINEYARD_WRITE_GOLDEN` is set.
fn is_as_recorded(name: &str, value: &impl Serialize) {
    let path = format!(
        "{}/src/resources/golden/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let fresh = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("VINEYARD_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        recorded == fresh,
        "{path} differs: if that is meant, set VINEYARD_WRITE_GOLDEN=1, and see to it that old readers still can"
    );
}

#[test]
fn a_volume_is_written_as_its_readers_know_it() {
    let node = NodeId::parse("n1").unwrap();
    let mut volume = conformance::volume("pvc-1");
    volume.capacity = Bytes(64 * MIB);
    volume.claim = Some(ClaimReference {
        namespace: "team".into(),
        name: "features".into(),
        uid: None,
    });
    let layer = Layer {
        boot_id: "boot-1".into(),
        epoch: 1,
        context: None,
    };
    volume.settle(&node, 1, layer);
    let pod = PodReference {
        namespace: "team".into(),
        name: "train-0".into(),
        uid: "uid-1".into(),
    };
    volume.publications.push(Publication {
        node,
        boot_id: "boot-1".into(),
        path: "/var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~csi/pvc-1/mount".into(),
        pod_uid: Some(pod.uid.clone()),
        pod: Some(pod.clone()),
        claim: Claim {
            access_mode: AccessMode::SingleNodeWriter,
            read_only: false,
            no_exec: false,
            no_atime: false,
        },
    });
    volume.usage = Some(Usage {
        used: Bytes(40 * MIB),
        billed: vec![
            Bill {
                payer: Payer::Pod,
                namespace: Some(pod.namespace),
                name: Some(pod.name),
                uid: Some(pod.uid),
                bytes: Bytes(32 * MIB),
            },
            Bill {
                payer: Payer::Retainer,
                bytes: Bytes(8 * MIB),
                ..Bill::default()
            },
        ],
        pending: Bytes(8 * MIB),
        hand_over: HandOver::Running,
        trouble: None,
        observed_at: "2026-11-26T00:21:13Z".into(),
    });
    volume.refresh_conditions(UNIX_EPOCH + Duration::from_secs(1_795_652_473));
    is_as_recorded("volume", &VineyardVolume::from(volume));
}

#[test]
fn a_node_is_written_as_its_readers_know_it() {
    let spec = VineyardNodeSpec {
        pool: "default".into(),
        budget: Bytes(1 << 30),
    };
    let mut node = VineyardNode::new("n1", spec);
    let kernel = serde_json::json!({"name": "kernel", "works": "Yes", "found": "6.18"});
    let capabilities = vec![serde_json::from_value(kernel).unwrap()];
    node.status = Some(VineyardNodeStatus {
        boot_id: Some("boot-1".into()),
        beats: 7,
        booked: 3,
        booked_bytes: Bytes(64 * MIB),
        report: Some(NodeReport {
            endpoint: Some("10.0.0.1:9808".into()),
            charged: Bytes(40 * MIB),
            retained: Bytes(8 * MIB),
            pending: Bytes(8 * MIB),
            retainer: Some(RetainerReport {
                requested: Bytes(32 * MIB),
                allocated: Bytes(32 * MIB),
            }),
            capabilities,
        }),
        ..VineyardNodeStatus::default()
    });
    is_as_recorded("node", &node);
}
