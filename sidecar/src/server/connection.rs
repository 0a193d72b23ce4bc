//! One client, from its hello to its end.
//!
//! ```text
//! silent ──hello──▶ idle ──first byte──▶ begun ──whole──▶ [claim, permit] ──▶ taken ──▶ answered ─┐
//!   │ patience       ▲ hours              │ patience                                   │ patience   │
//!   ▼                └────────────────────┼────────────────────────────────────────────┼────────────┘
//! ended ◀─────────────────────────────────┴────────────────────────────────────────────┘
//! ```
//!
//! Descriptors exist here only between *taken* and *answered*, and never while waiting for a permit or for the client. While
//! they wait for the driver, a permit bounds how many do.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::task;
use tokio::time::timeout;
use vineyard_charge::wire;
use vineyard_charge::wire::peek::{self, Head, Malformed, Taken, Whole};
use vineyard_proto::payer::{Reply, Request, Reserve, refused::Reason, reply};

use super::admission::Peer;
use super::closing;
use crate::driver::Claimed;
use crate::grants::Claim;
use crate::metrics::{Ended, Outcome};
use crate::service::Service;
use crate::verb::{self, Answer, Session, Verb};

/// Refusals of one connection that are logged as warnings; a client that goes on is only counted.
const LOGGED_REFUSALS: u32 = 5;

/// Why a connection ends although the client did not close it.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("undecodable request: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("{what} took longer than {patience:?}")]
    Slow {
        what: &'static str,
        patience: Duration,
    },
    #[error("sent away")]
    SentAway,
    #[error(transparent)]
    Broken(#[from] io::Error),
}

impl Violation {
    fn ended(&self) -> Ended {
        match self {
            Self::Malformed(_) | Self::Undecodable(_) => Ended::malformed,
            Self::Slow { .. } => Ended::slow,
            Self::SentAway => Ended::refused,
            Self::Broken(_) => Ended::broken,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    peer: Peer,
    service: Arc<Service>,
    session: Session,
    requests: u64,
    refusals: u32,
}

impl Connection {
    /// A fresh connection of `peer`.
    pub(crate) fn new(stream: UnixStream, peer: Peer, service: Arc<Service>) -> Self {
        Self {
            stream,
            peer,
            service,
            session: Session::default(),
            requests: 0,
            refusals: 0,
        }
    }

    /// Serves until the client closes or breaks the protocol.
    pub(crate) async fn run(mut self) {
        let begun = Instant::now();
        let connected = self.service.metrics.connected();
        let result = match self.converse().await {
            Err(Violation::Broken(error)) if is_gone(&error) => Ok(()),
            result => result,
        };
        let reason = result
            .as_ref()
            .map_or_else(Violation::ended, |()| Ended::closed);
        self.service.metrics.ended(reason);
        drop(connected);
        let client = self.session.client.as_deref().unwrap_or("?");
        let Peer { uid, pid } = self.peer;
        let (requests, refusals) = (self.requests, self.refusals);
        let seconds = begun.elapsed().as_secs_f32();
        match result {
            // A probe of the socket, not a client.
            Ok(()) if requests == 0 => tracing::debug!(uid, pid, "connected and gone"),
            Ok(()) => {
                tracing::info!(client, uid, pid, requests, refusals, seconds, "client gone");
            }
            Err(error) => {
                tracing::warn!(client, uid, pid, requests, refusals, seconds, %error, "connection ended");
            }
        }
        closing::socket(&self.service, self.stream).await;
        self.service.settle.notify_one();
    }

    async fn converse(&mut self) -> Result<(), Violation> {
        while let Some(whole) = self.next().await? {
            let last = self.exchange(whole).await?;
            if last {
                return Err(Violation::SentAway);
            }
            // Everybody else gets a turn before this client's next request.
            task::yield_now().await;
        }
        Ok(())
    }

    /// Waits for a whole frame; `None` when the client closed between two frames.
    async fn next(&self) -> Result<Option<Whole>, Violation> {
        let patience = self.service.limits.patience;
        let first = self.head(false);
        let head = if self.session.client.is_some() {
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
        loop {
            let ready = self.stream.ready(Interest::READABLE).await?;
            let seen = self.stream.try_io(Interest::READABLE, || {
                match peek::look(self.stream.as_fd())? {
                    Head::Empty => Err(io::ErrorKind::WouldBlock.into()),
                    // Closed before we looked: the rest will never come.
                    Head::Begun if ready.is_read_closed() => Ok(Head::Malformed(Malformed::Half)),
                    Head::Begun if whole => Err(io::ErrorKind::WouldBlock.into()),
                    head => Ok(head),
                }
            });
            match seen {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                seen => return seen,
            }
        }
    }

    /// Takes one request and answers it. Returns whether it was the last.
    async fn exchange(&mut self, mut whole: Whole) -> Result<bool, Violation> {
        let seen = whole.body.take();
        let seen = seen.map(|body| Request::decode(body.as_slice()));
        let seen = seen.transpose()?.and_then(|request| request.body);
        // Unknown before it is taken, its descriptors are here then: it waits in the same line.
        let large = seen.as_ref().is_none_or(|body| verb::is_large(Some(body)));
        let service = Arc::clone(&self.service);
        let mut claimed = match &seen {
            Some(body) => Some(self.claim(body).await),
            None => None,
        };
        let permit = match (&claimed, large) {
            (Some(Claimed::Overflow), _) => service.overflow.acquire().await.ok(),
            (_, true) => service.large.acquire().await.ok(),
            (_, false) => None,
        };
        let Taken {
            body,
            descriptors,
            fault,
        } = whole.take(self.stream.as_fd())?;
        let decoded = match fault {
            Some(fault) => Err(fault.into()),
            None => Request::decode(body.as_slice()).map_err(Violation::from),
        };
        let request = match decoded {
            Ok(request) => request,
            Err(violation) => {
                closing::wait(&service, descriptors).await;
                return Err(violation);
            }
        };
        let verb = Verb::of(request.body.as_ref());
        if let (None, Some(body)) = (&claimed, &request.body) {
            claimed = Some(self.claim(body).await);
        }
        let (answer, left) = match (claimed, request.body) {
            (Some(Claimed::Away(why)), _) => {
                (Answer::Reply(verb::refuse(Reason::Busy, why)), descriptors)
            }
            (Some(Claimed::Overflow), Some(verb::Ask::Reserve(ask))) => {
                self.forward(ask, descriptors).await
            }
            (Some(Claimed::Granted(claim)), body) => {
                self.work(large, body, descriptors, claim).await?
            }
            (_, body) => {
                self.work(large, body, descriptors, Claim::default())
                    .await?
            }
        };
        drop(permit);
        closing::wait(&service, left).await;
        self.requests += 1;
        let (body, last) = match answer {
            Answer::Reply(body) => (body, false),
            Answer::Last(body) => (body, true),
        };
        self.note(verb, &body);
        let reply = Reply {
            id: request.id,
            body: Some(body),
        };
        self.send(&reply).await?;
        Ok(last)
    }

    /// Only whoever has said hello may make the driver work.
    async fn claim(&self, body: &verb::Ask) -> Claimed {
        let is_hello = matches!(body, verb::Ask::Hello(_));
        match is_hello || self.session.client.is_some() {
            true => self.service.claim(Some(body)).await,
            false => Claimed::Granted(Claim::default()),
        }
    }

    /// Answers a request whose bytes are claimed; once more, when its files may be on a volume that is new to us.
    async fn work(
        &mut self,
        large: bool,
        body: Option<verb::Ask>,
        descriptors: Vec<OwnedFd>,
        claim: Claim,
    ) -> Result<(Answer, Vec<OwnedFd>), Violation> {
        let again = self.service.driver.as_ref().and(body.clone());
        let (answer, left) = self.once(large, body, descriptors, claim).await?;
        let is_foreign = matches!(&answer, Answer::Reply(reply::Body::Refused(refused))
            if refused.reason() == Reason::Descriptor && !left.is_empty());
        match again {
            Some(body) if is_foreign && self.service.learns(&left).await => {
                let claim = match self.claim(&body).await {
                    Claimed::Granted(claim) => claim,
                    _ => Claim::default(),
                };
                self.once(large, Some(body), left, claim).await
            }
            _ => Ok((answer, left)),
        }
    }

    async fn once(
        &mut self,
        large: bool,
        body: Option<verb::Ask>,
        descriptors: Vec<OwnedFd>,
        mut claim: Claim,
    ) -> Result<(Answer, Vec<OwnedFd>), Violation> {
        if large {
            return self.beside(body, descriptors, claim).await;
        }
        let (service, session) = (&self.service, &mut self.session);
        let answer = verb::answer(service, session, body.as_ref(), &descriptors, &mut claim);
        let left = closing::now(answer.accepts(), descriptors);
        Ok((answer, left))
    }

    /// Has the retainer reserve what the allowance does not cover.
    async fn forward(&self, ask: Reserve, descriptors: Vec<OwnedFd>) -> (Answer, Vec<OwnedFd>) {
        let Some(driver) = &self.service.driver else {
            let refusal = verb::refuse(Reason::Internal, "there is nobody to ask");
            return (Answer::Reply(refusal), descriptors);
        };
        let check = || verb::check_reserve(&self.service, &ask, &descriptors).map(|it| it.1);
        let checked = match check() {
            Err(_) if self.service.learns(&descriptors).await => check(),
            checked => checked,
        };
        let bytes = match checked {
            Ok(bytes) => bytes,
            Err(refusal) => return (Answer::Reply(refusal), descriptors),
        };
        let descriptors = Arc::new(descriptors);
        let reply = driver.reserve(ask, bytes, Arc::clone(&descriptors)).await;
        if matches!(reply, reply::Body::Reserved(_)) {
            self.service.metrics.retained(bytes);
            self.service.bill.elsewhere(bytes);
        }
        let answer = Answer::Reply(reply);
        // Unless the driver went away with the question: then they are closed when it is forgotten.
        let descriptors = Arc::try_unwrap(descriptors).unwrap_or_default();
        let left = closing::now(true, descriptors);
        (answer, left)
    }

    /// Answers a large request on another thread, so that the event loop goes on. Returns the descriptors that only
    /// their sender may wait for.
    async fn beside(
        &mut self,
        body: Option<verb::Ask>,
        descriptors: Vec<OwnedFd>,
        mut claim: Claim,
    ) -> Result<(Answer, Vec<OwnedFd>), Violation> {
        let service = Arc::clone(&self.service);
        let mut session = mem::take(&mut self.session);
        let work = task::spawn_blocking(move || {
            let begun = Instant::now();
            let answer = verb::answer(
                &service,
                &mut session,
                body.as_ref(),
                &descriptors,
                &mut claim,
            );
            service.metrics.large(begun.elapsed());
            let mut left = descriptors;
            if answer.accepts() {
                left.clear();
            }
            (answer, left, session)
        });
        let (answer, left, session) = work.await.map_err(io::Error::other)?;
        self.session = session;
        Ok((answer, left))
    }

    fn note(&mut self, verb: Verb, body: &reply::Body) {
        let outcome = match body {
            reply::Body::Full(_) => Outcome::full,
            reply::Body::Refused(_) => Outcome::refused,
            _ => Outcome::ok,
        };
        self.service.metrics.request(verb, outcome);
        if outcome == Outcome::ok {
            return;
        }
        self.refusals = self.refusals.saturating_add(1);
        let client = self.session.client.as_deref().unwrap_or("?");
        let Peer { uid, pid } = self.peer;
        if self.refusals <= LOGGED_REFUSALS {
            tracing::warn!(client, uid, pid, ?verb, answer = ?body, "refused");
        } else {
            tracing::debug!(client, uid, pid, ?verb, answer = ?body, "refused");
        }
    }

    async fn send(&mut self, reply: &Reply) -> Result<(), Violation> {
        let frame = wire::encode(reply).map_err(io::Error::other)?;
        let patience = self.service.limits.patience;
        match timeout(patience, self.stream.write_all(&frame)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(slow("reading a reply", patience)),
        }
    }
}

/// How a client that died without reading its replies looks.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

fn slow(what: &'static str, patience: Duration) -> Violation {
    Violation::Slow { what, patience }
}

/// Tells a client that there is no room for it, if that takes no waiting, and closes.
pub(crate) fn turn_away(stream: &UnixStream, why: &str) {
    let reply = Reply {
        id: 0,
        body: Some(verb::refuse(Reason::Busy, why)),
    };
    if let Ok(frame) = wire::encode(&reply) {
        // It is closed either way.
        let _ = stream.try_write(&frame);
    }
}
