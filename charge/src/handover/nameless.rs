//! Files that no path reaches: removed, or not named yet, and alive because a process has them open or mapped.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, fstat};

use crate::descriptor::look;

/// What the kernel adds to the path of a file without a name.
const DELETED: &[u8] = b" (deleted)";

/// Of one process at most so many descriptors and mappings are looked at.
const MOST: usize = 200_000;

/// Shows each file without a name on the device to `visit`, once. Processes in other pid namespaces are seen only from the
/// host's.
pub(super) fn each(device: libc::dev_t, visit: &mut dyn FnMut(File, &FileStat) -> ControlFlow<()>) {
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    let mut search = Search {
        device,
        shown: HashSet::new(),
        visit,
    };
    for process in processes.flatten() {
        let is_process = process
            .file_name()
            .as_bytes()
            .iter()
            .all(u8::is_ascii_digit);
        if is_process && search.process(&process.path()).is_break() {
            return;
        }
    }
}

struct Search<'a> {
    device: libc::dev_t,
    shown: HashSet<u64>,
    visit: &'a mut dyn FnMut(File, &FileStat) -> ControlFlow<()>,
}

impl Search<'_> {
    /// A process may end at any moment; then it holds nothing.
    fn process(&mut self, process: &Path) -> ControlFlow<()> {
        if let Ok(maps) = File::open(process.join("maps")) {
            let folder = process.join("map_files");
            let lines = BufReader::new(maps).split(b'\n').map_while(Result::ok);
            for line in lines.take(MOST) {
                if let Some((inode, range)) = mapped(&line, self.device)
                    && !self.shown.contains(&inode)
                {
                    self.show(&folder.join(range))?;
                }
            }
        }
        let descriptors = fs::read_dir(process.join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten().take(MOST) {
            let path = descriptor.path();
            // The text first: asking more of a file of a dead server may never be answered.
            let nameless = fs::read_link(&path)
                .is_ok_and(|target| target.as_os_str().as_bytes().ends_with(DELETED));
            if nameless && self.is_ours(&path) {
                self.show(&path)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn is_ours(&self, path: &Path) -> bool {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return false;
        };
        look(libc::AT_FDCWD, &path, libc::STATX_TYPE | libc::STATX_INO).is_ok_and(|it| {
            libc::makedev(it.stx_dev_major, it.stx_dev_minor) == self.device
                && libc::mode_t::from(it.stx_mode) & libc::S_IFMT == libc::S_IFREG
                && !self.shown.contains(&it.stx_ino)
        })
    }

    fn show(&mut self, path: &Path) -> ControlFlow<()> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOATIME | libc::O_NOCTTY)
            .open(path);
        let Ok(file) = opened else {
            return ControlFlow::Continue(());
        };
        let Ok(stat) = fstat(file.as_fd()) else {
            return ControlFlow::Continue(());
        };
        let is_ours = stat.st_dev == self.device
            && stat.st_nlink == 0
            && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        if is_ours && self.shown.insert(stat.st_ino) {
            return (self.visit)(file, &stat);
        }
        ControlFlow::Continue(())
    }
}

/// Inode and `map_files` name of a line of `/proc/PID/maps`, if it is of a file on the device that has no name.
fn mapped(line: &[u8], device: libc::dev_t) -> Option<(u64, PathBuf)> {
    if !line.ends_with(DELETED) {
        return None;
    }
    let text = String::from_utf8_lossy(line);
    let mut fields = text.split_ascii_whitespace();
    let (begin, end) = fields.next()?.split_once('-')?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    let number = |text| u32::from_str_radix(text, 16).ok();
    if libc::makedev(number(major)?, number(minor)?) != device {
        return None;
    }
    let inode = fields.next()?.parse().ok()?;
    // Leading zeros are not repeated there.
    let range = format!("{:x}-{:x}", hexadecimal(begin)?, hexadecimal(end)?);
    Some((inode, range.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_nameless_files_of_the_device_count() {
        let device = libc::makedev(0, 0x3f);
        let line = b"7f0000200000-7f0000400000 r--s 00000000 00:3f 17   /volume/a b (deleted)";
        let found = mapped(line, device).unwrap();
        assert_eq!(found, (17, "7f0000200000-7f0000400000".into()));
        let low = b"00010000-00020000 r--s 00000000 00:3f 9 /x (deleted)";
        assert_eq!(mapped(low, device).unwrap().1, Path::new("10000-20000"));
        for other in [
            &b"7f0000200000-7f0000400000 r--s 00000000 00:40 17 /volume/a (deleted)"[..],
            b"7f0000200000-7f0000400000 r--s 00000000 00:3f 17 /volume/a",
            b"7f0000200000-7f0000400000 rw-p 00000000 00:00 0",
            b" (deleted)",
        ] {
            assert_eq!(mapped(other, device), None);
        }
    }
}
