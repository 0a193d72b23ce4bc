//! What a client may ask for, a file per verb. Answers are computed without waiting for anybody but the kernel.

mod get_usage;
mod give_back;
mod hello;
mod pull;
mod reserve;

use std::os::fd::OwnedFd;

use vineyard_charge::ReserveError;
use vineyard_proto::payer::{Refused, refused::Reason, reply::Body as Reply};

pub(crate) use pull::bytes as pull_bytes;
pub(crate) use reserve::{bytes as reserve_bytes, check as check_reserve};
pub(crate) use vineyard_proto::payer::request::Body as Ask;

use crate::grants::Claim;
use crate::service::Service;

/// Requests that touch at least this much are *large*: they run beside the event loop, a few at a time.
pub(crate) const LARGE: u64 = 1 << 20;

/// What a connection remembers of its client.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// The name that the client gave in its hello, once it has said it.
    pub(crate) client: Option<String>,
}

/// What to send back.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A reply; the conversation goes on.
    Reply(Reply),
    /// A reply, then goodbye.
    Last(Reply),
}

impl Answer {
    /// Whether the descriptors of the request have been found to be files of our volumes.
    pub(crate) fn accepts(&self) -> bool {
        match self {
            Self::Reply(Reply::Reserved(_) | Reply::Full(_) | Reply::Pulled(_)) => true,
            Self::Reply(_) | Self::Last(_) => false,
        }
    }
}

/// The verbs, as a label of metrics.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue,
)]
#[expect(non_camel_case_types, reason = "the names are label values")]
pub(crate) enum Verb {
    /// `Hello`
    hello,
    /// `Reserve`
    reserve,
    /// `Pull`
    pull,
    /// `GiveBack`
    give_back,
    /// `GetUsage`
    get_usage,
    /// One that this version does not know.
    unknown,
}

impl Verb {
    /// The verb of a request.
    pub(crate) fn of(body: Option<&Ask>) -> Self {
        match body {
            Some(Ask::Hello(_)) => Self::hello,
            Some(Ask::Reserve(_)) => Self::reserve,
            Some(Ask::Pull(_)) => Self::pull,
            Some(Ask::GiveBack(_)) => Self::give_back,
            Some(Ask::GetUsage(_)) => Self::get_usage,
            None => Self::unknown,
        }
    }
}

/// Whether a request keeps the processor long enough to disturb others.
pub(crate) fn is_large(body: Option<&Ask>) -> bool {
    match body {
        Some(Ask::Reserve(ask)) => {
            let bytes = ask
                .ranges
                .iter()
                .fold(0_u64, |sum, range| sum.saturating_add(range.length));
            bytes >= LARGE
        }
        Some(Ask::Pull(_)) => true,
        _ => false,
    }
}

/// Answers one request. The first must be a hello, and only the first.
pub(crate) fn answer(
    service: &Service,
    session: &mut Session,
    body: Option<&Ask>,
    descriptors: &[OwnedFd],
    claim: &mut Claim,
) -> Answer {
    let carries = matches!(body, Some(Ask::Reserve(_) | Ask::Pull(_)));
    if !carries && !descriptors.is_empty() {
        return Answer::Reply(refuse(
            Reason::Descriptor,
            "this request takes no descriptors",
        ));
    }
    match (&session.client, body) {
        (None, Some(Ask::Hello(ask))) => hello::answer(service, session, ask),
        (None, _) => Answer::Last(refuse(Reason::Version, "the first request must be a hello")),
        (Some(_), Some(Ask::Hello(_))) => {
            Answer::Last(refuse(Reason::Version, "a second hello on one connection"))
        }
        (Some(_), Some(Ask::Reserve(ask))) => {
            Answer::Reply(reserve::answer(service, ask, descriptors, claim))
        }
        (Some(_), Some(Ask::Pull(ask))) => {
            Answer::Reply(pull::answer(service, ask, descriptors, claim))
        }
        (Some(_), Some(Ask::GiveBack(ask))) => Answer::Reply(give_back::answer(service, *ask)),
        (Some(_), Some(Ask::GetUsage(_))) => Answer::Reply(get_usage::answer(service)),
        (Some(_), None) => Answer::Reply(refuse(
            Reason::Version,
            "a request that this version does not know",
        )),
    }
}

pub(crate) fn refuse(reason: Reason, message: impl Into<String>) -> Reply {
    Reply::Refused(Refused {
        reason: reason.into(),
        message: message.into(),
    })
}

/// What the payer's errors are on the wire.
fn failure(error: ReserveError) -> Reply {
    match error {
        ReserveError::Full(full) => Reply::Full(full.into()),
        ReserveError::Refused { message } => refuse(Reason::Range, message),
        other => refuse(Reason::Internal, other.to_string()),
    }
}
