//! Who is billed for the bytes of a volume: what each pod was granted, and the hand-over to the retainer.

pub(crate) mod book;
pub(crate) mod grants;
pub(crate) mod handover;
pub(crate) mod retainer;

pub(crate) use book::{Book, PodBill};
pub(crate) use grants::{AllowanceRule, WritableClaim};
