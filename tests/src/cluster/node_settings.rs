//! The configuration files of a node.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Cluster;
use super::network::pod_subnet;
use super::programs::NETWORK_PLUGINS;

/// The image of the process that holds a pod's namespaces.
const PAUSE: &str = "vineyard.test/pause:1";

/// Writes them below `root`, which the node has as its own directories.
///
/// # Errors
/// What the file system says, or when the machine is too small.
pub(super) fn write(cluster: &Cluster, root: &Path, number: u8, memory: u64) -> Result<()> {
    let folder = root.join("var/lib/node");
    fs::create_dir_all(folder.join("net.d"))?;
    fs::write(folder.join("net.d/10-pods.conflist"), network(number))?;
    fs::write(folder.join("containerd.toml"), containerd())?;
    let name = format!("n{number}");
    fs::write(
        folder.join("kubelet.yaml"),
        kubelet(cluster, &name, memory)?,
    )?;
    Ok(())
}

fn network(number: u8) -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{
  "type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": true,
  "ipam": {{"type": "host-local", "subnet": "{}", "routes": [{{"dst": "0.0.0.0/0"}}]}}
}}]}}
"#,
        pod_subnet(number)
    )
}

fn containerd() -> String {
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  enable_selinux = false
  # Some machines do not let even root make a process less likely to be killed.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{NETWORK_PLUGINS}"
    conf_dir = "/var/lib/node/net.d"
"#
    )
}

/// A node offers `memory` bytes to pods: less than the machine has, so that it is easily full.
fn kubelet(cluster: &Cluster, name: &str, memory: u64) -> Result<String> {
    let total = machine_memory()?;
    let Some(reserved) = total.checked_sub(memory) else {
        bail!("a node of {memory} bytes on a machine of {total}");
    };
    Ok(format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
systemReserved: {{memory: "{reserved}"}}
evictionHard: {{memory.available: 50Mi, nodefs.available: 1Mi, imagefs.available: 1Mi, nodefs.inodesFree: "1"}}
# The machine's disk may be as full as it likes: images that are removed come from nowhere.
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
failSwapOn: false
resolvConf: ""
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {ca}}}}}
authorization: {{mode: Webhook}}
registerWithTaints: []
# Tests wait for these.
nodeStatusUpdateFrequency: 2s
nodeStatusReportFrequency: 10s
syncFrequency: 10s
# They end containers more often than others crash.
crashLoopBackOff: {{maxContainerRestartPeriod: 2s}}
volumeStatsAggPeriod: 10s
"#,
        cgroup = cluster.place.cgroup(name),
        ca = cluster.place.credentials().join("ca.crt").display(),
    ))
}

fn machine_memory() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB"));
    let kibibytes: u64 = kibibytes.context("MemTotal")?.trim().parse()?;
    Ok(kibibytes << 10)
}
