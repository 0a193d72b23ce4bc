//! Parameters of a storage class (`parameters`) and of a volume attributes class (`mutable_parameters`).
//!
//! A key that is not documented here is refused, so that a typing error is not a silent default.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to a volume whose memory is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnLoss {
    /// It cannot be staged any more; its user deletes it.
    #[default]
    Fail,
    /// The next stage makes it anew, empty, under a new epoch and generation.
    Recreate,
}

/// The typed parameters of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Parameters {
    /// `onLoss`: `fail` (default) or `recreate`. May be changed later.
    pub(crate) on_loss: OnLoss,
    /// `inodes`: the most files, directories and names, 64 to 2^32 - 1. Default: two for each page of the capacity, and 1,024.
    pub(crate) inodes: Option<u64>,
}

/// Why parameters are refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ParameterError {
    /// No such key.
    #[error("unknown parameter {0:?}; known: onLoss, inodes")]
    Unknown(String),
    /// The key is known, but only a storage class may have it.
    #[error("parameter {0:?} cannot be changed later; changeable: onLoss")]
    Immutable(String),
    /// The value is none of the key's.
    #[error("parameter {key} is {value:?}, not {expected}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

/// What the provisioner adds about the claim, and everything else below Kubernetes' own prefix.
const KUBERNETES: &str = "csi.storage.k8s.io/";

const INODES: std::ops::RangeInclusive<u64> = 64..=u32::MAX as u64;

impl Parameters {
    /// Reads a storage class' parameters; `mutable` ones win.
    ///
    /// # Errors
    /// [`ParameterError`] for the first that is refused, in order of the keys.
    pub(crate) fn parse(
        fixed: &HashMap<String, String>,
        mutable: &HashMap<String, String>,
    ) -> Result<Self, ParameterError> {
        let mut parameters = Self::default();
        for (key, value) in fixed.iter().collect::<BTreeMap<_, _>>() {
            match key.as_str() {
                "onLoss" => parameters.on_loss = on_loss(value)?,
                "inodes" => parameters.inodes = Some(inodes(value)?),
                other if other.starts_with(KUBERNETES) => {}
                other => return Err(ParameterError::Unknown(other.to_owned())),
            }
        }
        parameters.modified(mutable)
    }

    /// These parameters with the given keys changed; nothing is changed when one of them is refused.
    ///
    /// # Errors
    /// [`ParameterError`] for the first that is refused, in order of the keys.
    pub(crate) fn modified(
        &self,
        mutable: &HashMap<String, String>,
    ) -> Result<Self, ParameterError> {
        let mut parameters = self.clone();
        for (key, value) in mutable.iter().collect::<BTreeMap<_, _>>() {
            match key.as_str() {
                "onLoss" => parameters.on_loss = on_loss(value)?,
                "inodes" => return Err(ParameterError::Immutable(key.clone())),
                other => return Err(ParameterError::Unknown(other.to_owned())),
            }
        }
        Ok(parameters)
    }
}

fn on_loss(value: &str) -> Result<OnLoss, ParameterError> {
    match value {
        "fail" => Ok(OnLoss::Fail),
        "recreate" => Ok(OnLoss::Recreate),
        other => Err(ParameterError::Value {
            key: "onLoss",
            value: other.to_owned(),
            expected: "fail or recreate",
        }),
    }
}

fn inodes(value: &str) -> Result<u64, ParameterError> {
    let count = value.parse().ok().filter(|count| INODES.contains(count));
    count.ok_or_else(|| ParameterError::Value {
        key: "inodes",
        value: value.to_owned(),
        expected: "a number from 64 to 4294967295",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn mutable_parameters_win_and_kubernetes_own_keys_pass() {
        let fixed = map(&[
            ("onLoss", "fail"),
            ("inodes", "100"),
            ("csi.storage.k8s.io/pvc/name", "x"),
        ]);
        let parsed = Parameters::parse(&fixed, &map(&[("onLoss", "recreate")])).unwrap();
        assert_eq!(
            parsed,
            Parameters {
                on_loss: OnLoss::Recreate,
                inodes: Some(100)
            }
        );
        assert_eq!(
            Parameters::parse(&map(&[]), &map(&[])),
            Ok(Parameters::default())
        );
    }

    #[test]
    fn unknown_keys_and_values_are_refused_by_name() {
        let parse = |pairs: &[(&str, &str)]| Parameters::parse(&map(pairs), &map(&[]));
        assert_eq!(
            parse(&[("onloss", "fail")]),
            Err(ParameterError::Unknown("onloss".into()))
        );
        assert!(matches!(
            parse(&[("onLoss", "")]),
            Err(ParameterError::Value { key: "onLoss", .. })
        ));
        for value in ["63", "4294967296", "-1", "many"] {
            assert!(matches!(
                parse(&[("inodes", value)]),
                Err(ParameterError::Value { .. })
            ));
        }
    }

    #[test]
    fn what_cannot_change_later_is_refused_and_changes_nothing() {
        let before = Parameters::default();
        let asked = map(&[("inodes", "100"), ("onLoss", "recreate")]);
        assert_eq!(
            before.modified(&asked),
            Err(ParameterError::Immutable("inodes".into()))
        );
        assert_eq!(before.modified(&map(&[])), Ok(before));
    }
}
