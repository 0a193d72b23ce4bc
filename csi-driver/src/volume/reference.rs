//! Who in Kubernetes has to do with a volume: the claim that it was made for, the pods that have it.

use std::collections::HashMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the provisioner adds to the parameters, told to do so by `--extra-create-metadata`.
const CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const CLAIM_NAME: &str = "csi.storage.k8s.io/pvc/name";

/// What kubelet adds to the volume context, told to do so by `podInfoOnMount`.
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";

/// How the provisioner names volumes, unless it is told otherwise: this, and the uid of the claim.
const VOLUME_OF_CLAIM: &str = "pvc-";

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClaimReference {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid, as far as the volume's name says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<String>,
}

impl ClaimReference {
    /// The claim that CreateVolume is called for; `None` when the provisioner does not say.
    pub(crate) fn of_request(
        parameters: &HashMap<String, String>,
        volume_name: &str,
    ) -> Option<Self> {
        let uid = volume_name.strip_prefix(VOLUME_OF_CLAIM);
        Some(Self {
            namespace: parameters.get(CLAIM_NAMESPACE)?.clone(),
            name: parameters.get(CLAIM_NAME)?.clone(),
            uid: uid.filter(|uid| is_uid(uid)).map(str::to_owned),
        })
    }
}

impl fmt::Display for ClaimReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PodReference {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid.
    pub(crate) uid: String,
}

impl PodReference {
    /// The pod that NodePublishVolume is called for; `None` when kubelet does not say.
    pub(crate) fn of_context(context: &HashMap<String, String>) -> Option<Self> {
        Some(Self {
            namespace: context.get(POD_NAMESPACE)?.clone(),
            name: context.get(POD_NAME)?.clone(),
            uid: context.get(POD_UID)?.clone(),
        })
    }
}

impl fmt::Display for PodReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let owned = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        owned.collect()
    }

    #[test]
    fn a_claim_is_known_by_its_name_and_its_uid_by_the_name_of_its_volume() {
        let parameters = map(&[(CLAIM_NAMESPACE, "team"), (CLAIM_NAME, "features")]);
        let uid = "0f8e1f4e-7a3c-4a77-9a55-0d3b7a1c2d3e";
        let claim = ClaimReference::of_request(&parameters, &format!("pvc-{uid}")).unwrap();
        assert_eq!(claim.to_string(), "team/features");
        assert_eq!(claim.uid.as_deref(), Some(uid));
        let other = ClaimReference::of_request(&parameters, "pvc-by-hand").unwrap();
        assert_eq!(other.uid, None);
        assert_eq!(ClaimReference::of_request(&map(&[]), "pvc-x"), None);
    }

    #[test]
    fn a_pod_is_known_only_when_kubelet_says_all_of_it() {
        let mut context = map(&[(POD_NAMESPACE, "team"), (POD_NAME, "job-1")]);
        assert_eq!(PodReference::of_context(&context), None);
        context.insert(POD_UID.into(), "u".into());
        let pod = PodReference::of_context(&context).unwrap();
        assert_eq!(
            (pod.to_string().as_str(), pod.uid.as_str()),
            ("team/job-1", "u")
        );
    }
}
