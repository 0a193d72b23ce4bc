//! The sockets volume of each pod: a small directory that kubelet mounts into the pod, whose path is the pod's identity.
//! `driver/` has the driver's socket, `pod/` is for the sidecar's. `docs/design/sockets.md` has the protocol.

mod billing;

pub(crate) use billing::{Billing, BillingError, Unbilled};
