//! `Hello`: the versions must match; a client from before a restart says what it still holds.

use vineyard_charge::wire::MAX_DESCRIPTORS;
use vineyard_proto::payer::{Hello, Welcome, refused::Reason, reply::Body as Reply};

use super::{Answer, Session, refuse};
use crate::service::Service;

/// The version of the protocol.
const VERSION: u32 = 1;

/// A client's name is for logs: longer ones are cut.
const MAX_NAME: usize = 200;

/// A stock is a small share of what is free: an eighth.
const STOCK_SHARE: u64 = 8;

pub(super) fn answer(service: &Service, session: &mut Session, ask: &Hello) -> Answer {
    if ask.version != VERSION {
        let message = format!("version {} is spoken here, not {}", VERSION, ask.version);
        return Answer::Last(refuse(Reason::Version, message));
    }
    session.client = Some(ask.client.chars().take(MAX_NAME).collect());
    service.bill.readmit(ask.held_bytes);
    Answer::Reply(Reply::Welcome(Welcome {
        version: VERSION,
        max_descriptors: u32::try_from(MAX_DESCRIPTORS).unwrap_or(u32::MAX),
        stock_bytes: service
            .limits
            .stock
            .min(service.bill.usage().free() / STOCK_SHARE),
    }))
}
