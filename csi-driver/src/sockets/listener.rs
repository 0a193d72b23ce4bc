//! The listening socket of one pod, and who is connected to it.
//!
//! What one pod may keep of the driver is bounded: a few connections, one frame being taken, one reserve, one survey. So a
//! pod that misuses its socket waits for itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::service::Service;
use crate::volume::PodUid;

/// The sidecar has one; one of its predecessor may still be there, and somebody who looks.
const CONNECTIONS: usize = 4;

/// Between two requests of a pod that read all records.
const PACE: Duration = Duration::from_millis(10);

/// Out of descriptors or memory: whatever it is, trying again at once makes it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the connections of one pod share.
#[derive(Debug)]
pub(super) struct Pod {
    /// Whose they are.
    pub(super) uid: PodUid,
    /// Number of the connection that said hello last.
    pub(super) session: watch::Sender<u64>,
    /// The right to take a frame, with descriptors that nobody has looked at.
    pub(super) hands: Arc<Semaphore>,
    /// The right to have files reserved by the retainer.
    pub(super) reserving: Arc<Semaphore>,
    /// The right to be surveyed.
    pub(super) measuring: Semaphore,
    /// When the next request that reads all records may begin.
    next: Mutex<Instant>,
}

impl Pod {
    fn new(uid: PodUid) -> Self {
        Self {
            uid,
            session: watch::Sender::new(0),
            hands: Arc::new(Semaphore::new(1)),
            reserving: Arc::new(Semaphore::new(1)),
            measuring: Semaphore::new(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the turn of a request that reads all records or writes some: a sidecar has a few in its life, and one that
    /// has more must not keep the driver busy.
    pub(super) async fn turn(&self) {
        let mut next = self.next.lock().await;
        sleep_until(*next).await;
        *next = Instant::now() + PACE;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Listener {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Serves whoever connects to `listener` as the pod `uid`.
    pub(super) fn start(listener: UnixListener, uid: PodUid, service: Arc<Service>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let pod = Arc::new(Pod::new(uid));
        let task = tokio::spawn(accept(listener, pod, service, stopped));
        Self { stop, task }
    }

    /// Closes the socket and every connection, and returns when they are closed.
    pub(super) async fn end(self) {
        self.stop.send_replace(true);
        // A panic has closed them, too.
        let _ = self.task.await;
    }
}

async fn accept(
    listener: UnixListener,
    pod: Arc<Pod>,
    service: Arc<Service>,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = told(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        tracing::debug!(pod.uid = %pod.uid, "too many connections: one is closed");
                        continue;
                    };
                    let connection = Connection::new(stream, Arc::clone(&pod), Arc::clone(&service));
                    connections.spawn(async move {
                        connection.run().await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(pod.uid = %pod.uid, %error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that the listener was dropped: that is the end as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
