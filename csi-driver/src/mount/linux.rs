//! The real thing.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

use super::{Error, Flags, Mount, Mounter, Tmpfs, Unmounter, Usage, mountinfo};
use crate::bytes::Bytes;

const NONE: Option<&str> = None;

/// Always: nothing in a volume gains privileges, and nothing in it is a device.
const CONFINED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Mounts in this process' mount namespace.
#[derive(Debug)]
pub(crate) struct LinuxMounter {
    unmounter: Unmounter,
    huge: &'static str,
}

impl LinuxMounter {
    /// Unmounts by means of `unmounter`.
    pub(crate) fn new(unmounter: Unmounter) -> Self {
        // A kernel without huge pages refuses to be told not to use them.
        let huge = Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
        Self {
            unmounter,
            huge: if huge.exists() { ",huge=never" } else { "" },
        }
    }
}

impl Mounter for LinuxMounter {
    fn mounts(&self) -> Result<Vec<Mount>, Error> {
        mountinfo::read()
    }

    fn mount_tmpfs(&self, target: &Path, options: &Tmpfs) -> Result<(), Error> {
        let Tmpfs {
            source,
            size,
            inodes,
            context,
        } = options;
        let mut data = format!("mode=0777,size={},nr_inodes={inodes}{}", size.0, self.huge);
        if let Some(context) = context {
            // Quoted, because a context may hold commas.
            data.push_str(&format!(",context=\"{context}\""));
        }
        let attempt = |data: &str| {
            mount(
                Some(source.as_str()),
                target,
                Some("tmpfs"),
                CONFINED,
                Some(data),
            )
        };
        let mounted = match attempt(&format!("{data},noswap")) {
            // Before Linux 6.4: pages of a volume may be swapped, as any memory of a node that has swap.
            Err(Errno::EINVAL) => attempt(&data),
            other => other,
        };
        mounted.map_err(|errno| Error::system("mount a tmpfs on", target, errno))
    }

    fn resize_tmpfs(&self, target: &Path, size: Bytes, inodes: u64) -> Result<(), Error> {
        let data = format!("size={},nr_inodes={inodes}", size.0);
        let flags = MsFlags::MS_REMOUNT | CONFINED;
        mount(NONE, target, NONE, flags, Some(data.as_str()))
            .map_err(|errno| Error::system("resize the tmpfs on", target, errno))
    }

    fn bind(&self, source: &Path, target: &Path) -> Result<(), Error> {
        mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)
            .map_err(|errno| Error::system("bind a volume to", target, errno))
    }

    fn set_flags(&self, target: &Path, flags: Flags) -> Result<(), Error> {
        let mut all = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | CONFINED;
        all.set(MsFlags::MS_RDONLY, flags.read_only);
        all.set(MsFlags::MS_NOEXEC, flags.no_exec);
        all.set(MsFlags::MS_NOATIME, flags.no_atime);
        mount(NONE, target, NONE, all, NONE)
            .map_err(|errno| Error::system("set the flags of", target, errno))
    }

    fn unmount(&self, target: &Path) -> Result<(), Error> {
        self.unmounter.unmount(target)
    }

    fn usage(&self, path: &Path) -> Result<Usage, Error> {
        let stat = statvfs(path).map_err(|errno| Error::system("stat", path, errno))?;
        let fragment = stat.fragment_size();
        Ok(Usage {
            bytes: stat.blocks() * fragment,
            free_bytes: stat.blocks_available() * fragment,
            inodes: stat.files(),
            free_inodes: stat.files_available(),
        })
    }
}
