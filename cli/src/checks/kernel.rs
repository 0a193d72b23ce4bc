//! The kernel and what it lets this user do, found out by trying.

use std::path::Path;

use vineyard_charge::probe::{Answer, Capabilities, Capability};

use super::{Check, Status};

/// Without these nothing works; without the others something works less well, or for other users only.
const NEEDED: [&str; 2] = ["kernel", "openat2"];

/// Tries everything, also in the volume's directory when there is one.
pub(crate) fn checks(directory: &Path) -> Vec<Check> {
    let volume = directory.is_dir().then_some(directory);
    Capabilities::probe(volume)
        .0
        .into_iter()
        .map(check)
        .collect()
}

fn check(capability: Capability) -> Check {
    let Capability {
        name,
        answer,
        found,
        meaning,
    } = capability;
    let status = match answer {
        Answer::Yes => Status::Ok,
        Answer::No if NEEDED.contains(&name) => Status::Problem,
        Answer::No | Answer::Unknown => Status::Note,
    };
    let advice = (!meaning.is_empty()).then(|| meaning.to_owned());
    Check {
        area: "kernel and privileges".into(),
        name: name.into(),
        status,
        found,
        advice,
    }
}
