//! The listening socket's file: replaced when stale, removed at exit when it is still ours.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

/// Any uid of the pod may connect: the directory is private to the pod.
const MODE: u32 = 0o666;

/// The file of a listening socket. Dropped, it is unlinked unless somebody replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Keeps the inode, so that no other file can have its number.
    inode: File,
}

/// Listens at `path`. A socket that nobody listens on is replaced.
///
/// # Errors
/// `AddrInUse` when somebody serves there or the file is no socket, else what the kernel says.
pub(crate) fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Before listening: nobody can be refused for a mode that is about to change.
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    let file = SocketFile {
        path: path.to_owned(),
        inode: OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits())
            .open(path)?,
    };
    socket::listen(&socket, Backlog::MAXCONN)?;
    Ok((UnixListener::from(socket), file))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |why: &str| io::Error::new(io::ErrorKind::AddrInUse, why);
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(in_use("the path exists and is not a socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(in_use("another process serves there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

impl SocketFile {
    fn is_ours(&self) -> io::Result<bool> {
        let identity = |file: &Metadata| (file.dev(), file.ino());
        let found = fs::symlink_metadata(&self.path)?;
        Ok(identity(&found) == identity(&self.inode.metadata()?))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours().is_ok_and(|ours| ours) {
            // Nothing to be done about it at exit; the next start replaces a stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_somebody_replaced_is_not_removed_at_exit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let (listener, file) = listen(&path).unwrap();
        drop(listener);
        let (_next, _next_file) = listen(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }
}
