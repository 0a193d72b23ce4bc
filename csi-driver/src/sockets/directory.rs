//! Where things are: the driver's run directory, and what is in a sockets volume.
//!
//! A sockets volume is a small tmpfs: a pod can fill it and hurts nobody else. Containers that run as root can also
//! replace what is in it, so nothing below its root is reached by a path: only by descriptors, and never through a
//! symlink.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, socket};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::volume::fnv1a;

/// Directory of the driver's socket in a sockets volume.
const DRIVER: &str = "driver";

/// Directory of the sidecar's socket in a sockets volume.
const POD: &str = "pod";

/// The driver's socket.
const SOCKET: &str = "driver.sock";

/// Where the driver keeps what dies with the boot.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Takes `path`, made when missing, private to root.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        private(path)?;
        let path = path.canonicalize()?;
        let run = Self { path };
        private(&run.pods())?;
        Ok(run)
    }

    /// The records of grants.
    pub(crate) fn book(&self) -> PathBuf {
        self.path.join("book")
    }

    /// The sockets volumes' own mounts.
    pub(crate) fn pods(&self) -> PathBuf {
        self.path.join("pods")
    }

    /// Where the file system of a sockets volume is mounted.
    pub(crate) fn pod(&self, volume_id: &str) -> PathBuf {
        self.pods().join(key(volume_id))
    }
}

/// Short name of a sockets volume: 16 hexadecimal digits.
pub(crate) fn key(volume_id: &str) -> String {
    let hash = fnv1a(volume_id.as_bytes());
    format!("{:016x}", (hash ^ (hash >> 64)) & u128::from(u64::MAX))
}

fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Makes what belongs in a sockets volume, whose file system is mounted at `root`. Root alone may change its top; anybody
/// in the pod may listen in `pod/`.
///
/// # Errors
/// What the kernel says, such as that the pod put something else in the place of a directory.
pub(super) fn furnish(root: &Path) -> io::Result<()> {
    let root = directory(open(root, flags(), Mode::empty())?)?;
    fchmod(&root, Mode::from_bits_truncate(0o755))?;
    for (name, mode) in [(DRIVER, 0o755), (POD, 0o777)] {
        match mkdirat(&root, name, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // The mode that a directory is made with obeys the umask.
        let made = directory(openat(&root, name, flags(), Mode::empty())?)?;
        fchmod(&made, Mode::from_bits_truncate(mode))?;
    }
    Ok(())
}

/// Listens in the sockets volume at `root`. Whatever socket is there is replaced: it is one of a driver that has ended.
///
/// # Errors
/// What the kernel says.
pub(super) fn listen(root: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let root = open(root, flags(), Mode::empty())?;
    let place = directory(openat(&root, DRIVER, flags(), Mode::empty())?)?;
    match unlinkat(&place, SOCKET, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let kind = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, kind, None)?;
    // A name through a descriptor: short, and in that directory whatever the pod does meanwhile.
    let name = format!("/proc/self/fd/{}/{SOCKET}", place.as_raw_fd());
    bind(listener.as_raw_fd(), &UnixAddr::new(name.as_str())?)?;
    let made = openat(
        &place,
        SOCKET,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    // Any uid of the pod may connect. Through the descriptor, because it has no permission to change by itself.
    if is(&made, SFlag::S_IFSOCK)? {
        let by_descriptor = format!("/proc/self/fd/{}", made.as_raw_fd());
        fs::set_permissions(by_descriptor, Permissions::from_mode(0o666))?;
    }
    nix::sys::socket::listen(&listener, Backlog::MAXCONN)?;
    Ok(listener.into())
}

fn flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn directory(opened: OwnedFd) -> io::Result<OwnedFd> {
    match is(&opened, SFlag::S_IFDIR)? {
        true => Ok(opened),
        false => Err(Errno::ENOTDIR.into()),
    }
}

fn is(file: &impl AsFd, kind: SFlag) -> io::Result<bool> {
    let mode = fstat(file.as_fd())?.st_mode;
    Ok(SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_volume_is_furnished_again_and_listened_in_again() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            furnish(folder.path()).unwrap();
        }
        let mode = |name: &str| {
            let metadata = fs::symlink_metadata(folder.path().join(name)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!((mode(DRIVER), mode(POD)), (0o755, 0o777));
        for _ in 0..2 {
            let listener = listen(folder.path()).unwrap();
            assert_eq!(mode("driver/driver.sock"), 0o666);
            UnixStream::connect(folder.path().join("driver/driver.sock")).unwrap();
            drop(listener);
        }
    }

    #[test]
    fn what_a_pod_puts_in_place_of_the_drivers_directory_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), folder.path().join(DRIVER)).unwrap();
        assert!(furnish(folder.path()).is_err());
        assert!(listen(folder.path()).is_err());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        fs::remove_file(folder.path().join(DRIVER)).unwrap();
        furnish(folder.path()).unwrap();
        let victim = elsewhere.path().join("victim");
        fs::write(&victim, "x").unwrap();
        symlink(&victim, folder.path().join(DRIVER).join(SOCKET)).unwrap();
        listen(folder.path()).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"x");
    }

    #[test]
    fn a_key_is_short_and_stays() {
        assert_eq!(key("csi-1").len(), 16);
        assert_ne!(key("csi-1"), key("csi-2"));
        assert_eq!(key(""), "0eda065b652ec4cf");
    }
}
