//! The programs that a cluster consists of: ours, built from Go modules, and Debian's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What Debian's packages bring: containerd, runc, iproute2, iptables, openssl, util-linux.
const DEBIAN: [&str; 8] = [
    "containerd",
    "ctr",
    "runc",
    "ip",
    "iptables",
    "openssl",
    "unshare",
    "mount",
];

/// Where Debian has the network plugins of containers.
pub(super) const NETWORK_PLUGINS: &str = "/usr/lib/cni";

/// What is in the file `kubernetes`, which is named like the one that it is to be.
const KUBERNETES: [&str; 5] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
];

/// The directory that has them.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Takes the programs that were built into `directory`.
    ///
    /// # Errors
    /// When one is missing, with the way to get it.
    pub(super) fn find(directory: &Path) -> Result<Self> {
        let directory = directory
            .canonicalize()
            .with_context(|| format!("{}: run make cluster-programs", directory.display()))?;
        for name in ["etcd", "kubernetes"] {
            if !directory.join(name).is_file() {
                bail!(
                    "{name} is not in {}: run make cluster-programs",
                    directory.display()
                );
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<_> = std::env::split_paths(&path).collect();
        for name in DEBIAN {
            if !folders.iter().any(|folder| folder.join(name).is_file()) {
                bail!("{name} is not installed: run .ci/apt cluster");
            }
        }
        if !Path::new(NETWORK_PLUGINS).join("bridge").is_file() {
            bail!("containernetworking-plugins is not installed: run .ci/apt cluster");
        }
        Ok(Self { directory })
    }

    /// Puts names of all programs of Kubernetes into `folder`.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn name_in(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for name in KUBERNETES {
            std::os::unix::fs::symlink(self.directory.join("kubernetes"), folder.join(name))?;
        }
        for name in ["etcd", "helm"] {
            std::os::unix::fs::symlink(self.directory.join(name), folder.join(name))?;
        }
        Ok(())
    }
}
