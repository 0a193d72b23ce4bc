//! A namespace of a test, and what it makes in it.

use std::process;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vineyard_tests::cluster::Cluster;

/// A namespace that goes with the guard.
pub(crate) struct Namespace<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
}

impl<'a> Namespace<'a> {
    pub(crate) fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let name = format!("{name}-{}", process::id());
        cluster.kubectl(&["create", "namespace", &name])?;
        Ok(Self { cluster, name })
    }

    /// Makes or changes an object.
    pub(crate) fn apply(&self, mut object: Value) -> Result<()> {
        object["metadata"]["namespace"] = json!(self.name);
        self.cluster.apply(&object.to_string())
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["-n", &self.name], arguments].concat())
    }

    pub(crate) fn field(&self, object: &str, path: &str) -> Result<String> {
        self.cluster.field(&self.name, object, path)
    }

    pub(crate) fn wait_for(&self, object: &str, path: &str, value: &str) -> Result<()> {
        self.cluster.wait_for(&self.name, object, path, value)
    }

    /// The claim's PersistentVolume, whose name is also the volume's id.
    pub(crate) fn volume(&self, claim: &str) -> Result<String> {
        self.field(&format!("pvc/{claim}"), "{.spec.volumeName}")
    }

    /// Number of the node that a pod is on.
    pub(crate) fn node(&self, pod: &str) -> Result<u8> {
        let name = self.field(&format!("pod/{pod}"), "{.spec.nodeName}")?;
        let number = name
            .strip_prefix('n')
            .and_then(|number| number.parse().ok());
        number.with_context(|| format!("{pod} is on node {name:?}"))
    }

    /// Makes or changes many objects at once.
    pub(crate) fn apply_all(&self, mut objects: Vec<Value>) -> Result<()> {
        for object in &mut objects {
            object["metadata"]["namespace"] = json!(self.name);
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(&list.to_string())
    }

    /// Makes a claim that many pods of a node may have.
    pub(crate) fn claim(&self, name: &str, capacity: u64) -> Result<()> {
        self.apply(claim(name, capacity))
    }

    /// Deletes objects and waits until they are gone.
    pub(crate) fn delete(&self, objects: &[&str]) -> Result<()> {
        self.kubectl(&[&["delete", "--timeout=180s"], objects].concat())?;
        Ok(())
    }
}

/// A claim as users write it.
pub(crate) fn claim(name: &str, capacity: u64) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": "vineyard",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": capacity.to_string()}},
        },
    })
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let shown = self.kubectl(&["get", "events,pods,pvc", "-o", "wide"]);
            eprintln!("{}", shown.unwrap_or_default());
        }
        // What the next test could meet goes now, in the order in which nothing comes back. The namespace itself takes seconds more, which nobody
        // has to wait for.
        for kinds in ["deployments,jobs", "pods,pvc"] {
            let _ = self.kubectl(&["delete", kinds, "--all", "--timeout=120s"]);
        }
        let _ = self
            .cluster
            .kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
