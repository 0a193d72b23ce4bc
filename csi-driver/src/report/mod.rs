//! What operators look at: events, what nodes write into the records, and the web page. Nothing here is on the way of a call, and nothing here can make one fail.

pub(crate) mod events;
mod page;
mod reporter;

pub(crate) use events::{Events, Reason, Subject};
pub(crate) use page::Page;
pub(crate) use reporter::Reporter;
