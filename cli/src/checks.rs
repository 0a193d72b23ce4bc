//! What `doctor` looks at, area by area. A check never changes anything.

pub(crate) mod kernel;
pub(crate) mod process;
pub(crate) mod sidecar;
pub(crate) mod volume;

use std::borrow::Cow;

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
    pub(crate) area: Cow<'static, str>,
    /// Stable for programs.
    pub(crate) name: Cow<'static, str>,
    pub(crate) status: Status,
    /// What was found.
    pub(crate) found: String,
    /// What it costs, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

/// The checks of one area.
#[derive(Debug)]
struct Area(&'static str);

impl Area {
    /// As it should be.
    fn ok(&self, name: &'static str, found: impl Into<String>) -> Check {
        self.check(name, Status::Ok, found, None)
    }

    /// Works less well.
    fn note(&self, name: &'static str, found: impl Into<String>, advice: &str) -> Check {
        self.check(name, Status::Note, found, Some(advice))
    }

    /// Does not work.
    fn problem(&self, name: &'static str, found: impl Into<String>, advice: &str) -> Check {
        self.check(name, Status::Problem, found, Some(advice))
    }

    fn check(
        &self,
        name: &'static str,
        status: Status,
        found: impl Into<String>,
        advice: Option<&str>,
    ) -> Check {
        Check {
            area: self.0.into(),
            name: name.into(),
            status,
            found: found.into(),
            advice: advice.map(str::to_owned),
        }
    }
}
