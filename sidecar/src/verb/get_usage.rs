//! `GetUsage`: the allowance and what is spent of it.

use vineyard_proto::payer::{Usage, reply::Body as Reply};

use crate::service::Service;

pub(super) fn answer(service: &Service) -> Reply {
    let usage = service.bill.usage();
    Reply::Usage(Usage {
        allowance_bytes: usage.allowance,
        spent_bytes: usage.spent,
    })
}
