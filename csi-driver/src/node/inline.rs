//! Inline (ephemeral) volumes: the sockets volume of a pod. Kubelet neither stages nor creates it.

use std::collections::HashMap;
use std::path::PathBuf;

use vineyard_proto::csi::{NodePublishVolumeRequest, NodePublishVolumeResponse};

use super::{Error, Node};
use crate::bytes::Bytes;
use crate::sockets::{self, Publish};
use crate::validation::{self, Invalid};

/// How kubelet says that a volume is inline.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// Bytes that the pod means to write.
const WRITES: &str = "vineyard.io/writes";

/// Whether a publish request is about an inline volume.
pub(super) fn is_inline(context: &HashMap<String, String>) -> bool {
    context.get(EPHEMERAL).is_some_and(|value| value == "true")
}

impl Node {
    pub(super) async fn publish_inline(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Error> {
        validation::volume_id(&request.volume_id)?;
        let target = self.targets.take("target_path", &request.target_path)?;
        let capability = validation::capability(request.volume_capability.as_ref())?;
        validation::map("volume_context", &request.volume_context)?;
        let sockets = self.sockets.as_ref().ok_or(sockets::Error::NotServed)?;
        if request.readonly || capability.flags.read_only {
            // The sidecar could not listen in it.
            return Err(Invalid::Unsupported("a read-only sockets volume".into()).into());
        }
        let pod = self
            .targets
            .pod(&target)
            .ok_or_else(|| sockets::Error::NoPod {
                path: target.clone(),
            })?;
        let publish = Publish {
            writes: writes(&request.volume_context)?,
            volume_id: request.volume_id,
            target,
            pod,
            context: capability.context,
        };
        sockets.publish(publish).await?;
        Ok(NodePublishVolumeResponse {})
    }

    /// The path of a sockets volume, when it is one and is there.
    pub(super) async fn inline_at(
        &self,
        volume_id: &str,
        volume_path: &str,
    ) -> Result<Option<PathBuf>, Error> {
        let (Some(sockets), Ok(path)) =
            (&self.sockets, self.targets.take("volume_path", volume_path))
        else {
            return Ok(None);
        };
        let is_there = sockets.is_at(volume_id, &path).await?;
        Ok(is_there.then_some(path))
    }
}

fn writes(context: &HashMap<String, String>) -> Result<Option<Bytes>, sockets::Error> {
    let mut writes = None;
    for (key, value) in context {
        let attribute = |reason| sockets::Error::Attribute {
            key: key.clone(),
            reason,
        };
        match key.as_str() {
            WRITES => writes = Some(value.parse().map_err(attribute)?),
            key if key.starts_with("csi.storage.k8s.io/") => {}
            _ => return Err(attribute("no sockets volume has it".into())),
        }
    }
    Ok(writes)
}
