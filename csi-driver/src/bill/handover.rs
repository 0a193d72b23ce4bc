//! The engine of a hand-over is `vineyard_charge::handover`; these are its types.

pub(crate) use vineyard_charge::handover::{HandOver, HandOverError, Outcome, Progress};
