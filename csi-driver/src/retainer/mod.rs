//! The payer of bytes whose producers have gone: `docs/design/retainer.md`.
//!
//! A process of its own, because the kernel bills whoever allocates: it lives in the pod whose request covers the retained bytes,
//! serves the node driver alone, opens no path and needs no privilege. Plain threads, so that it stays small.

mod connection;
#[cfg(feature = "kubernetes")]
pub(crate) mod safeguard;
#[cfg(feature = "kubernetes")]
pub(crate) mod upgrade;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use vineyard_charge::OwnPayer;
use vineyard_charge::wire::MAX_DESCRIPTORS;

use crate::socket;
use connection::Connection;

/// The driver needs one for each hand-over that is under way.
const MAX_CONNECTIONS: usize = 64;

/// Between two tries to listen where this user may not yet.
const LOOK: Duration = Duration::from_millis(250);

/// What is shared by all connections.
#[derive(Debug, Default)]
struct Retainer {
    payer: OwnPayer,
    /// Requests hold it together, the end holds it alone.
    working: RwLock<()>,
    connections: AtomicUsize,
    /// The socket's, once it is served.
    inode: OnceLock<u64>,
}

/// Serves at `listen` until SIGTERM or SIGINT; then requests that are under way are finished. A second signal ends it at once.
///
/// # Errors
/// When the socket cannot be served.
pub(crate) fn run(listen: &Path) -> anyhow::Result<()> {
    // Before there are other threads: they inherit it, and this one alone hears of signals.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("signals")?;
    allow_descriptors().context("limit of open files")?;
    let retainer = Arc::new(Retainer::default());
    match socket::listen_blocking(listen) {
        Ok(listener) => retainer.serve(listen, listener),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::info!(endpoint = %listen.display(), "waits until the node driver opens the directory");
            let (waiting, path) = (Arc::clone(&retainer), listen.to_owned());
            thread::spawn(move || waiting.serve_when_allowed(&path));
        }
        Err(error) => {
            return Err(error).with_context(|| format!("listen on {}", listen.display()));
        }
    }

    signals.wait().context("signals")?;
    tracing::info!("told to end");
    thread::spawn(move || {
        let _ = signals.wait();
        process::exit(1);
    });
    let _alone = retainer
        .working
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    // Not the socket of whoever has taken our place.
    let inode = retainer.inode.get().copied();
    if inode.is_some() && fs::metadata(listen).map(|it| it.ino()).ok() == inode {
        let _ = fs::remove_file(listen);
    }
    Ok(())
}

impl Retainer {
    fn serve(self: &Arc<Self>, listen: &Path, listener: UnixListener) {
        if let Ok(socket) = fs::metadata(listen) {
            let _ = self.inode.set(socket.ino());
        }
        let serving = Arc::clone(self);
        thread::spawn(move || serving.accept(&listener));
        tracing::info!(endpoint = %listen.display(), "serving");
    }

    /// The node's driver makes the directory one that this user may write to; kubelet may have made it before.
    fn serve_when_allowed(self: &Arc<Self>, listen: &Path) {
        loop {
            thread::sleep(LOOK);
            match socket::listen_blocking(listen) {
                Ok(listener) => return self.serve(listen, listener),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => {
                    tracing::error!(%error, endpoint = %listen.display(), "cannot listen");
                    process::exit(1);
                }
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.begin(stream),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "nobody can connect");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Serves a connection on a thread of its own.
    fn begin(self: &Arc<Self>, stream: UnixStream) {
        if self.connections.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            self.connections.fetch_sub(1, Ordering::AcqRel);
            connection::turn_away(&stream);
            return;
        }
        let retainer = Arc::clone(self);
        let served = thread::Builder::new().spawn(move || {
            let ended = Connection::new(&retainer, &stream).serve();
            retainer.connections.fetch_sub(1, Ordering::AcqRel);
            match ended {
                Ok(()) => tracing::debug!("a client has gone"),
                Err(error) => tracing::warn!(%error, "a connection ended"),
            }
        });
        if let Err(error) = served {
            self.connections.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "no thread for a client");
        }
    }
}

/// Each connection may have a whole batch of descriptors under way.
fn allow_descriptors() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = (MAX_CONNECTIONS * (MAX_DESCRIPTORS + 1)) as u64 + 64;
    if soft < wanted.min(hard) {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
    }
    Ok(())
}
