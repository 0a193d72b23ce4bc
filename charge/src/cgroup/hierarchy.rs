//! Where the memory controller lives: version 1, version 2, or a hybrid in which version 2 is mounted without it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// The version of the hierarchy that holds the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// `memory.usage_in_bytes`, `memory.limit_in_bytes`.
    V1,
    /// `memory.current`, `memory.max`.
    V2,
}

/// The mounted hierarchy that accounts memory, as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version of the memory controller.
    pub version: Version,
    /// Mount point.
    pub mount: PathBuf,
    /// Which cgroup is mounted there; `/` unless a container sees only its own part.
    pub root: PathBuf,
    /// A hierarchy of the other version is mounted too.
    pub hybrid: bool,
}

impl Hierarchy {
    /// The hierarchy of this mount namespace.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`] when there is none.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = "/proc/self/mountinfo";
        let mountinfo = std::fs::read(path).map_err(CgroupError::io(path))?;
        Self::choose(&mounts(&mountinfo)).ok_or(CgroupError::NotMounted)
    }

    fn choose(mounts: &[Mount]) -> Option<Self> {
        let v1 = mounts.iter().find(|m| m.v1_memory());
        let v2 = mounts.iter().find(|m| m.v2());
        // A controller belongs to one version at a time; where version 1 has memory, version 2 has it not.
        let (mount, version, hybrid) = match (v1, v2) {
            (Some(mount), other) => (mount, Version::V1, other.is_some()),
            (None, Some(mount)) => {
                let hybrid = mounts.iter().any(|m| m.kind == b"cgroup");
                (mount, Version::V2, hybrid)
            }
            (None, None) => return None,
        };
        Some(Self {
            version,
            mount: mount.point.clone(),
            root: mount.root.clone(),
            hybrid,
        })
    }

    /// The directory of a process' cgroup, from the content of its `/proc/PID/cgroup`.
    ///
    /// # Errors
    /// [`CgroupError::Hidden`] when it lies outside of the mounted part.
    pub fn directory(&self, proc_cgroup: &str) -> Result<PathBuf, CgroupError> {
        let path = proc_cgroup
            .lines()
            .find_map(|line| self.path_in(line))
            .ok_or(CgroupError::NotMounted)?;
        let hidden = || CgroupError::Hidden {
            path: path.to_owned(),
            mount: self.mount.clone(),
        };
        let below = Path::new(path)
            .strip_prefix(&self.root)
            .map_err(|_| hidden())?;
        if below.components().any(|c| c.as_os_str() == "..") {
            return Err(hidden());
        }
        Ok(self.mount.join(below))
    }

    fn path_in<'a>(&self, line: &'a str) -> Option<&'a str> {
        let mut fields = line.splitn(3, ':');
        let number = fields.next()?;
        let controllers = fields.next()?;
        let path = fields.next()?;
        let ours = match self.version {
            Version::V1 => controllers.split(',').any(|c| c == "memory"),
            Version::V2 => number == "0" && controllers.is_empty(),
        };
        ours.then(|| path.strip_suffix(" (deleted)").unwrap_or(path))
    }
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
    kind: Vec<u8>,
    options: Vec<u8>,
}

impl Mount {
    fn v1_memory(&self) -> bool {
        self.kind == b"cgroup" && self.options.split(|b| *b == b',').any(|o| o == b"memory")
    }

    fn v2(&self) -> bool {
        self.kind == b"cgroup2"
    }
}

/// Lines that are not understood are skipped: the file also lists what is none of our business.
fn mounts(mountinfo: &[u8]) -> Vec<Mount> {
    let mut all: Vec<Mount> = mountinfo
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|b| *b == b' ');
            let root = unescape(fields.nth(3)?);
            let point = unescape(fields.next()?);
            let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
            let kind = rest.next()?.to_vec();
            let options = rest.nth(1)?.to_vec();
            Some(Mount {
                root,
                point,
                kind,
                options,
            })
        })
        .collect();
    // The last mount on a point hides the others; a mount of the whole hierarchy is better than one of a part.
    all.reverse();
    all.sort_by_key(|m| m.root != Path::new("/"));
    all
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(octal_byte);
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn octal_byte(digits: &[u8]) -> Option<u8> {
    let mut value = 0u16;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + u16::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw
";
    const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn choose(mountinfo: &str) -> Option<Hierarchy> {
        Hierarchy::choose(&mounts(mountinfo.as_bytes()))
    }

    #[test]
    fn a_hybrid_takes_memory_from_version_1() {
        let found = choose(HYBRID).unwrap();
        assert_eq!(found.version, Version::V1);
        assert_eq!(found.mount, Path::new("/sys/fs/cgroup/memory"));
        assert!(found.hybrid);
        let own = found.directory("4:memory:/pod/a\n0::/\n").unwrap();
        assert_eq!(own, Path::new("/sys/fs/cgroup/memory/pod/a"));
    }

    #[test]
    fn version_2_takes_the_line_without_controllers() {
        let found = choose(V2).unwrap();
        assert_eq!(found.version, Version::V2);
        assert!(!found.hybrid);
        let own = found
            .directory("1:name=systemd:/x\n0::/pod/a (deleted)\n")
            .unwrap();
        assert_eq!(own, Path::new("/sys/fs/cgroup/pod/a"));
    }

    #[test]
    fn a_container_that_sees_its_own_part_finds_itself_at_the_mount_point() {
        let line =
            "35 31 0:32 /kubepods/pod1/c /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let found = choose(line).unwrap();
        let own = found.directory("4:memory:/kubepods/pod1/c\n").unwrap();
        assert_eq!(own, Path::new("/sys/fs/cgroup/memory/"));
        let sub = found.directory("4:memory:/kubepods/pod1/c/sub\n").unwrap();
        assert_eq!(sub, Path::new("/sys/fs/cgroup/memory/sub"));
    }

    #[test]
    fn a_cgroup_outside_of_the_mounted_part_is_hidden() {
        let found = choose(V2).unwrap();
        let outside = found.directory("0::/../other\n");
        assert!(
            matches!(outside, Err(CgroupError::Hidden { .. })),
            "{outside:?}"
        );
    }

    #[test]
    fn octal_escapes_are_decoded_and_broken_ones_kept() {
        assert_eq!(unescape(br"/a\040b\134"), Path::new("/a b\\"));
        assert_eq!(unescape(br"/a\04"), Path::new(r"/a\04"));
        assert_eq!(unescape(br"/a\999"), Path::new(r"/a\999"));
        assert_eq!(unescape(br"/a\777"), Path::new(r"/a\777"));
    }

    #[test]
    fn the_mount_of_the_whole_hierarchy_wins_over_a_later_mount_of_a_part() {
        let both = format!("{V2}40 23 0:26 /pod /elsewhere rw - cgroup2 cgroup2 rw\n");
        assert_eq!(choose(&both).unwrap().mount, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn this_machine_has_a_hierarchy_or_says_so() {
        match Hierarchy::detect() {
            Ok(found) => assert!(found.mount.is_dir()),
            Err(error) => assert!(matches!(error, CgroupError::NotMounted), "{error}"),
        }
    }
}
