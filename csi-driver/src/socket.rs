//! Listening Unix sockets that only root may use from the moment they exist.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, socket};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::UnixListener;

/// A process that was killed while it started a child serves until the child is another program.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 50;

/// Listens at `path`; a socket that nobody serves any more is replaced.
///
/// # Errors
/// `AddrInUse` when somebody serves there or the file is no socket, else what the kernel says, such as that the path is longer
/// than 107 bytes.
pub(crate) async fn listen(path: &Path) -> io::Result<UnixListener> {
    let mut looks = LOOKS;
    while let Err(error) = remove_stale(path) {
        if error.kind() != ErrorKind::AddrInUse || looks == 0 {
            return Err(error);
        }
        looks -= 1;
        tokio::time::sleep(LOOK).await;
    }
    UnixListener::from_std(bound(path, SockFlag::SOCK_NONBLOCK)?)
}

/// The same for a process of plain threads.
///
/// # Errors
/// As [`listen`].
pub(crate) fn listen_blocking(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    remove_stale(path)?;
    bound(path, SockFlag::empty())
}

/// The file of a socket that this process serves.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Option<Identity>,
}

/// Number of a file, and when it was made: numbers are used again.
type Identity = (u64, i64, i64);

impl SocketFile {
    /// The one that was just bound to `path`.
    pub(crate) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
        }
    }

    /// Removes it, unless it is that of whoever has taken our place.
    pub(crate) fn remove(self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

fn bound(path: &Path, flags: SockFlag) -> io::Result<std::os::unix::net::UnixListener> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Before it has a name: nobody can connect in between.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |why| Err(io::Error::new(ErrorKind::AddrInUse, why));
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?.file_type(),
    };
    if !kind.is_socket() {
        return in_use("the path exists and is no socket");
    }
    match UnixStream::connect(path) {
        Ok(_) => in_use("another process serves there"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_socket_is_private_and_only_a_dead_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = listen(&path).await.unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            listen(&path).await.unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
        drop(listener);
        listen(&path).await.unwrap();
        let file = folder.path().join("precious");
        fs::write(&file, "x").unwrap();
        assert!(listen(&file).await.is_err());
        assert_eq!(fs::read(&file).unwrap(), b"x");
        assert!(listen(&folder.path().join("x".repeat(108))).await.is_err());
    }

    #[tokio::test]
    async fn a_socket_is_removed_by_whoever_serves_it_and_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let first = listen(&path).await.unwrap();
        let file = SocketFile::of(&path);
        drop(first);
        let _second = listen(&path).await.unwrap();
        file.remove();
        assert!(path.exists());
        SocketFile::of(&path).remove();
        assert!(!path.exists());
        SocketFile::of(&path).remove();
    }
}
