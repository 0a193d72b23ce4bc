//! What `doctor` looks at, area by area. A check never changes anything.

pub(crate) mod kernel;
pub(crate) mod process;
pub(crate) mod sidecar;
pub(crate) mod volume;

use serde::Serialize;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Something works less well, or not for this user.
    Note,
    /// Something that is needed is missing.
    Problem,
}

/// One line of the doctor's report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) area: &'static str,
    pub(crate) status: Status,
    /// What was found.
    pub(crate) found: String,
    /// What it costs, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

impl Check {
    /// As it should be.
    pub(crate) fn ok(area: &'static str, found: impl Into<String>) -> Self {
        Self {
            area,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    /// Works less well.
    pub(crate) fn note(
        area: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            area,
            status: Status::Note,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    /// Does not work.
    pub(crate) fn problem(
        area: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            area,
            status: Status::Problem,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}
