//! Requests as kubelet and the sidecars of CSI fill them in.

use std::fs;
use std::path::Path;

use vineyard_proto::csi::*;

use crate::kubelet::Kubelet;
use crate::rpc::{at_least, capability};

pub(crate) fn create_request(name: &str, bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: at_least(bytes),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

pub(crate) fn clone_request(source: &str, name: &str, bytes: i64) -> CreateVolumeRequest {
    let volume_id = source.to_owned();
    let source = volume_content_source::VolumeSource { volume_id };
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(volume_content_source::Type::Volume(source)),
        }),
        ..create_request(name, bytes)
    }
}

pub(crate) fn delete_request(name: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest {
        volume_id: name.to_owned(),
        ..Default::default()
    }
}

/// ControllerExpandVolume.
pub(crate) fn book_request(name: &str, bytes: i64) -> ControllerExpandVolumeRequest {
    ControllerExpandVolumeRequest {
        volume_id: name.to_owned(),
        capacity_range: at_least(bytes),
        ..Default::default()
    }
}

pub(crate) fn modify_request(name: &str, on_loss: &str) -> ControllerModifyVolumeRequest {
    let on_loss = ("onLoss".to_owned(), on_loss.to_owned());
    ControllerModifyVolumeRequest {
        volume_id: name.to_owned(),
        mutable_parameters: [on_loss].into(),
        ..Default::default()
    }
}

impl Kubelet {
    /// The request, and the directory that kubelet makes for it.
    pub(crate) fn stage_request(&self, name: &str) -> NodeStageVolumeRequest {
        let path = self.staging(name);
        fs::create_dir_all(&path).unwrap();
        NodeStageVolumeRequest {
            volume_id: name.to_owned(),
            staging_target_path: text(&path),
            volume_capability: Some(capability()),
            ..Default::default()
        }
    }

    pub(crate) fn unstage_request(&self, name: &str) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: name.to_owned(),
            staging_target_path: text(&self.staging(name)),
        }
    }

    /// The request, and the directory that kubelet makes for it.
    pub(crate) fn publish_request(
        &self,
        name: &str,
        pod: &str,
        readonly: bool,
    ) -> NodePublishVolumeRequest {
        let target = self.target(pod, name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let uid = ("csi.storage.k8s.io/pod.uid".to_owned(), pod.to_owned());
        NodePublishVolumeRequest {
            volume_id: name.to_owned(),
            staging_target_path: text(&self.staging(name)),
            target_path: text(&target),
            volume_capability: Some(capability()),
            volume_context: [uid].into(),
            readonly,
            ..Default::default()
        }
    }

    /// For the sockets volume of a pod, which is inline.
    pub(crate) fn publish_sockets_request(&self, pod: &str) -> NodePublishVolumeRequest {
        let inline = ("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned());
        NodePublishVolumeRequest {
            volume_id: sockets_id(pod),
            staging_target_path: String::new(),
            volume_context: [inline].into(),
            ..self.publish_request("sockets", pod, false)
        }
    }

    pub(crate) fn unpublish_sockets_request(&self, pod: &str) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: sockets_id(pod),
            ..self.unpublish_request("sockets", pod)
        }
    }

    pub(crate) fn unpublish_request(&self, name: &str, pod: &str) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: name.to_owned(),
            target_path: text(&self.target(pod, name)),
        }
    }

    /// NodeExpandVolume.
    pub(crate) fn grow_request(
        &self,
        name: &str,
        pod: &str,
        bytes: i64,
    ) -> NodeExpandVolumeRequest {
        NodeExpandVolumeRequest {
            volume_id: name.to_owned(),
            volume_path: text(&self.target(pod, name)),
            capacity_range: at_least(bytes),
            ..Default::default()
        }
    }

    pub(crate) fn stats_request(&self, name: &str, pod: &str) -> NodeGetVolumeStatsRequest {
        NodeGetVolumeStatsRequest {
            volume_id: name.to_owned(),
            volume_path: text(&self.target(pod, name)),
            ..Default::default()
        }
    }
}

/// As kubelet makes ids of inline volumes: `csi-` and a hash.
fn sockets_id(pod: &str) -> String {
    format!("csi-{pod:0>64}")
}

/// A path on the wire.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
