//! Who is billed for the bytes of a volume: hand-over to the retainer.

pub(crate) mod handover;
pub(crate) mod retainer;
