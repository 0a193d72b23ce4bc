//! One connection of a pod: frames in, replies out in any order.
//!
//! A frame is looked at in the socket's queue and taken off only when it is whole and its turn has come, as the sidecar
//! does (`charge::wire::peek`). Surveys and reserves run beside the conversation, so that a grant or a farewell never
//! waits for them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use prost::Message;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, OwnedSemaphorePermit, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{sleep, timeout};
use vineyard_charge::wire::{
    self,
    peek::{self, Head, Malformed, Whole},
};
use vineyard_proto::node::refused::Reason;
use vineyard_proto::node::{Reply, Request, reply, request};

use super::answer::{self, Session, refuse};
use super::listener::Pod;
use super::service::Service;

/// Surveys and reserves of one connection that wait or are under way.
const BESIDE: usize = 8;

/// The id of a reply to nothing.
const NOBODY: u64 = 0;

/// Why a connection ends although the pod did not close it.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("undecodable request: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("a frame in pieces, or descriptors with a request that takes none")]
    Unsound,
    #[error("{what} took longer than {patience:?}")]
    Slow {
        what: &'static str,
        patience: Duration,
    },
    #[error("another sidecar of this pod has said hello")]
    Superseded,
    #[error("sent away")]
    SentAway,
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    replies: Replies,
    pod: Arc<Pod>,
    service: Arc<Service>,
    session: Option<Session>,
    /// Changes when another connection says hello.
    latest: watch::Receiver<u64>,
    beside: JoinSet<()>,
}

impl Connection {
    /// A fresh connection of `pod`.
    pub(super) fn new(stream: UnixStream, pod: Arc<Pod>, service: Arc<Service>) -> Self {
        Self {
            replies: Replies {
                stream: Arc::new(stream),
                writing: Arc::default(),
                patience: service.patience,
            },
            latest: pod.session.subscribe(),
            pod,
            service,
            session: None,
            beside: JoinSet::new(),
        }
    }

    /// Serves until the pod closes it, breaks the protocol or has another sidecar.
    pub(super) async fn run(mut self) {
        let ended = self.converse().await;
        self.beside.shutdown().await;
        let pod = &self.pod.uid;
        match ended {
            Ok(()) => tracing::debug!(pod.uid = %pod, "a sidecar has gone"),
            Err(error) => tracing::warn!(pod.uid = %pod, %error, "a connection ended"),
        }
        let stream = self.replies.stream;
        if peek::queued(stream.as_fd()).is_ok_and(|bytes| bytes > 0) {
            // Whatever descriptors lie in its queue are closed with it, and that may take any time.
            let _ = task::spawn_blocking(move || drop(stream)).await;
        }
    }

    async fn converse(&mut self) -> Result<(), Violation> {
        loop {
            while self.beside.try_join_next().is_some() {}
            let mine = self.session.as_ref().map(|session| session.number);
            let whole = tokio::select! {
                biased;
                () = superseded(self.latest.clone(), mine) => {
                    let message = "another sidecar of this pod has said hello";
                    self.replies.send(NOBODY, refuse(Reason::Superseded, message)).await?;
                    return Err(Violation::Superseded);
                }
                whole = self.next() => whole?,
            };
            let Some(whole) = whole else { return Ok(()) };
            self.exchange(whole).await?;
        }
    }

    /// Waits for a whole frame; `None` when the pod closed between two frames.
    async fn next(&self) -> Result<Option<Whole>, Violation> {
        let patience = self.service.patience;
        let first = self.head(false);
        let head = if self.session.is_some() {
            first.await?
        } else {
            let slow = |_| slow("saying hello", patience);
            timeout(patience, first).await.map_err(slow)??
        };
        let head = match head {
            Head::Begun => {
                let slow = |_| slow("sending a frame", patience);
                timeout(patience, self.head(true)).await.map_err(slow)??
            }
            head => head,
        };
        match head {
            Head::Whole(whole) => Ok(Some(whole)),
            Head::Malformed(how) => Err(how.into()),
            Head::Empty | Head::Begun | Head::End => Ok(None),
        }
    }

    /// Waits until there is more to see than nothing, or, with `whole`, than the beginning of a frame.
    async fn head(&self, whole: bool) -> io::Result<Head> {
        let stream = &self.replies.stream;
        loop {
            let ready = stream.ready(Interest::READABLE).await?;
            let seen = stream.try_io(Interest::READABLE, || match peek::look(stream.as_fd())? {
                Head::Empty => Err(io::ErrorKind::WouldBlock.into()),
                Head::Begun if ready.is_read_closed() => Ok(Head::Malformed(Malformed::Half)),
                Head::Begun if whole => Err(io::ErrorKind::WouldBlock.into()),
                head => Ok(head),
            });
            match seen {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                seen => return seen,
            }
        }
    }

    async fn exchange(&mut self, whole: Whole) -> Result<(), Violation> {
        // Sidecars send a frame by one system call.
        let body = whole.body.as_deref().ok_or(Violation::Unsound)?;
        let Request { id, body } = Request::decode(body)?;
        let carries = matches!(body, Some(request::Body::Reserve(_)));
        let reserving = match carries {
            true => Arc::clone(&self.pod.reserving).acquire_owned().await.ok(),
            false => None,
        };
        let descriptors = self.take(whole, carries).await?;
        let Some(session) = &mut self.session else {
            return self.greet(id, body).await;
        };
        match body {
            Some(request::Body::Measure(_)) => self.measure(id).await,
            Some(request::Body::Reserve(ask)) => {
                let (service, pod) = (Arc::clone(&self.service), Arc::clone(&self.pod));
                let (session, replies) = (session.clone(), self.replies.clone());
                let work = async move {
                    let reply =
                        answer::reserve(&service, &pod.uid, session, ask, descriptors).await;
                    drop::<Option<OwnedSemaphorePermit>>(reserving);
                    replies.send_or_close(id, reply).await;
                };
                self.spawn(work).await;
                Ok(())
            }
            Some(request::Body::Hello(_)) | None => {
                let message = "a second hello, or a request that this version does not know";
                self.replies
                    .send(id, refuse(Reason::Version, message))
                    .await
            }
            Some(request::Body::Grant(ask)) => {
                let reply = answer::grant(&self.service, &self.pod, ask).await;
                self.replies.send(id, reply).await
            }
            Some(request::Body::GetDevices(_)) => {
                self.pod.turn().await;
                let reply = answer::devices(&self.service, &self.pod.uid, session).await;
                self.replies.send(id, reply).await
            }
            Some(request::Body::Leaving(_)) => {
                self.pod.turn().await;
                let reply = answer::leaving(&self.service, &self.pod.uid).await;
                self.replies.send(id, reply).await
            }
        }
    }

    /// Takes a frame off the queue, with its descriptors if it may have any.
    async fn take(&self, whole: Whole, carries: bool) -> Result<Vec<OwnedFd>, Violation> {
        let hands = Arc::clone(&self.pod.hands).acquire_owned().await;
        let taken = whole.take(self.replies.stream.as_fd())?;
        let sound = taken.fault.is_none() && (carries || taken.descriptors.is_empty());
        if sound {
            return Ok(taken.descriptors);
        }
        // To close a stranger's descriptor may take any time; this pod takes no other frame meanwhile.
        let _ = task::spawn_blocking(move || drop((taken.descriptors, hands))).await;
        Err(taken.fault.map_or(Violation::Unsound, Violation::from))
    }

    async fn greet(&mut self, id: u64, body: Option<request::Body>) -> Result<(), Violation> {
        let Some(request::Body::Hello(hello)) = body else {
            let refusal = refuse(Reason::Version, "the first request must be a hello");
            self.replies.send(id, refusal).await?;
            return Err(Violation::SentAway);
        };
        self.pod.turn().await;
        match answer::hello(&self.service, &self.pod, &hello).await {
            Ok((session, welcome)) => {
                self.session = Some(session);
                self.replies.send(id, welcome).await
            }
            Err(refusal) => {
                self.replies.send(id, refusal).await?;
                Err(Violation::SentAway)
            }
        }
    }

    async fn measure(&mut self, id: u64) -> Result<(), Violation> {
        let (service, pod) = (Arc::clone(&self.service), Arc::clone(&self.pod));
        let replies = self.replies.clone();
        let work = async move {
            let own = pod.measuring.acquire().await;
            let any = service.surveys().acquire().await;
            let begun = Instant::now();
            let reply = answer::measure(&service, &pod.uid).await;
            drop(any);
            replies.send_or_close(id, reply).await;
            // One pod after the other may keep a processor busy, but none all the time.
            sleep(begun.elapsed() * 2).await;
            drop(own);
        };
        self.spawn(work).await;
        Ok(())
    }

    async fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        while self.beside.len() >= BESIDE {
            self.beside.join_next().await;
        }
        self.beside.spawn(work);
    }
}

/// Returns when another connection than `mine` has said hello; never before this one has.
async fn superseded(mut latest: watch::Receiver<u64>, mine: Option<u64>) {
    let other = |latest: &u64| mine.is_some_and(|mine| *latest != mine);
    // The sender lives as long as the pod.
    let _ = latest.wait_for(other).await;
}

/// The outgoing side. Cheap to clone.
#[derive(Clone, Debug)]
struct Replies {
    stream: Arc<UnixStream>,
    writing: Arc<Mutex<()>>,
    patience: Duration,
}

impl Replies {
    async fn send(&self, id: u64, body: reply::Body) -> Result<(), Violation> {
        if let reply::Body::Refused(refused) = &body {
            tracing::debug!(reason = ?refused.reason(), message = refused.message, "refused");
        }
        let body = Some(body);
        let frame = wire::encode(&Reply { id, body }).map_err(io::Error::other)?;
        let write = async {
            let _alone = self.writing.lock().await;
            let mut rest = frame.as_slice();
            while !rest.is_empty() {
                let sent = self.stream.async_io(Interest::WRITABLE, || {
                    wire::send_with_fds(self.stream.as_fd(), rest, &[])
                });
                rest = rest.get(sent.await?..).unwrap_or_default();
            }
            Ok(())
        };
        match timeout(self.patience, write).await {
            Ok(sent) => sent,
            Err(_) => Err(slow("reading a reply", self.patience)),
        }
    }

    /// The same from beside the conversation, which ends when this fails.
    async fn send_or_close(&self, id: u64, body: reply::Body) {
        if self.send(id, body).await.is_err() {
            // Closed already: that is what is wanted.
            let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
        }
    }
}

fn slow(what: &'static str, patience: Duration) -> Violation {
    Violation::Slow { what, patience }
}
