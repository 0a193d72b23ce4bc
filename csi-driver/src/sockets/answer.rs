//! What a pod may ask the driver, and what it hears.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::task;
use vineyard_charge::descriptor::{self, Access, DescriptorRefused, Device};
use vineyard_charge::{Extent, Full, Limit, PAGE, ReserveError};
use vineyard_proto::node::refused::Reason;
use vineyard_proto::node::{self as wire, reply::Body as Reply};
use vineyard_proto::node::{Devices, Grant, Granted, Hello, Left, Measured, Refused, Welcome};
use vineyard_proto::payer::{Range, Reserve, Reserved};

use super::BillingError;
use super::claims::{Claim, LookupError};
use super::listener::Pod;
use super::service::{LeaveError, Service};
use crate::bill::PodBill;
use crate::bill::grants::Granting;
use crate::bytes::Bytes;
use crate::volume::PodUid;

/// The version of the protocol.
const VERSION: u32 = 1;

/// A sidecar's name is for logs: longer ones are cut.
const MAX_NAME: usize = 200;

/// What a connection remembers once a sidecar has said hello.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Greater than that of every earlier one of the pod.
    pub(super) number: u64,
    /// The devices that its pod may write, when it asked last.
    devices: Arc<[Device]>,
}

/// Welcomes a sidecar, or says why not.
pub(super) async fn hello(
    service: &Service,
    pod: &Pod,
    hello: &Hello,
) -> Result<(Session, Reply), Reply> {
    if hello.version != VERSION {
        let message = format!("version {VERSION} is spoken here, not {}", hello.version);
        return Err(refuse(Reason::Version, message));
    }
    let uid = &pod.uid;
    let (claims, bill) = look_up(service, uid).await?;
    let granter = &service.granter;
    if bill.leaving.is_some() && !hello.leaving {
        // The bill first: killed in between, the next hello does it again.
        service.billing.returned(uid).await.map_err(unbilled)?;
    }
    let granted = Bytes(hello.granted_bytes);
    let bill = granter
        .readmit(uid, granted, hello.leaving)
        .map_err(unrecorded)?;
    let mut number = 0;
    pod.session.send_modify(|latest| {
        *latest += 1;
        number = *latest;
    });
    let sidecar: String = hello.sidecar.chars().take(MAX_NAME).collect();
    let (granted, allowance) = (bill.granted, bill.allowance.unwrap_or_default());
    tracing::info!(pod.uid = %uid, sidecar, %granted, %allowance, volumes = claims.len(), "a sidecar");
    let welcome = Welcome {
        version: VERSION,
        granted_bytes: granted.0,
        allowance_bytes: allowance.0,
        chunk_bytes: granter.chunk.0,
        devices: on_the_wire(&claims),
    };
    let devices = claims.iter().map(|claim| claim.device).collect();
    Ok((Session { number, devices }, Reply::Welcome(welcome)))
}

/// Grants a total.
pub(super) async fn grant(service: &Service, pod: &Pod, ask: Grant) -> Reply {
    let uid = &pod.uid;
    let total = Bytes(ask.total_bytes);
    let answer = match service.granter.grant(uid, total) {
        Ok(answer) => answer,
        Err(error) => return unrecorded(error),
    };
    let Some(bill) = service.granter.book.get(uid) else {
        return unrecorded(io::ErrorKind::NotFound.into());
    };
    match answer {
        Granting::Granted(total) => {
            // Somebody still puts while the pod leaves: what the bill expects grows with it.
            if bill.leaving.is_some_and(|at_most| at_most < total) {
                pod.turn().await;
                if let Err(error) = service.leave(uid).await {
                    return left_open(error);
                }
            }
            Reply::Granted(Granted {
                total_bytes: total.0,
                allowance_bytes: bill.allowance.unwrap_or_default().0,
            })
        }
        Granting::Full { free, allowance } => {
            let full = Full {
                asked: total.0.saturating_sub(bill.granted.0),
                free: free.0,
                limit: Limit::Allowance,
                limit_bytes: allowance.0,
            };
            Reply::Full(full.into())
        }
    }
}

/// Looks up the devices again.
pub(super) async fn devices(service: &Service, pod: &PodUid, session: &mut Session) -> Reply {
    let (claims, bill) = match look_up(service, pod).await {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    session.devices = claims.iter().map(|claim| claim.device).collect();
    Reply::Devices(Devices {
        devices: on_the_wire(&claims),
        allowance_bytes: bill.allowance.unwrap_or_default().0,
    })
}

/// The pod's claims, and its record with the allowance that is decided when it has some.
async fn look_up(service: &Service, pod: &PodUid) -> Result<(Vec<Claim>, PodBill), Reply> {
    let claims = service.claims.of(pod).await.map_err(unavailable)?;
    let all: Vec<_> = claims.iter().map(|claim| claim.claim.clone()).collect();
    let decided = service.granter.decide(pod, &all).await;
    Ok((claims, decided.map_err(unrecorded)?))
}

/// Surveys what is charged to the pod.
pub(super) async fn measure(service: &Service, pod: &PodUid) -> Reply {
    match service.billing.measure(pod).await {
        Ok(charged) => Reply::Measured(Measured {
            charged_bytes: charged.0,
        }),
        Err(error) => unbilled(error),
    }
}

/// Has the retainer reserve what the allowance does not cover.
pub(super) async fn reserve(
    service: &Service,
    pod: &PodUid,
    mut session: Session,
    ask: Reserve,
    descriptors: Vec<OwnedFd>,
) -> Reply {
    let mut checked = check(&ask.ranges, &descriptors, &session.devices);
    if matches!(
        checked,
        Err(Unfit::Descriptor(_, DescriptorRefused::Foreign { .. }))
    ) {
        // A volume that was published since.
        devices(service, pod, &mut session).await;
        checked = check(&ask.ranges, &descriptors, &session.devices);
    }
    let extents = match checked {
        Ok(extents) => extents,
        Err(unfit) => {
            // Strangers: closing them may take any time.
            let _ = task::spawn_blocking(move || drop(descriptors)).await;
            let reason = match unfit {
                Unfit::Count(..) | Unfit::Descriptor(..) => Reason::Descriptor,
                Unfit::Range(..) => Reason::Range,
            };
            return refuse(reason, unfit.to_string());
        }
    };
    let files = descriptors.into_iter().zip(extents).collect();
    match service.billing.reserve_retained(pod, files).await {
        Ok(()) => Reply::Reserved(Reserved {}),
        Err(ReserveError::Full(full)) => Reply::Full(full.into()),
        Err(ReserveError::Unreachable(error)) => {
            refuse(Reason::Unavailable, format!("the retainer: {error}"))
        }
        Err(error) => refuse(Reason::Internal, error.to_string()),
    }
}

/// Why a Reserve is none.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("{0} ranges for {1} descriptors")]
    Count(usize, usize),
    #[error("descriptor {0}: {1}")]
    Descriptor(usize, DescriptorRefused),
    #[error("range {0}: {2} bytes at {1} are no range of a file")]
    Range(usize, u64, u64),
}

fn check(
    ranges: &[Range],
    descriptors: &[OwnedFd],
    devices: &[Device],
) -> Result<Vec<Extent>, Unfit> {
    if ranges.len() != descriptors.len() {
        return Err(Unfit::Count(ranges.len(), descriptors.len()));
    }
    let mut extents = Vec::with_capacity(ranges.len());
    for (index, (&Range { offset, length }, file)) in ranges.iter().zip(descriptors).enumerate() {
        descriptor::check(file.as_fd(), devices, Access::Reserve)
            .map_err(|refused| Unfit::Descriptor(index, refused))?;
        let end = offset.checked_add(length);
        let end = end.and_then(|end| end.checked_next_multiple_of(PAGE));
        if length == 0 || end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Unfit::Range(index, offset, length));
        }
        extents.push(Extent { offset, length });
    }
    Ok(extents)
}

/// The pod leaves.
pub(super) async fn leaving(service: &Service, pod: &PodUid) -> Reply {
    match service.leave(pod).await {
        Ok(()) => {
            tracing::info!(pod.uid = %pod, "a pod leaves");
            Reply::Left(Left {})
        }
        Err(error) => left_open(error),
    }
}

pub(super) fn refuse(reason: Reason, message: impl Into<String>) -> Reply {
    Reply::Refused(Refused {
        reason: reason.into(),
        message: message.into(),
    })
}

fn on_the_wire(claims: &[Claim]) -> Vec<wire::Device> {
    let device = |claim: &Claim| wire::Device {
        major: claim.device.major,
        minor: claim.device.minor,
    };
    claims.iter().map(device).collect()
}

fn unavailable(error: LookupError) -> Reply {
    refuse(Reason::Unavailable, error.to_string())
}

fn unrecorded(error: io::Error) -> Reply {
    refuse(Reason::Internal, format!("the record of grants: {error}"))
}

fn unbilled(error: BillingError) -> Reply {
    refuse(Reason::Unavailable, error.to_string())
}

fn left_open(error: LeaveError) -> Reply {
    refuse(Reason::Unavailable, error.to_string())
}
