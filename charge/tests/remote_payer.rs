//! The client's side of the payer protocol against a small real server.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use vineyard_charge::{Extent, OwnPayer, Payer, REGION, RemotePayer, ReserveError};

struct Server {
    directory: tempfile::TempDir,
}

impl Server {
    fn path(&self) -> PathBuf {
        self.directory.path().join("payer.sock")
    }

    fn listener() -> (Self, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let server = Self { directory };
        let listener = UnixListener::bind(server.path()).unwrap();
        (server, listener)
    }

    fn start() -> Self {
        let (server, listener) = Self::listener();
        thread::spawn(move || support::serve(&listener));
        server
    }
}

fn files(count: usize) -> Vec<File> {
    (0..count)
        .map(|_| tempfile::tempfile_in("/dev/shm").unwrap())
        .collect()
}

fn first_pages(files: &[File]) -> Vec<(BorrowedFd<'_>, Extent)> {
    let page = Extent {
        offset: 0,
        length: 100,
    };
    files.iter().map(|f| (f.as_fd(), page)).collect()
}

fn allocated(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn a_reserve_over_the_socket_allocates_in_batches_of_what_the_payer_takes() {
    let server = Server::start();
    let payer = RemotePayer::connect(&server.path(), "test").unwrap();
    assert_eq!(payer.welcome().unwrap().stock_bytes, 1 << 20);
    let files = files(150);
    payer.reserve(&first_pages(&files)).unwrap();
    assert!(files.iter().all(|f| allocated(f) == 4096));
}

#[test]
fn a_reserve_that_does_not_fit_says_the_numbers_and_frees_earlier_batches() {
    let server = Server::start();
    let payer = RemotePayer::connect(&server.path(), "test").unwrap();
    let files = files(100);
    let mut batch = first_pages(&files);
    batch[99].1.length = 1 << 50;
    let error = payer.reserve(&batch).unwrap_err();
    assert!(
        matches!(error, ReserveError::Full(full) if full.asked >= 1 << 50),
        "{error}"
    );
    assert!(files.iter().all(|f| allocated(f) == 0));
}

#[test]
fn a_pull_over_the_socket_says_what_was_refused() {
    let server = Server::start();
    let payer = RemotePayer::connect(&server.path(), "test").unwrap();
    let file = &files(1)[0];
    file.set_len(2 * REGION).unwrap();
    let all = Extent {
        offset: 0,
        length: 2 * REGION,
    };
    // There is nothing to collapse in an empty file.
    assert_eq!(payer.pull(file.as_fd(), &[all]).unwrap(), [0, REGION]);
    let odd = Extent { offset: 1, ..all };
    assert!(matches!(
        payer.pull(file.as_fd(), &[odd]),
        Err(ReserveError::Refused { .. })
    ));
    // A refusal leaves the connection usable.
    assert_eq!(payer.usage().unwrap().allowance_bytes, 7);
}

#[test]
fn many_gifts_back_do_not_fill_the_socket() {
    let server = Server::start();
    let payer = RemotePayer::connect(&server.path(), "test").unwrap();
    for _ in 0..20_000 {
        payer.give_back(4096);
    }
    assert_eq!(payer.usage().unwrap().spent_bytes, 3);
}

#[test]
fn a_request_under_way_is_repeated_after_a_restart_of_the_payer() {
    let (server, listener) = Server::listener();
    let path = server.path();
    let serving = thread::spawn(move || {
        // Serves hello only, then closes as the reserve comes in: killed at the worst moment.
        let (stream, _) = listener.accept().unwrap();
        support::converse(&stream, &OwnPayer::new(), 1).unwrap();
        drop((stream, listener));
        std::fs::remove_file(&path).unwrap();
        thread::sleep(Duration::from_millis(100));
        let again = UnixListener::bind(&path).unwrap();
        let (stream, _) = again.accept().unwrap();
        support::converse(&stream, &OwnPayer::new(), usize::MAX).unwrap();
    });
    let payer = RemotePayer::connect(&server.path(), "test").unwrap();
    let files = files(3);
    payer.reserve(&first_pages(&files)).unwrap();
    assert!(files.iter().all(|f| allocated(f) == 4096));
    drop(payer);
    serving.join().unwrap();
}

#[test]
fn a_forked_child_uses_a_connection_of_its_own() {
    let server = Server::start();
    let payer = RemotePayer::connect(&server.path(), "test").unwrap();
    let files = files(2);
    // SAFETY: the child only uses the socket and its own memory, and leaves by _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let ok = payer.reserve(&first_pages(&files[..1])).is_ok();
            // SAFETY: leaves without running the test harness twice.
            unsafe { libc::_exit(i32::from(!ok)) }
        }
        ForkResult::Parent { child } => {
            payer.reserve(&first_pages(&files[1..])).unwrap();
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
    assert!(files.iter().all(|f| allocated(f) == 4096));
    payer.usage().unwrap();
}

#[test]
fn a_payer_that_is_not_there_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let error = RemotePayer::connect(&directory.path().join("none.sock"), "test").unwrap_err();
    assert!(matches!(error, ReserveError::Unreachable(_)), "{error}");
}
