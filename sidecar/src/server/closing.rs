//! Closing a stranger's descriptor is a call into the unknown: a FUSE server may never answer the flush, a TCP socket
//! may linger, the last descriptor of an unlinked file frees its gigabytes. So whatever may be slow is closed on
//! another thread, and only the connection that it came from waits.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::stat::fstat;
use tokio::net::UnixStream;
use tokio::task;
use vineyard_charge::wire::peek;

use crate::service::Service;
use crate::verb::LARGE;

/// Things that are closed at the same time. Whoever finds all of them hanging waits with its own.
pub(crate) const THREADS: usize = 16;

/// Closes what is quick to close and returns the rest: everything unless `accepted`, and unlinked large files.
pub(crate) fn now(accepted: bool, mut descriptors: Vec<OwnedFd>) -> Vec<OwnedFd> {
    if accepted {
        descriptors.retain(frees_much);
    }
    descriptors
}

/// Asked only about files of a volume.
fn frees_much(file: &OwnedFd) -> bool {
    fstat(file.as_fd()).is_ok_and(|status| {
        let bytes = u64::try_from(status.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        status.st_nlink == 0 && bytes >= LARGE
    })
}

/// Closes `descriptors` elsewhere and waits until that is done.
pub(crate) async fn wait(service: &Service, descriptors: Vec<OwnedFd>) {
    if !descriptors.is_empty() {
        elsewhere(service, descriptors).await;
    }
}

/// Closes a connection. Descriptors that nobody took are closed with it.
pub(crate) async fn socket(service: &Service, stream: UnixStream) {
    if peek::queued(stream.as_fd()).is_ok_and(|bytes| bytes == 0) {
        return;
    }
    if let Ok(stream) = stream.into_std() {
        elsewhere(service, stream).await;
    }
}

async fn elsewhere<T: Send + 'static>(service: &Service, thing: T) {
    let permit = service.closing.acquire().await;
    // A panic while closing is nobody's loss.
    let _ = task::spawn_blocking(move || drop(thing)).await;
    drop(permit);
}
