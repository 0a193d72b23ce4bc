//! Where a cluster has what, all of it named after the cluster.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::cgroups::PREFIX;

/// Longest name of a cluster, in bytes.
const LONGEST: usize = 8;

/// Name of a cluster: a letter, then letters and digits, all lower case. So its cgroups and directories are never taken for those of
/// a test process, which have its pid in their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterId(String);

impl FromStr for ClusterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !begins || !text.chars().all(plain) || text.len() > LONGEST {
            return Err(format!(
                "a cluster is named by a letter, then letters and digits, at most {LONGEST}"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of a cluster.
#[derive(Clone, Debug)]
pub struct Place {
    id: ClusterId,
    root: PathBuf,
}

impl Place {
    /// Where the cluster of this name is, or would be.
    #[must_use]
    pub fn of(id: &ClusterId) -> Self {
        Self {
            id: id.clone(),
            root: std::env::temp_dir().join(format!("{PREFIX}cluster-{id}")),
        }
    }

    /// All places that exist.
    ///
    /// # Errors
    /// When the temporary directory cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let folder = std::env::temp_dir();
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut ids: Vec<ClusterId> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let id = name
                    .to_str()?
                    .strip_prefix(PREFIX)?
                    .strip_prefix("cluster-")?;
                id.parse().ok()
            })
            .collect();
        ids.sort();
        Ok(ids.iter().map(Self::of).collect())
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &ClusterId {
        &self.id
    }

    /// The whole of it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Records of processes.
    #[must_use]
    pub fn processes(&self) -> PathBuf {
        self.root.join("processes")
    }

    /// Keys, certificates, tokens and kubeconfigs.
    #[must_use]
    pub fn credentials(&self) -> PathBuf {
        self.root.join("credentials")
    }

    /// The kubeconfig of a user.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.credentials().join(format!("{user}.kubeconfig"))
    }

    /// What a program writes.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("log").join(name)
    }

    /// What a node has instead of the machine's `/run`, `/var/lib/…`.
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.root.join(node)
    }

    /// The cgroup of a node, in every hierarchy.
    #[must_use]
    pub fn cgroup(&self, node: &str) -> String {
        format!("{PREFIX}{}-{node}", self.id)
    }

    /// How many nodes there are: written last, so a cluster without it was never complete.
    ///
    /// # Errors
    /// When it is not complete.
    pub fn nodes(&self) -> Result<u8> {
        let path = self.root.join("nodes");
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("cluster {} is not up", self.id))?;
        text.trim()
            .parse()
            .with_context(|| path.display().to_string())
    }

    /// Declares it complete.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn complete(&self, nodes: u8) -> Result<()> {
        let path = self.root.join("nodes");
        fs::write(&path, format!("{nodes}\n")).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_never_named_like_a_process() {
        for name in ["a", "ab3", "review12"] {
            assert!(name.parse::<ClusterId>().is_ok(), "{name}");
        }
        for name in ["", "1", "4711", "a-1", "A", "ab cd", "toolongname", "ä"] {
            assert!(name.parse::<ClusterId>().is_err(), "{name}");
        }
    }
}
