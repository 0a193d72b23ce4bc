//! Who may write: pods that have the sidecar, where that is required. A pod without it would be billed for every page itself, outside of what
//! the scheduler has counted.

use std::collections::HashMap;
use std::fmt;

use tonic::async_trait;

use super::{Error, Node};
use crate::report::{Reason, Subject};
use crate::volume::{PodReference, VolumeId};

/// Tells whether pods have a sidecar.
#[async_trait]
pub(crate) trait Sidecars: Send + Sync + fmt::Debug {
    /// Whether this very pod has one. A pod that does not exist has none.
    ///
    /// # Errors
    /// Why it cannot be told now.
    async fn has_sidecar(&self, pod: &PodReference) -> Result<bool, String>;
}

impl Node {
    /// Refuses a pod that would write a volume without a sidecar, and says so on the pod.
    pub(super) async fn require_sidecar(
        &self,
        id: &VolumeId,
        context: &HashMap<String, String>,
    ) -> Result<(), Error> {
        let Some(sidecars) = &self.sidecars else {
            return Ok(());
        };
        let pod = PodReference::of_context(context).ok_or(Error::NoPod)?;
        match sidecars.has_sidecar(&pod).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let error = Error::NoSidecar {
                    id: id.clone(),
                    pod: pod.clone(),
                };
                let note = error.to_string();
                self.events
                    .publish(Reason::SidecarMissing, &[Subject::Pod(pod)], note);
                Err(error)
            }
            Err(reason) => Err(Error::Unsure { pod, reason }),
        }
    }
}
