//! The verbs, a file each: its arguments, what it does, what it prints.

pub(crate) mod bench;
pub(crate) mod charges;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod fsck;
pub(crate) mod get;
pub(crate) mod ls;
pub(crate) mod put;
pub(crate) mod recharge;
pub(crate) mod rm;
pub(crate) mod stat;
pub(crate) mod top;
pub(crate) mod wait;
