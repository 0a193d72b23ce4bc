//! Memory cgroups of a test, version 1 and 2. Each is removed by the guard that made it, also when the test panics.
//!
//! ```text
//! <base>/vineyard-test-<pid>-<n>/     a run: what removed pods leave is charged here
//!     <pod>/                          a pod, which carries the limit
//!         sidecar/  client/           its containers, which hold the processes
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vineyard_charge::cgroup::{Hierarchy, Version};
use vineyard_charge::{CgroupId, MemoryCgroup};

use crate::process::poll;

/// How all cgroups, mounts and directories of tests begin; the pid of the test run follows.
pub const PREFIX: &str = "vineyard-test-";

/// How long the kernel may take to let go of a cgroup whose processes are gone.
const REMOVAL: Duration = Duration::from_secs(10);

static RUNS: AtomicU32 = AtomicU32::new(0);

/// A name that no other test uses: `vineyard-test-<pid>-<n>`.
pub fn unique_name() -> String {
    let n = RUNS.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{n}", std::process::id())
}

/// The directory below which tests make their cgroups: the own cgroup of version 1; the mount point of version 2,
/// where a cgroup that holds processes cannot have children with controllers.
///
/// # Errors
/// When there is none or it is not writable.
pub fn base() -> Result<PathBuf> {
    let hierarchy = Hierarchy::detect()?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let base = match hierarchy.version {
        Version::V1 => hierarchy.directory(&own)?,
        Version::V2 => {
            enable_memory(&hierarchy.mount)?;
            hierarchy.mount
        }
    };
    nix::unistd::access(&base, nix::unistd::AccessFlags::W_OK)
        .with_context(|| base.display().to_string())?;
    // A read-only mount grants access to root all the same: try.
    drop(Cgroup::new(&base, &unique_name())?);
    Ok(base)
}

fn enable_memory(directory: &Path) -> Result<()> {
    let path = directory.join("cgroup.subtree_control");
    match fs::read_to_string(&path) {
        // Version 1 has no such file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(enabled) if enabled.split_whitespace().any(|c| c == "memory") => Ok(()),
        _ => fs::write(&path, "+memory").with_context(|| path.display().to_string()),
    }
}

/// A memory cgroup that lives as long as this guard. Guards of children must be dropped before their parent's.
#[derive(Debug)]
pub struct Cgroup {
    memory: MemoryCgroup,
}

impl Cgroup {
    /// Makes `name` below `parent`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        let directory = parent.join(name);
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        match MemoryCgroup::open(&directory) {
            Ok(memory) => Ok(Self { memory }),
            Err(error) => {
                let _ = fs::remove_dir(&directory);
                Err(error).context("a directory that was made in a cgroup hierarchy")
            }
        }
    }

    /// The cgroup of a test run, below [`base`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run() -> Result<Self> {
        let run = Self::new(&base()?, &unique_name())?;
        enable_memory(run.directory())?;
        Ok(run)
    }

    /// Makes a cgroup below this one, which then may not hold processes itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn child(&self, name: &str) -> Result<Self> {
        enable_memory(self.directory())?;
        Self::new(self.directory(), name)
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.memory.directory()
    }

    /// What the kernel says about it.
    #[must_use]
    pub fn memory(&self) -> &MemoryCgroup {
        &self.memory
    }

    /// Whom the kernel names as owner of its pages.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        self.memory.id()
    }

    /// Sets the limit of memory, in bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let file = match self.memory.version() {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let path = self.directory().join(file);
        fs::write(&path, bytes.to_string()).with_context(|| path.display().to_string())
    }

    /// Removes it while pages are still charged to it.
    ///
    /// # Errors
    /// When processes are left in it.
    pub fn remove(self) -> Result<()> {
        let directory = self.directory().to_owned();
        drop(self);
        if directory.exists() {
            bail!("{} is still there", directory.display());
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were just reaped may still be on their way out.
        let removed = poll(REMOVAL, || {
            let result = fs::remove_dir(self.directory());
            result.is_ok() || !self.directory().exists()
        });
        if !removed {
            eprintln!("cannot remove {}", self.directory().display());
        }
    }
}
