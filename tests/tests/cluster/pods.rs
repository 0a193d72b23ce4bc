//! Pods as users write them.

use serde_json::{Value, json};

/// The image of a shell, with our test client.
const SHELL: &str = "vineyard.test/shell:1";

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
        if !self.read_only {
            by_hand(&mut pod, self.writes);
        }
        pod
    }
}

/// The sidecar of the version under test, and what it and the clients talk through.
fn by_hand(pod: &mut Value, writes: Option<u64>) {
    let image = format!(
        "docker.io/vineyardcsi/sidecar:{}",
        env!("CARGO_PKG_VERSION")
    );
    let sockets = json!({"name": "vineyard-sockets", "mountPath": "/run/vineyard"});
    let attributes = writes.map_or_else(
        || json!({}),
        |writes| json!({"vineyard.io/writes": writes.to_string()}),
    );
    // Enough for what these tests put.
    let memory = writes.unwrap_or(64 << 20) + (32 << 20);
    let spec = &mut pod["spec"];
    spec["initContainers"] = json!([{
        "name": "vineyard-sidecar",
        "image": image,
        "imagePullPolicy": "Never",
        "restartPolicy": "Always",
        "args": [
            "--listen=/run/vineyard/pod/vineyard.sock",
            "--driver=/run/vineyard/driver/driver.sock",
            "--metrics=0.0.0.0:9090",
        ],
        "startupProbe": {"httpGet": {"path": "/healthz", "port": 9090}, "periodSeconds": 1, "failureThreshold": 60},
        "resources": {"requests": {"memory": memory.to_string(), "cpu": "5m"}, "limits": {"memory": memory.to_string()}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [sockets.clone()],
    }]);
    let volumes = spec["volumes"].as_array_mut();
    let volume = json!({"name": "vineyard-sockets", "csi": {"driver": "vineyard.io", "volumeAttributes": attributes}});
    volumes.into_iter().for_each(|it| it.push(volume.clone()));
    let main = &mut spec["containers"][0];
    let mounts = main["volumeMounts"].as_array_mut();
    mounts.into_iter().for_each(|it| it.push(sockets.clone()));
}
