//! What operators look at: events. Nothing here is on the way of a call, and nothing here can make one fail.

pub(crate) mod events;

pub(crate) use events::{Events, Reason, Subject};
