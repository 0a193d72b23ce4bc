//! `GiveBack`: bytes that a client freed.

use vineyard_proto::payer::{GiveBack, reply::Body as Reply};

use super::get_usage;
use crate::service::Service;

pub(super) fn answer(service: &Service, ask: GiveBack) -> Reply {
    service.metrics.given_back(ask.bytes);
    if service.bill.give_back(ask.bytes) {
        service.settle.notify_one();
    }
    get_usage::answer(service)
}
