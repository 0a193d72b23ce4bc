//! The webhook, whole: pods by table, claims in a Kubernetes that is played, reviews and certificates over real TLS, and (when there is
//! one) a real API server.

pub(super) mod api;
mod https;
mod kubernetes;
mod lookup;
mod pods;
mod retained;
mod rotation;

use super::Settings;
use crate::bytes::Bytes;

fn settings() -> Settings {
    Settings {
        image: "vineyard/sidecar:test".into(),
        overhead: Bytes(32 << 20),
        cpu: 10,
    }
}
