//! What the store needs of the directory, and of a mount.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, UnlinkatFlags, fork, linkat, unlinkat};

use super::{Answer, Capability, capability, outcome, words};

const NONE: Option<&str> = None;

pub(super) fn probe(volume: Option<&Path>) -> Vec<Capability> {
    let mut all = Vec::new();
    if let Some(volume) = volume {
        all.push(kind(volume));
        all.push(link(volume));
        all.push(lease(volume));
    }
    all.push(beneath(volume.unwrap_or(Path::new("/"))));
    all.push(noswap());
    all
}

/// A file that goes when it is closed.
pub(super) fn unnamed(directory: &Path) -> io::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    Ok(File::from(open(
        directory,
        flags,
        Mode::S_IRUSR | Mode::S_IWUSR,
    )?))
}

fn kind(volume: &Path) -> Capability {
    let says = [
        "",
        "Files here are not memory: nothing is billed, nothing is shared without copying to disk; use a tmpfs",
        "",
    ];
    let (answer, found) = match statfs(volume) {
        Ok(s) if s.filesystem_type() == TMPFS_MAGIC => {
            (Answer::Yes, format!("{} is a tmpfs", volume.display()))
        }
        Ok(_) => (Answer::No, format!("{} is no tmpfs", volume.display())),
        Err(error) => (
            Answer::No,
            format!("{}: {}", volume.display(), error.desc()),
        ),
    };
    capability("volume", answer, found, says)
}

/// How a file without a name gets one: the short way needs a privilege or Linux 6.10.
fn link(volume: &Path) -> Capability {
    let name = volume.join(format!(".vineyard-probe-{}", std::process::id()));
    let linked = unnamed(volume).and_then(|file| {
        let result = linkat(&file, "", AT_FDCWD, &name, AtFlags::AT_EMPTY_PATH);
        if result == Err(Errno::ENOENT) {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(
                AT_FDCWD,
                path.as_str(),
                AT_FDCWD,
                &name,
                AtFlags::AT_SYMLINK_FOLLOW,
            )?;
            return Ok(false);
        }
        result?;
        Ok(true)
    });
    if linked.is_ok() {
        // Made above, by us.
        let _ = unlinkat(AT_FDCWD, &name, UnlinkatFlags::NoRemoveDir);
    }
    let (answer, found) = match &linked {
        Ok(true) => (Answer::Yes, "linkat with an empty path".to_owned()),
        Ok(false) => (
            Answer::Yes,
            "linkat through /proc only, some µs slower".to_owned(),
        ),
        Err(error) => (Answer::No, error.to_string()),
    };
    let says = [
        "",
        "Objects cannot be sealed here: the directory must be writable",
        "",
    ];
    capability("seal-by-link", answer, found, says)
}

/// A lease is how a writer that is left over is noticed.
fn lease(volume: &Path) -> Capability {
    let leased = unnamed(volume).and_then(|file| {
        // SAFETY: plain fcntl calls on a descriptor that nobody else has.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    });
    let says = [
        "",
        "Whether a removed object is still mapped, or a writer is left, cannot be told: the trash is emptied by time",
        "",
    ];
    let found = words(&leased, "a write lease on an own file");
    capability("write-lease", outcome(&leased), found, says)
}

fn beneath(directory: &Path) -> Capability {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let opened = open(directory, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|root| openat2(root.as_fd(), ".", how));
    let says = [
        "",
        "Hostile symlinks cannot be kept out safely: needs Linux 5.6, and a seccomp profile that knows openat2",
        "",
    ];
    let found = match &opened {
        Ok(_) => "openat2 with RESOLVE_BENEATH".to_owned(),
        Err(error) => error.desc().to_owned(),
    };
    capability("openat2", outcome(&opened), found, says)
}

/// Tried by a child in a mount namespace of its own, which goes with it.
fn noswap() -> Capability {
    let says = [
        "",
        "Pages of volumes can be swapped out and come back on another bill: switch swap off on the node, or use Linux 6.4",
        "Only who may mount can tell",
    ];
    // SAFETY: the child makes system calls only and leaves by _exit.
    let (answer, found) = match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            let code = match unshare(CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(NONE, "/", NONE, private, NONE))
            {
                Err(_) => 2,
                Ok(()) => {
                    let options = Some("noswap,size=4096");
                    let tmpfs = Some("tmpfs");
                    i32::from(mount(tmpfs, "/proc", tmpfs, MsFlags::empty(), options).is_err())
                }
            };
            // SAFETY: ends the child without running anything of its parent's.
            unsafe { libc::_exit(code) }
        }
        Ok(ForkResult::Parent { child }) => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => (Answer::Yes, "tmpfs takes the mount option"),
            Ok(WaitStatus::Exited(_, 1)) => (Answer::No, "tmpfs refuses the mount option"),
            _ => (Answer::Unknown, "this process may not mount"),
        },
        Err(_) => (Answer::Unknown, "no process can be started"),
    };
    capability("noswap", answer, found, says)
}
