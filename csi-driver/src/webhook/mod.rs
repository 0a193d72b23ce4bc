//! The mutating webhook: each pod that uses a claim of ours gets its sockets, each one that writes also the sidecar that pays.
//!
//! The retainer's pods begin with what their nodes retain. It writes nothing but its certificates, so a review changes nothing whether it is dry or not. When it is away, pods start
//! without it (failurePolicy Ignore), and a node refuses those that would write: `docs/reference/injection.md`.

mod affinity;
mod annotations;
mod authority;
mod error;
mod facts;
mod inject;
mod lookup;
mod presence;
pub(crate) mod quantity;
mod replace;
mod retained;
mod review;
mod server;
mod sidecar;
#[cfg(test)]
mod tests;
mod tls;
mod trust;

pub(crate) use authority::Lifetimes;
pub(crate) use lookup::Lookup;
pub(crate) use presence::Presence;
pub(crate) use retained::Retained;
pub(crate) use review::Reviewer;
pub(crate) use server::Webhook;
pub(crate) use sidecar::Settings;
pub(crate) use tls::{Certificates, Rotation};
pub(crate) use trust::Trust;
