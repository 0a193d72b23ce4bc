//! One client of the retainer: frames of `payer.proto`, one request after the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::PoisonError;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use vineyard_charge::descriptor::{Access, DescriptorRefused, check_trusted};
use vineyard_charge::wire::{Frames, MAX_DESCRIPTORS, encode, send};
use vineyard_charge::{Extent, MemoryCgroup, OwnPayer, Payer, ReserveError};
use vineyard_proto::payer::{
    Hello, Pulled, Range, Refused, Reply, Request, Reserved, Usage, Welcome, refused, reply,
    request,
};

use super::Retainer;

/// The version of `payer.proto` spoken here.
const VERSION: u32 = 1;

/// The most regions of one pull.
const MAX_REGIONS: usize = 4096;

/// The id of a reply to nothing.
const NOBODY: u64 = 0;

pub(super) struct Connection<'a> {
    retainer: &'a Retainer,
    stream: &'a UnixStream,
    frames: Frames,
}

impl<'a> Connection<'a> {
    pub(super) fn new(retainer: &'a Retainer, stream: &'a UnixStream) -> Self {
        Self {
            retainer,
            stream,
            frames: Frames::new(),
        }
    }

    /// Answers until the client goes.
    pub(super) fn serve(&mut self) -> io::Result<()> {
        let peer = getsockopt(self.stream, PeerCredentials)?;
        // The socket's mode says the same, unless somebody changes it.
        if peer.uid() != 0 && peer.uid() != Uid::effective().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("uid {} is not the driver's", peer.uid()),
            ));
        }
        let Some((id, Some(request::Body::Hello(hello)))) =
            self.receive()?.map(|(r, _)| (r.id, r.body))
        else {
            return self.reply(NOBODY, refuse(refused::Reason::Version, "no hello"));
        };
        if !self.greet(id, &hello)? {
            return Ok(());
        }
        while let Some((request, descriptors)) = self.receive()? {
            let working = self.retainer.working.read();
            let working = working.unwrap_or_else(PoisonError::into_inner);
            let answer = answer(&self.retainer.payer, request.body, descriptors);
            self.reply(request.id, answer)?;
            drop(working);
        }
        Ok(())
    }

    fn greet(&self, id: u64, hello: &Hello) -> io::Result<bool> {
        if hello.version != VERSION {
            let why = format!("version {} is not spoken here", hello.version);
            self.reply(id, refuse(refused::Reason::Version, why))?;
            return Ok(false);
        }
        tracing::debug!(client = hello.client, "a client");
        let welcome = Welcome {
            version: VERSION,
            max_descriptors: u32::try_from(MAX_DESCRIPTORS).unwrap_or(u32::MAX),
            // Nobody keeps a stock on the retainer's bill.
            stock_bytes: 0,
        };
        self.reply(id, reply::Body::Welcome(welcome))?;
        Ok(true)
    }

    fn receive(&mut self) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
        loop {
            if let Some(frame) = self.frames.next().map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            match self.frames.fill(self.stream.as_fd()) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn reply(&self, id: u64, body: reply::Body) -> io::Result<()> {
        let reply = Reply {
            id,
            body: Some(body),
        };
        let frame = encode(&reply).map_err(io::Error::other)?;
        match send(self.stream.as_fd(), &frame, &[]) {
            // Who has gone needs no reply; the next read says so.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

/// Does what was asked. The descriptors are closed when this returns: whoever hears the reply may count on nobody else having
/// the files open.
fn answer(payer: &OwnPayer, body: Option<request::Body>, descriptors: Vec<OwnedFd>) -> reply::Body {
    let result = match body {
        Some(request::Body::Reserve(request)) => reserve(payer, &request.ranges, &descriptors),
        Some(request::Body::Pull(request)) => pull(payer, &request.ranges, &descriptors),
        Some(request::Body::GiveBack(_) | request::Body::GetUsage(_)) => Ok(usage()),
        Some(request::Body::Hello(_)) => Err(refuse(refused::Reason::Version, "a second hello")),
        None => Err(refuse(refused::Reason::Internal, "unknown request")),
    };
    result.unwrap_or_else(|refusal| refusal)
}

fn reserve(
    payer: &OwnPayer,
    ranges: &[Range],
    descriptors: &[OwnedFd],
) -> Result<reply::Body, reply::Body> {
    if ranges.len() != descriptors.len() {
        let why = format!(
            "{} ranges for {} descriptors",
            ranges.len(),
            descriptors.len()
        );
        return Err(refuse(refused::Reason::Range, why));
    }
    let mut extents = Vec::with_capacity(ranges.len());
    for (descriptor, range) in descriptors.iter().zip(ranges) {
        check_trusted(descriptor.as_fd(), Access::Reserve).map_err(foreign)?;
        extents.push((descriptor.as_fd(), extent(range)?));
    }
    payer.reserve(&extents).map_err(failed)?;
    Ok(reply::Body::Reserved(Reserved {}))
}

fn pull(
    payer: &OwnPayer,
    ranges: &[Range],
    descriptors: &[OwnedFd],
) -> Result<reply::Body, reply::Body> {
    let [file] = descriptors else {
        return Err(refuse(refused::Reason::Descriptor, "not one descriptor"));
    };
    check_trusted(file.as_fd(), Access::Pull).map_err(foreign)?;
    let extents = ranges.iter().map(extent).collect::<Result<Vec<_>, _>>()?;
    let regions: u64 = extents
        .iter()
        .map(|it| it.length.div_ceil(vineyard_charge::REGION))
        .fold(0, u64::saturating_add);
    if regions > MAX_REGIONS as u64 {
        let why = format!("{regions} regions, at most {MAX_REGIONS} are pulled at once");
        return Err(refuse(refused::Reason::Range, why));
    }
    let refused = payer.pull(file.as_fd(), &extents).map_err(failed)?;
    Ok(reply::Body::Pulled(Pulled { refused }))
}

/// What the cgroup is charged, and may be.
fn usage() -> reply::Body {
    let own = MemoryCgroup::own().ok();
    let limit = own.as_ref().and_then(|it| it.limit().ok().flatten());
    reply::Body::Usage(Usage {
        allowance_bytes: limit.unwrap_or(u64::MAX),
        spent_bytes: own.and_then(|it| it.usage().ok()).unwrap_or(0),
    })
}

fn extent(range: &Range) -> Result<Extent, reply::Body> {
    if range.length == 0 {
        return Err(refuse(refused::Reason::Range, "an empty range"));
    }
    Ok(Extent {
        offset: range.offset,
        length: range.length,
    })
}

fn foreign(error: DescriptorRefused) -> reply::Body {
    refuse(refused::Reason::Descriptor, error.to_string())
}

fn failed(error: ReserveError) -> reply::Body {
    match error {
        ReserveError::Full(full) => reply::Body::Full(full.into()),
        ReserveError::Refused { message } => refuse(refused::Reason::Range, message),
        other => refuse(refused::Reason::Internal, other.to_string()),
    }
}

fn refuse(reason: refused::Reason, message: impl Into<String>) -> reply::Body {
    reply::Body::Refused(Refused {
        reason: reason.into(),
        message: message.into(),
    })
}

/// Says that there are too many.
pub(super) fn turn_away(stream: &UnixStream) {
    let busy = Reply {
        id: NOBODY,
        body: Some(refuse(
            refused::Reason::Busy,
            "too many connections".to_owned(),
        )),
    };
    if let Ok(frame) = encode(&busy) {
        let _ = send(stream.as_fd(), &frame, &[]);
    }
}
