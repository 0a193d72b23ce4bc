//! A payer process as small as can be: serves an [`OwnPayer`] over a socket until its listener goes.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test binary uses its own part"
)]

#[cfg(feature = "control")]
pub mod ground;
#[cfg(feature = "control")]
pub mod roles;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vineyard_charge::wire::{Frames, encode, send};
use vineyard_charge::{Extent, OwnPayer, Payer, ReserveError};
use vineyard_proto::payer::{
    Pulled, Range, Refused, Reply, Request, Reserved, Usage, Welcome, refused, reply, request,
};

/// How long anything may take before it hangs: as many times longer as `VINEYARD_PATIENCE` says, for emulated machines.
pub fn patience() -> Duration {
    let times = std::env::var("VINEYARD_PATIENCE").ok();
    let times = times.and_then(|times| times.parse().ok()).unwrap_or(1);
    Duration::from_secs(60) * times
}

/// Serves each connection on a thread of its own.
pub fn serve(listener: &UnixListener) {
    let payer = Arc::new(OwnPayer::new());
    while let Ok((stream, _)) = listener.accept() {
        let payer = Arc::clone(&payer);
        // A client that goes away ends its connection, not the payer.
        thread::spawn(move || converse(&stream, &*payer, usize::MAX));
    }
}

/// Serves at most `most` requests of one connection, the hello included.
pub fn converse(stream: &UnixStream, payer: &dyn Payer, most: usize) -> io::Result<()> {
    let mut frames = Frames::new();
    for _ in 0..most {
        let (request, fds) = loop {
            match frames.next::<Request>() {
                Ok(Some(frame)) => break frame,
                Ok(None) => {
                    if frames.fill(stream.as_fd())? == 0 {
                        return Ok(());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        };
        let result = match request.body {
            Some(request::Body::Hello(_)) => Ok(reply::Body::Welcome(Welcome {
                version: 1,
                max_descriptors: 200,
                stock_bytes: 1 << 20,
            })),
            Some(request::Body::Reserve(reserve)) => {
                let extents: Vec<_> = fds
                    .iter()
                    .map(AsFd::as_fd)
                    .zip(extents(&reserve.ranges))
                    .collect();
                payer
                    .reserve(&extents)
                    .map(|()| reply::Body::Reserved(Reserved {}))
            }
            Some(request::Body::Pull(pull)) => payer
                .pull(fds[0].as_fd(), &extents(&pull.ranges))
                .map(|refused| reply::Body::Pulled(Pulled { refused })),
            Some(request::Body::GiveBack(_) | request::Body::GetUsage(_)) => {
                Ok(reply::Body::Usage(Usage {
                    allowance_bytes: 7,
                    spent_bytes: 3,
                }))
            }
            None => return Err(io::ErrorKind::InvalidData.into()),
        };
        // Whoever gets the reply may count on nobody else having the files open.
        drop(fds);
        let body = match result {
            Ok(body) => body,
            Err(ReserveError::Full(full)) => reply::Body::Full(full.into()),
            Err(error) => reply::Body::Refused(Refused {
                reason: refused::Reason::Internal.into(),
                message: error.to_string(),
            }),
        };
        let reply = Reply {
            id: request.id,
            body: Some(body),
        };
        send(
            stream.as_fd(),
            &encode(&reply).map_err(io::Error::other)?,
            &[],
        )?;
    }
    Ok(())
}

fn extents(ranges: &[Range]) -> Vec<Extent> {
    ranges
        .iter()
        .map(|r| Extent {
            offset: r.offset,
            length: r.length,
        })
        .collect()
}
