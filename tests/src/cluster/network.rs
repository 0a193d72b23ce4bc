//! The network of a cluster, all of it in namespaces of its own: a bridge that the nodes hang on, a subnet of pods a node.
//!
//! ```text
//! control plane  10.200.0.1 ── bridge ── 10.200.0.11 n1 ── 10.244.1.0/24 pods
//!                                    └── 10.200.0.12 n2 ── 10.244.2.0/24 pods
//! ```

use anyhow::Result;

use super::namespaces::Namespaces;

/// Address of the control plane.
pub(super) const API_ADDRESS: &str = "10.200.0.1";

/// Address of the service `kubernetes`.
pub(super) const API_SERVICE: &str = "10.96.0.1";

/// Addresses of services.
pub(super) const SERVICES: &str = "10.96.0.0/16";

/// Address of node `n`, counted from 1.
#[must_use]
pub(super) fn node_address(n: u8) -> String {
    format!("10.200.0.{}", 10 + n)
}

/// Addresses of the pods of node `n`.
#[must_use]
pub(super) fn pod_subnet(n: u8) -> String {
    format!("10.244.{n}.0/24")
}

const FORWARD: [&str; 2] = ["-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"];

/// Makes the bridge, in the cluster's namespaces.
///
/// # Errors
/// What the kernel says.
pub(super) fn make_bridge(cluster: Namespaces) -> Result<()> {
    cluster.run("ip", &["link", "set", "lo", "up"])?;
    cluster.run("ip", &["link", "add", "nodes", "type", "bridge"])?;
    cluster.run(
        "ip",
        &["addr", "add", &format!("{API_ADDRESS}/24"), "dev", "nodes"],
    )?;
    cluster.run("ip", &["link", "set", "nodes", "up"])?;
    cluster.run("sh", &FORWARD)?;
    Ok(())
}

/// Connects node `n` to the bridge and its pods to those of the other nodes. `node_pid` is the node's first process, as processes of the
/// cluster see it.
///
/// # Errors
/// What the kernel says.
pub(super) fn connect(cluster: Namespaces, node: Namespaces, n: u8, node_pid: &str) -> Result<()> {
    let outside = format!("n{n}");
    // The kernel takes its time with the network of a node that has ended.
    let _ = cluster.run("ip", &["link", "del", &outside]);
    cluster.run(
        "ip",
        &[
            "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", node_pid,
        ],
    )?;
    cluster.run("ip", &["link", "set", &outside, "master", "nodes", "up"])?;
    cluster.run(
        "ip",
        &[
            "route",
            // A node that is switched on again has its route already.
            "replace",
            &pod_subnet(n),
            "via",
            &node_address(n),
            "onlink",
            "dev",
            "nodes",
        ],
    )?;
    node.run("ip", &["link", "set", "lo", "up"])?;
    node.run(
        "ip",
        &[
            "addr",
            "add",
            &format!("{}/24", node_address(n)),
            "dev",
            "eth0",
        ],
    )?;
    node.run("ip", &["link", "set", "eth0", "up"])?;
    node.run("ip", &["route", "add", "default", "via", API_ADDRESS])?;
    node.run("sh", &FORWARD)?;
    // The only service that pods reach by its address: there is no kube-proxy.
    for chain in ["PREROUTING", "OUTPUT"] {
        let target = format!("{API_ADDRESS}:6443");
        let matched = [
            "-t",
            "nat",
            "-A",
            chain,
            "-d",
            API_SERVICE,
            "-p",
            "tcp",
            "--dport",
            "443",
        ];
        node.run(
            "iptables",
            &[&matched[..], &["-j", "DNAT", "--to-destination", &target]].concat(),
        )?;
    }
    Ok(())
}
