//! What a pod says about its injection: the annotations `vineyard.io/…`, read here and nowhere else. Pure.

use k8s_openapi::api::core::v1::Pod;

use super::error::Refusal;
use super::quantity;
use super::sidecar::Overrides;
use crate::bytes::Bytes;

/// `enabled` or `disabled`.
const INJECT: &str = "vineyard.io/inject";
/// Bytes that the pod may add to its bill.
pub(super) const WRITES: &str = "vineyard.io/writes";
/// Name of the volume that `vineyard.open()` opens.
const VOLUME: &str = "vineyard.io/volume";
const IMAGE: &str = "vineyard.io/sidecar-image";
const OVERHEAD: &str = "vineyard.io/sidecar-overhead";
const CPU: &str = "vineyard.io/sidecar-cpu";

/// Whether to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// As the claims are.
    Unsaid,
    /// Also for claims that do not exist yet.
    Enabled,
    /// Not at all.
    Disabled,
}

/// Everything that a pod says.
#[derive(Clone, Debug)]
pub(super) struct Annotations {
    /// Whether to inject.
    pub(super) wish: Wish,
    /// The volume that `vineyard.open()` opens.
    pub(super) volume: Option<String>,
    /// About the sidecar.
    pub(super) overrides: Overrides,
}

impl Annotations {
    /// Reads them.
    ///
    /// # Errors
    /// [`Refusal::Annotation`] for a value that the key does not take: a typing error is not a silent default.
    pub(super) fn of(pod: &Pod) -> Result<Self, Refusal> {
        let get = |key: &str| {
            pod.metadata
                .annotations
                .as_ref()?
                .get(key)
                .map(String::as_str)
        };
        let wish = match get(INJECT) {
            None => Wish::Unsaid,
            Some("enabled") => Wish::Enabled,
            Some("disabled") => Wish::Disabled,
            Some(value) => return Err(refusal(INJECT, value, "enabled or disabled")),
        };
        let size = |key: &'static str| -> Result<Option<Bytes>, Refusal> {
            get(key)
                .map(|value| {
                    let size = quantity::bytes(value);
                    size.ok_or_else(|| refusal(key, value, "a quantity such as 512Mi"))
                })
                .transpose()
        };
        let cpu = get(CPU).map(|value| {
            let cpu = quantity::millicores(value);
            cpu.ok_or_else(|| refusal(CPU, value, "a quantity such as 100m"))
        });
        let image = get(IMAGE).map(|value| match value.trim() {
            "" => Err(refusal(IMAGE, value, "the name of an image")),
            image => Ok(image.to_owned()),
        });
        Ok(Self {
            wish,
            volume: get(VOLUME).map(str::to_owned),
            overrides: Overrides {
                writes: size(WRITES)?,
                image: image.transpose()?,
                overhead: size(OVERHEAD)?,
                cpu: cpu.transpose()?,
            },
        })
    }
}

fn refusal(key: &'static str, value: &str, expected: &'static str) -> Refusal {
    Refusal::Annotation {
        key,
        value: value.to_owned(),
        expected,
    }
}
