//! Who pays for a page of tmpfs, and how to change it: reserve, pull, survey and recharge.

pub mod payer;

pub use payer::{Extent, Full, Limit, Payer, ReserveError};
