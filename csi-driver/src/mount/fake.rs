//! Mounts as a table in memory, over real directories.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Error, Flags, Mount, Mounter, Tmpfs, Usage};
use crate::bytes::Bytes;

/// A mounter that mounts nothing.
#[derive(Debug, Default)]
pub(crate) struct FakeMounter {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    mounts: Vec<Mount>,
    sizes: HashMap<(u32, u32), (Bytes, u64)>,
    used: HashMap<(u32, u32), u64>,
    /// Where each file system was mounted first: its content is there.
    roots: HashMap<(u32, u32), PathBuf>,
    next: u64,
}

impl Table {
    fn top(&self, point: &Path) -> Option<usize> {
        self.mounts.iter().rposition(|mount| mount.point == point)
    }

    fn push(&mut self, target: &Path, like: Mount) -> Result<(), Error> {
        if !target.is_dir() {
            return Err(Error::system("mount on", target, nix::errno::Errno::ENOENT));
        }
        let parent = self.top(target).map_or(1, |top| self.mounts[top].id);
        self.next += 1;
        let id = self.next + 100;
        self.mounts.push(Mount {
            id,
            parent,
            point: target.to_owned(),
            ..like
        });
        Ok(())
    }
}

impl FakeMounter {
    /// Lets so many bytes of what is mounted on `target` be in use.
    pub(crate) fn fill(&self, target: &Path, bytes: u64) {
        let filled = self.on(target, |table, top| {
            let device = table.mounts[top].device;
            table.used.insert(device, bytes);
            Ok(())
        });
        filled.unwrap();
    }

    fn on<T>(
        &self,
        target: &Path,
        work: impl FnOnce(&mut Table, usize) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut table = self.table.lock().unwrap();
        match table.top(target) {
            Some(top) => work(&mut table, top),
            None => Err(Error::system("find", target, nix::errno::Errno::EINVAL)),
        }
    }
}

impl Mounter for FakeMounter {
    fn mounts(&self) -> Result<Vec<Mount>, Error> {
        Ok(self.table.lock().unwrap().mounts.clone())
    }

    fn mount_tmpfs(&self, target: &Path, options: &Tmpfs) -> Result<(), Error> {
        let mut table = self.table.lock().unwrap();
        let device = (0, u32::try_from(table.sizes.len()).unwrap() + 50);
        table.sizes.insert(device, (options.size, options.inodes));
        table.roots.insert(device, target.to_owned());
        let mount = Mount {
            id: 0,
            parent: 0,
            device,
            root: "/".into(),
            point: target.into(),
            options: "rw,nosuid,nodev".into(),
            fs_type: "tmpfs".into(),
            source: options.source.clone().into(),
            super_options: format!("rw,size={}k", options.size.0 / 1024).into(),
        };
        table.push(target, mount)
    }

    fn resize_tmpfs(&self, target: &Path, size: Bytes, inodes: u64) -> Result<(), Error> {
        self.on(target, |table, top| {
            let device = table.mounts[top].device;
            table.sizes.insert(device, (size, inodes));
            Ok(())
        })
    }

    fn bind(&self, source: &Path, target: &Path) -> Result<(), Error> {
        self.on(source, |table, top| {
            let like = table.mounts[top].clone();
            table.push(target, like)
        })
    }

    fn set_flags(&self, target: &Path, flags: Flags) -> Result<(), Error> {
        self.on(target, |table, top| {
            let mut words = vec![if flags.read_only { "ro" } else { "rw" }, "nosuid", "nodev"];
            words.extend(flags.no_exec.then_some("noexec"));
            words.extend(flags.no_atime.then_some("noatime"));
            table.mounts[top].options = words.join(",");
            Ok(())
        })
    }

    fn unmount(&self, target: &Path) -> Result<(), Error> {
        self.on(target, |table, top| {
            let device = table.mounts.remove(top).device;
            let is_gone = !table.mounts.iter().any(|mount| mount.device == device);
            if is_gone
                && let Some(root) = table.roots.remove(&device)
                && root.is_dir()
            {
                // A file system that is mounted nowhere takes its content along.
                let emptied = std::fs::remove_dir_all(&root);
                emptied.and_then(|()| std::fs::create_dir(&root)).unwrap();
            }
            Ok(())
        })
    }

    fn usage(&self, path: &Path) -> Result<Usage, Error> {
        self.on(path, |table, top| {
            let device = table.mounts[top].device;
            let (size, inodes) = table.sizes[&device];
            let used = table.used.get(&device).copied().unwrap_or_default();
            Ok(Usage {
                bytes: size.0,
                free_bytes: size.0 - used,
                inodes,
                free_inodes: inodes - 1,
            })
        })
    }
}
