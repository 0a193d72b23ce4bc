//! What this kernel and these privileges can do, found out by trying.

mod cgroups;
mod memory;
mod system;
mod volume;

use std::fmt;
use std::path::Path;

/// Whether something works here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It was tried, or read from the kernel: it works.
    Yes,
    /// It does not work here.
    No,
    /// It could not be tried.
    Unknown,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Answer::Yes => "ok",
            Answer::No => "no",
            Answer::Unknown => "unknown",
        })
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// A short name, stable for programs.
    pub name: &'static str,
    /// Whether it works.
    pub answer: Answer,
    /// What was found.
    pub found: String,
    /// What that means, and what can be done about it.
    pub meaning: &'static str,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<22} {}", self.answer, self.name, self.found)?;
        if self.meaning.is_empty() {
            return Ok(());
        }
        write!(f, ". {}", self.meaning)
    }
}

/// Everything that was tried, most important first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities(pub Vec<Capability>);

impl Capabilities {
    /// Tries everything. With `volume`, also in that directory: files are made there without a name, for a moment.
    /// Takes some milliseconds and a few MiB, billed to this process.
    pub fn probe(volume: Option<&Path>) -> Self {
        let mut all = Vec::new();
        all.extend(cgroups::probe());
        all.extend(memory::probe(volume));
        all.extend(volume::probe(volume));
        all.extend(system::probe());
        Self(all)
    }

    /// One of them, by its name.
    pub fn get(&self, name: &str) -> Option<&Capability> {
        self.0.iter().find(|capability| capability.name == name)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for capability in &self.0 {
            writeln!(f, "{capability}")?;
        }
        Ok(())
    }
}

/// Says what was found and, by the answer, what that means.
fn capability(
    name: &'static str,
    answer: Answer,
    found: impl Into<String>,
    [yes, no, unknown]: [&'static str; 3],
) -> Capability {
    let meaning = match answer {
        Answer::Yes => yes,
        Answer::No => no,
        Answer::Unknown => unknown,
    };
    Capability {
        name,
        answer,
        found: found.into(),
        meaning,
    }
}

/// `Ok` works; an error does not.
fn outcome<T, E>(result: &Result<T, E>) -> Answer {
    if result.is_ok() {
        Answer::Yes
    } else {
        Answer::No
    }
}

/// What was found, in words.
fn words<T, E: fmt::Display>(result: &Result<T, E>, works: &str) -> String {
    match result {
        Ok(_) => works.to_owned(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_answers_and_names_are_unique() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let all = Capabilities::probe(Some(directory.path()));
        let mut names: Vec<_> = all.0.iter().map(|c| c.name).collect();
        assert!(names.len() > 15);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.0.len());
        for capability in &all.0 {
            assert!(!capability.found.is_empty(), "{capability:?}");
            assert!(
                capability.answer == Answer::Yes || !capability.meaning.is_empty(),
                "{capability:?} does not say what to do"
            );
            assert!(!capability.to_string().contains('\n'));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_answer_too() {
        let all = Capabilities::probe(Some(Path::new("/nonexistent/volume")));
        assert_eq!(all.get("volume").unwrap().answer, Answer::No);
    }

    #[test]
    fn what_works_in_the_tests_is_not_reported_as_broken() {
        let all = Capabilities::probe(None);
        assert_eq!(
            all.get("page-owners").unwrap().answer == Answer::Yes,
            crate::survey::Surveyor::open().is_ok()
        );
        assert_eq!(
            all.get("memory-cgroup").unwrap().answer == Answer::Yes,
            crate::cgroup::MemoryCgroup::own().is_ok()
        );
    }
}
