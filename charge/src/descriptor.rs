//! Which descriptors a payer accepts from others.
//!
//! A foreign descriptor may belong to a FUSE server that never answers, so nothing here asks the file system before
//! the device is known to be ours.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// A device number, as the kernel tells it apart: one mounted volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// The device that holds `path`.
    ///
    /// # Errors
    /// When `path` does not exist.
    pub fn of(path: &Path) -> io::Result<Self> {
        let device = fs::metadata(path)?.dev();
        Ok(Self {
            major: libc::major(device),
            minor: libc::minor(device),
        })
    }
}

/// What the descriptor will be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Pages are re-charged: reading is enough.
    Pull,
    /// Pages are allocated: it must be open for reading and writing.
    Reserve,
}

/// Why a descriptor is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorRefused {
    /// A directory, pipe, socket, device…
    #[error("not a regular file")]
    NotRegular,
    /// Not on one of the allowed volumes.
    #[error("the file is on device {major}:{minor}, which is not a volume of this pod")]
    Foreign {
        /// Its device's major number.
        major: u32,
        /// Its device's minor number.
        minor: u32,
    },
    /// Not a tmpfs.
    #[error("the file is not on a tmpfs")]
    NotTmpfs,
    /// Opened with the wrong mode, or with `O_PATH`.
    #[error("the descriptor is not open for {0}")]
    Mode(&'static str),
    /// The kernel did not answer.
    #[error("descriptor: {0}")]
    Io(#[from] io::Error),
}

/// Accepts `file` only if it is a regular file on one of the `allowed` tmpfs devices, open as `access` needs.
///
/// # Errors
/// The first reason not to.
pub fn check(
    file: BorrowedFd<'_>,
    allowed: &[Device],
    access: Access,
) -> Result<(), DescriptorRefused> {
    let device = regular(file)?;
    if !allowed.contains(&device) {
        return Err(DescriptorRefused::Foreign {
            major: device.major,
            minor: device.minor,
        });
    }
    opened_for(file, access)
}

/// Accepts `file` only if it is a regular file on any tmpfs, open as `access` needs: for a peer who is trusted to pass nothing but
/// files of volumes, such as the node driver. Only that answers for a descriptor whose file system never does.
///
/// # Errors
/// The first reason not to.
pub fn check_trusted(file: BorrowedFd<'_>, access: Access) -> Result<(), DescriptorRefused> {
    regular(file)?;
    opened_for(file, access)
}

fn regular(file: BorrowedFd<'_>) -> Result<Device, DescriptorRefused> {
    let (mode, device) = kind_and_device(file)?;
    if mode & libc::S_IFMT != libc::S_IFREG {
        return Err(DescriptorRefused::NotRegular);
    }
    Ok(device)
}

fn opened_for(file: BorrowedFd<'_>, access: Access) -> Result<(), DescriptorRefused> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).map_err(io::Error::from)?);
    if flags.contains(OFlag::O_PATH) {
        return Err(DescriptorRefused::Mode("anything: it is a path only"));
    }
    match (access, flags & OFlag::O_ACCMODE) {
        (Access::Reserve, mode) if mode != OFlag::O_RDWR => {
            return Err(DescriptorRefused::Mode("reading and writing"));
        }
        (Access::Pull, mode) if mode == OFlag::O_WRONLY => {
            return Err(DescriptorRefused::Mode("reading"));
        }
        _ => {}
    }
    if fstatfs(file).map_err(io::Error::from)?.filesystem_type() != TMPFS_MAGIC {
        return Err(DescriptorRefused::NotTmpfs);
    }
    Ok(())
}

/// Answered from the inode in memory: `AT_STATX_DONT_SYNC` keeps a network or FUSE server out of it.
fn kind_and_device(file: BorrowedFd<'_>) -> io::Result<(libc::mode_t, Device)> {
    let answer = look(file.as_raw_fd(), c"", libc::STATX_TYPE)?;
    let device = Device {
        major: answer.stx_dev_major,
        minor: answer.stx_dev_minor,
    };
    Ok((libc::mode_t::from(answer.stx_mode), device))
}

/// What is known of an inode in memory, without asking its file system.
pub(crate) fn look(directory: RawFd, path: &CStr, wanted: u32) -> io::Result<libc::statx> {
    let mut answer = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: a path with its end, and a buffer of the size that the kernel writes.
    let result = unsafe {
        libc::statx(
            directory,
            path.as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            wanted,
            answer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is a valid value, and the kernel has filled it.
    Ok(unsafe { answer.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsFd;
    use std::os::unix::fs::OpenOptionsExt;

    fn shm() -> Option<(tempfile::TempDir, Device)> {
        let directory = tempfile::tempdir_in("/dev/shm").ok()?;
        let device = Device::of(directory.path()).ok()?;
        Some((directory, device))
    }

    #[test]
    fn a_writable_tmpfs_file_is_accepted_and_a_read_only_one_only_pulled() {
        let Some((directory, device)) = shm() else {
            return eprintln!("skipped: no /dev/shm");
        };
        let path = directory.path().join("object");
        let file = File::create(&path).unwrap();
        assert!(matches!(
            check(file.as_fd(), &[device], Access::Reserve),
            Err(DescriptorRefused::Mode(_))
        ));
        let both = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        check(both.as_fd(), &[device], Access::Reserve).unwrap();
        let read = File::open(&path).unwrap();
        check(read.as_fd(), &[device], Access::Pull).unwrap();
        check_trusted(read.as_fd(), Access::Pull).unwrap();
        check_trusted(both.as_fd(), Access::Reserve).unwrap();
        assert!(check_trusted(read.as_fd(), Access::Reserve).is_err());
        assert!(check(read.as_fd(), &[device], Access::Reserve).is_err());
        let path_only = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&path)
            .unwrap();
        assert!(matches!(
            check(path_only.as_fd(), &[device], Access::Pull),
            Err(DescriptorRefused::Mode(_))
        ));
    }

    #[test]
    fn what_is_not_a_file_of_ours_is_refused() {
        let Some((directory, device)) = shm() else {
            return eprintln!("skipped: no /dev/shm");
        };
        let folder = File::open(directory.path()).unwrap();
        assert!(matches!(
            check(folder.as_fd(), &[device], Access::Pull),
            Err(DescriptorRefused::NotRegular)
        ));
        let foreign = tempfile::tempfile_in(".").unwrap();
        assert!(matches!(
            check(foreign.as_fd(), &[device], Access::Reserve),
            Err(DescriptorRefused::Foreign { .. })
        ));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(matches!(
            check(reader.as_fd(), &[device], Access::Pull),
            Err(DescriptorRefused::NotRegular)
        ));
        let disk = Device::of(Path::new(".")).unwrap();
        let on_tmpfs = fstatfs(&foreign).unwrap().filesystem_type() == TMPFS_MAGIC;
        if !on_tmpfs {
            assert!(matches!(
                check(foreign.as_fd(), &[disk], Access::Reserve),
                Err(DescriptorRefused::NotTmpfs)
            ));
            assert!(matches!(
                check_trusted(foreign.as_fd(), Access::Reserve),
                Err(DescriptorRefused::NotTmpfs)
            ));
        }
    }
}
