//! Pods as users write them: what the webhook adds is not here.

use serde_json::{Value, json};

/// The image of a shell, with our test client.
const SHELL: &str = "vineyard.test/shell:1";

/// The image of a Python with the wheel, as users have it.
pub(crate) const PYTHON: &str = "vineyard.test/python:1";

/// Where pods have their claims.
pub(crate) const DATA: &str = "/data";

/// A pod with one claim.
#[derive(Clone, Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) name: &'a str,
    pub(crate) claim: &'a str,
    /// What it runs.
    pub(crate) script: &'a str,
    pub(crate) read_only: bool,
    /// Bytes that it means to put, if it says so.
    pub(crate) writes: Option<u64>,
    /// Memory that its container requests, in MiB; also its limit.
    pub(crate) memory: u64,
    pub(crate) node: Option<u8>,
    /// `Never`, or what becomes of a container that ends.
    pub(crate) restart: &'a str,
}

impl<'a> Pod<'a> {
    /// A pod that waits to be told what to do.
    pub(crate) fn waiting(name: &'a str, claim: &'a str) -> Self {
        Self {
            name,
            claim,
            // The shell ends at once when it is told to.
            script: "trap exit TERM; sleep 3600 & wait",
            read_only: false,
            writes: None,
            memory: 64,
            node: None,
            restart: "Never",
        }
    }

    /// A pod that runs a script to its end.
    pub(crate) fn running(name: &'a str, claim: &'a str, script: &'a str) -> Self {
        Self {
            script,
            ..Self::waiting(name, claim)
        }
    }

    /// As the API server takes it.
    pub(crate) fn object(&self) -> Value {
        let memory = format!("{}Mi", self.memory);
        let mut annotations = json!({});
        if let Some(writes) = self.writes {
            annotations["vineyard.io/writes"] = json!(writes.to_string());
        }
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "annotations": annotations},
            "spec": {
                "restartPolicy": self.restart,
                "terminationGracePeriodSeconds": 10,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "main",
                    "image": SHELL,
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-ec", self.script],
                    "resources": {"requests": {"memory": memory, "cpu": "10m"}, "limits": {"memory": memory}},
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "data", "mountPath": DATA}],
                }],
                "volumes": [{
                    "name": "data",
                    "persistentVolumeClaim": {"claimName": self.claim, "readOnly": self.read_only},
                }],
            },
        });
        if let Some(node) = self.node {
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": format!("n{node}")});
        }
        pod
    }
}

/// A pod without a claim, which has `memory` MiB of a node to itself.
pub(crate) fn ballast(name: &str, node: u8, memory: u64) -> Value {
    let pod = Pod {
        memory,
        node: Some(node),
        ..Pod::waiting(name, "")
    };
    without_claim(pod.object())
}

/// The same pod without its claim.
pub(crate) fn without_claim(mut pod: Value) -> Value {
    pod["spec"]["volumes"] = json!([]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([]);
    pod
}
