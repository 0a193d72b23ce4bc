//! On a real cluster with the driver installed: `make cluster-test`.

use anyhow::{Context, Result};
use vineyard_tests::cluster::Cluster;

/// The cluster that the environment names.
fn cluster() -> Result<Cluster> {
    let id = std::env::var("VINEYARD_TEST_CLUSTER").unwrap_or_else(|_| "dev".into());
    let id = id.parse().map_err(anyhow::Error::msg)?;
    Cluster::open(&id).context("run make cluster-up")
}

/// A namespace that goes with the guard.
struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Namespace<'a> {
    fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        cluster.kubectl(&["create", "namespace", &name])?;
        Ok(Self { cluster, name })
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let events =
                self.cluster
                    .kubectl(&["-n", &self.name, "get", "events,pods,pvc", "-o", "wide"]);
            eprintln!("{}", events.unwrap_or_default());
        }
        let _ = self
            .cluster
            .kubectl(&["delete", "namespace", &self.name, "--timeout=120s"]);
    }
}

fn claim(name: &str, capacity: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{storageClassName: vineyard, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {capacity}}}}}}}
"
    )
}

fn pod(name: &str, claim: &str, script: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: vineyard.test/shell:1
      command: [sh, -ec, '{script}']
      resources: {{requests: {{memory: 64Mi}}, limits: {{memory: 64Mi}}}}
      volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
"
    )
}

impl Namespace<'_> {
    fn apply(&self, yaml: &str) -> Result<()> {
        // The objects above have one line of metadata.
        let named = yaml.replace(
            "metadata: {",
            &format!("metadata: {{namespace: {}, ", self.name),
        );
        self.cluster.apply(&named)
    }

    fn wait_for(&self, object: &str, path: &str, value: &str) -> Result<()> {
        self.cluster.wait_for(&self.name, object, path, value)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["-n", &self.name], arguments].concat())
    }
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn what_a_pod_wrote_is_read_by_the_next_and_gone_with_its_claim() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "file")?;
    namespace.apply(&claim("data", "64Mi"))?;
    // Nothing is provisioned before the scheduler has chosen a node.
    namespace.wait_for("pvc/data", "{.status.phase}", "Pending")?;
    namespace.apply(&pod(
        "writer",
        "data",
        "echo precious >/data/file; stat -f -c %T /data",
    ))?;
    namespace.wait_for("pod/writer", "{.status.phase}", "Succeeded")?;
    assert_eq!(namespace.kubectl(&["logs", "writer"])?.trim(), "tmpfs");
    let node = cluster.field(&namespace.name, "pod/writer", "{.spec.nodeName}")?;
    let volume = cluster.field(&namespace.name, "pvc/data", "{.spec.volumeName}")?;
    // A volume is never pinned to one node, only to the nodes of its pool.
    let terms = cluster.field(
        "",
        &format!("pv/{volume}"),
        "{.spec.nodeAffinity.required.nodeSelectorTerms}",
    )?;
    assert!(
        terms.contains("vineyard.io/pool") && !terms.contains("vineyard.io/node"),
        "{terms}"
    );
    namespace.kubectl(&["delete", "pod", "writer"])?;
    let reader = pod("reader", "data", "cat /data/file");
    let there = format!("spec:\n  nodeName: {node}\n");
    namespace.apply(&reader.replacen("spec:\n", &there, 1))?;
    namespace.wait_for("pod/reader", "{.status.phase}", "Succeeded")?;
    assert_eq!(namespace.kubectl(&["logs", "reader"])?.trim(), "precious");
    namespace.kubectl(&["delete", "pod/reader", "pvc/data"])?;
    cluster.wait_until_gone("", &format!("pv/{volume}"))
}
