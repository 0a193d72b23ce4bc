//! The connection to the node driver: requests out, replies in any order, and everything unanswered again after a restart
//! of the driver.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use vineyard_charge::wire::{self, Frames};
use vineyard_proto::node::reply::Body as Reply;
use vineyard_proto::node::request::Body as Ask;
use vineyard_proto::node::{self, Hello, Welcome};

/// The version of `node.proto` spoken here.
const VERSION: u32 = 1;

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long a driver may take to welcome us.
const WELCOME: Duration = Duration::from_secs(10);

/// Requests that wait to be sent.
const QUEUE: usize = 256;

/// What the link tells and asks its owner, on the event loop.
pub(super) trait Owner: Send + Sync {
    /// What was granted so far, and whether the sidecar is leaving.
    fn hello(&self) -> (u64, bool);

    /// The driver is there, or there again.
    fn welcome(&self, welcome: Welcome);
}

/// The driver did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the node driver has not answered for {0:?}")]
pub(crate) struct Away(pub(super) Duration);

/// The way to send requests. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Link {
    asks: mpsc::Sender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    body: Ask,
    descriptors: Arc<Vec<OwnedFd>>,
    answer: oneshot::Sender<Reply>,
}

impl Link {
    /// Connects to the driver that listens at `path`, now and whenever the connection is lost.
    pub(super) fn start(path: PathBuf, owner: Arc<dyn Owner>) -> Self {
        let (asks, queue) = mpsc::channel(QUEUE);
        let task = Task {
            path,
            owner,
            queue,
            pending: BTreeMap::new(),
            last: 0,
        };
        tokio::spawn(task.run());
        Self { asks }
    }

    /// Sends a request and waits for its reply, over restarts of the driver, for at most `patience`.
    ///
    /// # Errors
    /// [`Away`]; the request may still be done.
    pub(super) async fn ask(
        &self,
        body: Ask,
        descriptors: Arc<Vec<OwnedFd>>,
        patience: Duration,
    ) -> Result<Reply, Away> {
        let (answer, reply) = oneshot::channel();
        let waiting = Waiting {
            body,
            descriptors,
            answer,
        };
        let exchange = async {
            self.asks.send(waiting).await.ok()?;
            reply.await.ok()
        };
        let reply = timeout(patience, exchange).await.ok().flatten();
        reply.ok_or(Away(patience))
    }
}

struct Task {
    path: PathBuf,
    owner: Arc<dyn Owner>,
    queue: mpsc::Receiver<Waiting>,
    /// Sent, not answered.
    pending: BTreeMap<u64, Waiting>,
    last: u64,
}

impl Task {
    async fn run(mut self) {
        let mut pause = PAUSE;
        loop {
            let ended = match UnixStream::connect(&self.path).await {
                Ok(stream) => self.converse(&stream, &mut pause).await,
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            let driver = self.path.display();
            if pause == PAUSE {
                tracing::warn!(%driver, %error, "the node driver is away");
            } else {
                tracing::debug!(%driver, %error, "the node driver is away");
            }
            self.pending
                .retain(|_, waiting| !waiting.answer.is_closed());
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns when nobody can ask any more, or with the reason why the connection is lost.
    async fn converse(&mut self, stream: &UnixStream, pause: &mut Duration) -> io::Result<()> {
        let mut frames = Frames::new();
        let greeted = timeout(WELCOME, self.greet(stream, &mut frames)).await;
        greeted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        tracing::info!(driver = %self.path.display(), again = self.pending.len(), "the node driver is there");
        *pause = PAUSE;
        for (id, waiting) in &self.pending {
            send(stream, *id, &waiting.body, &waiting.descriptors).await?;
        }
        loop {
            tokio::select! {
                biased;
                received = receive(stream, &mut frames) => self.answered(received?)?,
                asked = self.queue.recv() => {
                    let Some(waiting) = asked else { return Ok(()) };
                    if waiting.answer.is_closed() {
                        continue;
                    }
                    // Who has given up needs no reply, and must not keep descriptors here.
                    self.pending.retain(|_, waiting| !waiting.answer.is_closed());
                    self.last += 1;
                    let id = self.last;
                    // Before it is sent: cut off in between, it is sent again.
                    let waiting = self.pending.entry(id).or_insert(waiting);
                    send(stream, id, &waiting.body, &waiting.descriptors).await?;
                }
            }
        }
    }

    async fn greet(&mut self, stream: &UnixStream, frames: &mut Frames) -> io::Result<()> {
        self.last += 1;
        let id = self.last;
        let (granted_bytes, leaving) = self.owner.hello();
        let hello = Hello {
            version: VERSION,
            sidecar: concat!("vineyard-sidecar ", env!("CARGO_PKG_VERSION")).into(),
            granted_bytes,
            leaving,
        };
        send(stream, id, &Ask::Hello(hello), &[]).await?;
        loop {
            match receive(stream, frames).await? {
                (other, _) if other != id => {}
                (_, Some(Reply::Welcome(welcome))) => {
                    self.owner.welcome(welcome);
                    return Ok(());
                }
                (_, other) => return Err(invalid(format!("hello is answered by {other:?}"))),
            }
        }
    }

    fn answered(&mut self, (id, body): (u64, Option<Reply>)) -> io::Result<()> {
        let body = body.ok_or_else(|| invalid("an unknown reply"))?;
        match self.pending.remove(&id) {
            Some(waiting) => drop(waiting.answer.send(body)),
            // To nothing in particular: it hangs up.
            None if id == 0 => return Err(invalid(format!("{body:?}"))),
            None => {}
        }
        Ok(())
    }
}

/// Waits for a frame. Nothing is lost when it is cut off.
async fn receive(stream: &UnixStream, frames: &mut Frames) -> io::Result<(u64, Option<Reply>)> {
    loop {
        if let Some((reply, _)) = frames.next::<node::Reply>().map_err(invalid)? {
            return Ok((reply.id, reply.body));
        }
        let filled = stream.async_io(Interest::READABLE, || frames.fill(stream.as_fd()));
        if filled.await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn send(stream: &UnixStream, id: u64, body: &Ask, descriptors: &[OwnedFd]) -> io::Result<()> {
    let body = Some(body.clone());
    let frame = wire::encode(&node::Request { id, body }).map_err(invalid)?;
    let mut descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut rest = frame.as_slice();
    while !rest.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || {
            wire::send_with_fds(stream.as_fd(), rest, &descriptors)
        });
        rest = rest.get(sent.await?..).unwrap_or_default();
        descriptors.clear();
    }
    Ok(())
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
