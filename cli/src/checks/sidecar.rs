//! The sidecar: whether it answers, and what it may still spend.

use std::path::Path;

use vineyard_charge::RemotePayer;

use super::{Area, Check};
use crate::bytes::human;

const AREA: Area = Area("sidecar");

/// Checks the payer behind the socket.
pub(crate) fn checks(socket: Option<&Path>) -> Vec<Check> {
    let Some(socket) = socket else {
        return vec![AREA.note(
            "socket",
            "no socket is named",
            "Whoever puts is charged for it himself. Name one with --socket or VINEYARD_SOCKET.",
        )];
    };
    let usage = RemotePayer::connect(socket, "vineyard doctor").and_then(|payer| payer.usage());
    let usage = match usage {
        Ok(usage) => usage,
        Err(error) => {
            let advice = "Start it, or look at the mode of the socket and of its directory.";
            return vec![AREA.problem("socket", format!("{}: {error}", socket.display()), advice)];
        }
    };
    let found = format!(
        "{} answers, {} of {} spent",
        socket.display(),
        human(usage.spent_bytes),
        human(usage.allowance_bytes)
    );
    if usage.spent_bytes >= usage.allowance_bytes {
        let advice =
            "Nothing more can be put: remove what this pod has put, or raise its --allowance.";
        return vec![AREA.problem("allowance", found, advice)];
    }
    vec![AREA.ok("allowance", found)]
}
