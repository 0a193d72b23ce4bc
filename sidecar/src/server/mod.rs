//! The accept loop and the end.
//!
//! After the first signal the driver is told, nobody new is accepted and everybody connected is served; when the last client
//! has gone, or at a second signal, [`Server::run`] returns.

mod admission;
pub(crate) mod closing;
mod connection;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::admission::{Admission, Peer};
use self::connection::Connection;
use crate::metrics::Ended;
use crate::service::Service;
use crate::signals::Signals;

/// Out of descriptors or memory: whatever it is, trying again at once makes it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a driver that is away is waited for when nobody else is left.
const FAREWELL: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    service: Arc<Service>,
    admission: Admission,
    clients: JoinSet<()>,
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// No client is left.
    Orderly,
    /// Clients were still connected.
    Forced,
}

impl Server {
    /// Serves the clients that connect to `listener`.
    pub(crate) fn new(listener: UnixListener, service: Arc<Service>) -> Self {
        let limits = &service.limits;
        Self {
            listener,
            admission: Admission::new(limits.connections, limits.connections_per_uid),
            service,
            clients: JoinSet::new(),
        }
    }

    /// Serves until a signal and then until the last client has gone.
    pub(crate) async fn run(mut self, mut signals: Signals) -> End {
        loop {
            tokio::select! {
                biased;
                () = signals.next() => break,
                Some(_) = self.clients.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.welcome(stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        let Self {
            listener,
            mut clients,
            service,
            ..
        } = self;
        drop(listener);
        // At once: what is charged here must be covered before this pod counts as gone.
        let farewell = tokio::spawn(leave(Arc::clone(&service)));
        tracing::info!(
            clients = clients.len(),
            "stopping when the last client has gone"
        );
        loop {
            tokio::select! {
                biased;
                gone = clients.join_next() => if gone.is_none() {
                    break;
                },
                () = signals.next() => return End::Forced,
            }
        }
        tokio::select! {
            _ = timeout(FAREWELL, farewell) => End::Orderly,
            () = signals.next() => End::Forced,
        }
    }

    fn welcome(&mut self, stream: UnixStream) {
        let peer = match peer(&stream) {
            Ok(peer) => peer,
            Err(error) => return tracing::warn!(%error, "cannot tell who connects"),
        };
        match self.admission.admit(peer.uid) {
            Ok(admitted) => {
                let connection = Connection::new(stream, peer, Arc::clone(&self.service));
                self.clients.spawn(async move {
                    connection.run().await;
                    drop(admitted);
                });
            }
            Err(crowded) => {
                self.service.metrics.ended(Ended::limit);
                connection::turn_away(&stream, &crowded.to_string());
                tracing::debug!(uid = peer.uid, pid = peer.pid, %crowded, "turned away");
            }
        }
    }
}

async fn leave(service: Arc<Service>) {
    if let Some(driver) = &service.driver {
        driver.leave().await;
    }
}

fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer {
        uid: credentials.uid(),
        pid: credentials.pid().unwrap_or(0),
    })
}
