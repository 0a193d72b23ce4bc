//! One memory cgroup: what it holds, what it may hold, and what lies below it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::hierarchy::{Hierarchy, Version};
use super::{CgroupError, CgroupId};

/// Limits from here on mean "none": version 1 writes its maximum as a huge number.
const UNLIMITED: u64 = 1 << 62;

const V1_USAGE: &str = "memory.usage_in_bytes";

/// A handle on the directory of a memory cgroup. It keeps the files that are read often open.
#[derive(Debug)]
pub struct MemoryCgroup {
    directory: PathBuf,
    id: CgroupId,
    version: Version,
    usage: File,
    limits: Vec<File>,
}

impl MemoryCgroup {
    /// Opens the cgroup at `directory`, of either version.
    ///
    /// # Errors
    /// When it is not a memory cgroup that may be read; [`CgroupError::Root`] for the root of version 2.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, CgroupError> {
        let directory = directory.into();
        let metadata = fs::metadata(&directory).map_err(CgroupError::io(&directory))?;
        let file = |name: &str| {
            let path = directory.join(name);
            File::open(&path).map_err(CgroupError::io(path))
        };
        if CgroupId(metadata.ino()) == CgroupId::ROOT && !directory.join(V1_USAGE).exists() {
            return Err(CgroupError::Root);
        }
        let (version, usage, limits) = match file(V1_USAGE) {
            Ok(usage) => (Version::V1, usage, vec![file("memory.limit_in_bytes")?]),
            Err(_) => {
                let usage = file("memory.current")?;
                // Above memory.high an allocation is not refused but slowed down to a standstill: a limit as well.
                let limits = vec![file("memory.max")?, file("memory.high")?];
                (Version::V2, usage, limits)
            }
        };
        Ok(Self {
            id: CgroupId(metadata.ino()),
            directory,
            version,
            usage,
            limits,
        })
    }

    /// The cgroup of this process.
    ///
    /// # Errors
    /// When it cannot be seen from here.
    pub fn own() -> Result<Self, CgroupError> {
        Self::of("/proc/self/cgroup")
    }

    /// The cgroup of a process.
    ///
    /// # Errors
    /// When the process is gone or its cgroup cannot be seen from here.
    pub fn of_pid(pid: u32) -> Result<Self, CgroupError> {
        Self::of(&format!("/proc/{pid}/cgroup"))
    }

    fn of(proc_cgroup: &str) -> Result<Self, CgroupError> {
        let hierarchy = Hierarchy::detect()?;
        let content = fs::read_to_string(proc_cgroup).map_err(CgroupError::io(proc_cgroup))?;
        Self::open(hierarchy.directory(&content)?)
    }

    /// The owner that the kernel reports for pages of this cgroup.
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Version of its hierarchy.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Bytes charged to it and to everything below it.
    ///
    /// # Errors
    /// When the cgroup has been removed.
    pub fn usage(&self) -> Result<u64, CgroupError> {
        self.number(&self.usage).map(|n| n.unwrap_or(0))
    }

    /// Its limit in bytes, `None` when it has none. On version 2 also `memory.high` counts.
    ///
    /// # Errors
    /// When the cgroup has been removed.
    pub fn limit(&self) -> Result<Option<u64>, CgroupError> {
        let mut lowest = None;
        for file in &self.limits {
            let limit = self.number(file)?.filter(|n| *n < UNLIMITED);
            lowest = match (lowest, limit) {
                (Some(a), Some(b)) => Some(u64::min(a, b)),
                (a, b) => a.or(b),
            };
        }
        Ok(lowest)
    }

    /// Bytes below its own limit that are free, `None` without a limit.
    ///
    /// # Errors
    /// When the cgroup has been removed.
    pub fn free(&self) -> Result<Option<u64>, CgroupError> {
        match self.limit()? {
            Some(limit) => Ok(Some(limit.saturating_sub(self.usage()?))),
            None => Ok(None),
        }
    }

    /// The lowest [`free`](Self::free) of itself and of all ancestors that are visible, `None` when none has a limit.
    ///
    /// # Errors
    /// When the cgroup has been removed.
    pub fn headroom(&self) -> Result<Option<u64>, CgroupError> {
        let mut lowest = self.free()?;
        for ancestor in self.ancestors() {
            if let Some(free) = ancestor.free()? {
                lowest = Some(lowest.map_or(free, |l| l.min(free)));
            }
        }
        Ok(lowest)
    }

    /// All visible ancestors, nearest first. They end at the mount point, or below the root of version 2.
    pub fn ancestors(&self) -> Vec<MemoryCgroup> {
        let device = fs::metadata(&self.directory).map(|m| m.dev()).ok();
        self.directory
            .ancestors()
            .skip(1)
            .take_while(|d| fs::metadata(d).map(|m| m.dev()).ok() == device)
            .map_while(|d| Self::open(d).ok())
            .collect()
    }

    /// Whether a cgroup above the visible ones may limit this one too, as in a container.
    pub fn has_hidden_ancestors(&self) -> bool {
        let device = fs::metadata(&self.directory).map(|m| m.dev()).ok();
        let top = self
            .directory
            .ancestors()
            .map_while(|d| fs::metadata(d).ok())
            .take_while(|m| Some(m.dev()) == device)
            .last();
        top.is_none_or(|m| CgroupId(m.ino()) != CgroupId::ROOT)
    }

    /// Bytes of page cache of other files, which the kernel drops before it refuses an allocation.
    ///
    /// # Errors
    /// When the cgroup has been removed.
    pub fn reclaimable(&self) -> Result<u64, CgroupError> {
        let keys = match self.version {
            Version::V1 => ["total_inactive_file", "total_active_file"],
            Version::V2 => ["inactive_file", "active_file"],
        };
        Ok(self.counter("memory.stat", &keys)?.unwrap_or(0))
    }

    /// How many processes the kernel killed because this cgroup's limit was hit.
    ///
    /// # Errors
    /// When the cgroup has been removed.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        Ok(self.counter(file, &["oom_kill"])?.unwrap_or(0))
    }

    /// The ids of itself and of every cgroup below it: what one pod is billed for.
    ///
    /// # Errors
    /// When the cgroup has been removed. Cgroups that vanish during the walk are left out.
    pub fn subtree(&self) -> Result<Vec<CgroupId>, CgroupError> {
        fs::metadata(&self.directory).map_err(CgroupError::io(&self.directory))?;
        let mut ids = vec![self.id];
        let mut pending = vec![self.directory.clone()];
        while let Some(directory) = pending.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir())
                    && let Ok(metadata) = entry.metadata()
                {
                    ids.push(CgroupId(metadata.ino()));
                    pending.push(entry.path());
                }
            }
        }
        Ok(ids)
    }

    fn number(&self, file: &File) -> Result<Option<u64>, CgroupError> {
        let mut buffer = [0u8; 32];
        let length = file
            .read_at(&mut buffer, 0)
            .map_err(CgroupError::io(&self.directory))?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        match text.trim() {
            "max" => Ok(None),
            digits => digits.parse().map(Some).map_err(|_| self.malformed(digits)),
        }
    }

    /// The sum of the counters named `keys` in a file of `key value` lines.
    fn counter(&self, file: &str, keys: &[&str]) -> Result<Option<u64>, CgroupError> {
        let path = self.directory.join(file);
        let content = match fs::read_to_string(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.directory.exists() => {
                return Ok(None);
            }
            Err(error) => return Err(CgroupError::io(path)(error)),
        };
        let mut sum = None;
        for line in content.lines() {
            let Some((key, value)) = line.split_once(' ') else {
                continue;
            };
            if keys.contains(&key) {
                let value: u64 = value.trim().parse().map_err(|_| self.malformed(line))?;
                sum = Some(sum.unwrap_or(0) + value);
            }
        }
        Ok(sum)
    }

    fn malformed(&self, content: &str) -> CgroupError {
        CgroupError::Malformed {
            path: self.directory.clone(),
            content: content.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        directory
    }

    #[test]
    fn version_2_reads_the_lower_of_max_and_high() {
        let directory = fixture(&[
            ("memory.current", "1048576\n"),
            ("memory.max", "max\n"),
            ("memory.high", "3145728\n"),
            (
                "memory.events",
                "low 0\nhigh 4\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n",
            ),
            (
                "memory.stat",
                "anon 5\nfile 900\ninactive_file 100\nactive_file 20\n",
            ),
        ]);
        let cgroup = MemoryCgroup::open(directory.path()).unwrap();
        assert_eq!(cgroup.version(), Version::V2);
        assert_eq!(cgroup.limit().unwrap(), Some(3 << 20));
        assert_eq!(cgroup.free().unwrap(), Some(2 << 20));
        assert_eq!(cgroup.oom_kills().unwrap(), 1);
        assert_eq!(cgroup.reclaimable().unwrap(), 120);
    }

    #[test]
    fn version_1_reads_its_huge_limit_as_none() {
        let directory = fixture(&[
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            ),
        ]);
        let cgroup = MemoryCgroup::open(directory.path()).unwrap();
        assert_eq!(cgroup.version(), Version::V1);
        assert_eq!(cgroup.limit().unwrap(), None);
        assert_eq!(cgroup.headroom().unwrap(), None);
        assert_eq!(cgroup.oom_kills().unwrap(), 3);
        assert_eq!(cgroup.reclaimable().unwrap(), 0);
    }

    #[test]
    fn headroom_is_the_lowest_on_the_way_up() {
        let directory = fixture(&[
            ("pod/memory.current", "900\n"),
            ("pod/memory.max", "1000\n"),
            ("pod/memory.high", "max\n"),
            ("pod/app/memory.current", "10\n"),
            ("pod/app/memory.max", "500\n"),
            ("pod/app/memory.high", "max\n"),
        ]);
        let app = MemoryCgroup::open(directory.path().join("pod/app")).unwrap();
        assert_eq!(app.free().unwrap(), Some(490));
        assert_eq!(app.headroom().unwrap(), Some(100));
        assert_eq!(app.ancestors().len(), 1);
        let pod = MemoryCgroup::open(directory.path().join("pod")).unwrap();
        assert_eq!(pod.subtree().unwrap(), vec![pod.id(), app.id()]);
    }

    #[test]
    fn usage_above_a_lowered_limit_leaves_nothing_free() {
        let directory = fixture(&[
            ("memory.current", "2000\n"),
            ("memory.max", "1000\n"),
            ("memory.high", "max\n"),
        ]);
        let cgroup = MemoryCgroup::open(directory.path()).unwrap();
        assert_eq!(cgroup.free().unwrap(), Some(0));
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_number() {
        let directory = fixture(&[
            ("memory.current", "many\n"),
            ("memory.max", "max\n"),
            ("memory.high", "max\n"),
        ]);
        let cgroup = MemoryCgroup::open(directory.path()).unwrap();
        assert!(matches!(cgroup.usage(), Err(CgroupError::Malformed { .. })));
    }

    #[test]
    fn an_ordinary_directory_is_not_a_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        assert!(MemoryCgroup::open(directory.path()).is_err());
    }
}
