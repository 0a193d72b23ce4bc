//! What a request must look like before anything is looked up: checked here and nowhere else.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use vineyard_proto::csi::VolumeCapability;
use vineyard_proto::csi::volume_capability::{AccessType, MountVolume, access_mode::Mode};

use crate::mount::Flags;
use crate::volume::{AccessMode, PodUid, VolumeId};

/// The specification's limits, in bytes.
const STRING: usize = 128;
const MAP: usize = 4 << 10;
const MOUNT_FLAGS: usize = 4 << 10;
/// The kernel's limit of a path, with its final NUL.
const PATH: usize = 4096;

/// What is wrong with a request.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// A required field is not set.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field is larger than the specification allows.
    #[error("{field} has {length} bytes, the most are {most}")]
    TooLong {
        /// Which.
        field: &'static str,
        /// Its size.
        length: usize,
        /// Its limit.
        most: usize,
    },
    /// A name with characters that the specification forbids.
    #[error("name has control characters")]
    Control,
    /// A path that is relative, has `.` or `..`, or ends nowhere.
    #[error("{field} {path:?} is not a plain absolute path")]
    Path {
        /// Which.
        field: &'static str,
        /// What it says.
        path: String,
    },
    /// A path that is none of kubelet's.
    #[error("{field} {path:?} is not below kubelet's directory")]
    Outside {
        /// Which.
        field: &'static str,
        /// Where it leads.
        path: String,
    },
    /// A capability that no volume of ours has.
    #[error("volume_capability: {0} is not supported")]
    Unsupported(String),
}

/// A capability that some volume of ours may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capability {
    /// Who may use it at the same time.
    pub(crate) access_mode: AccessMode,
    /// Flags of the mount.
    pub(crate) flags: Flags,
    /// SELinux context of the file system.
    pub(crate) context: Option<String>,
}

/// Takes a `volume_id`. `None` inside: well-formed, but no volume of ours can have it.
///
/// # Errors
/// When it is missing or too long.
pub(crate) fn volume_id(text: &str) -> Result<Option<VolumeId>, Invalid> {
    present("volume_id", text)?;
    Ok(VolumeId::parse(text))
}

/// Takes the name of a volume.
///
/// # Errors
/// When it is missing, too long, or has control characters.
pub(crate) fn name(text: &str) -> Result<&str, Invalid> {
    present("name", text)?;
    if text.chars().any(char::is_control) {
        return Err(Invalid::Control);
    }
    Ok(text)
}

/// Checks the size of a map of strings.
///
/// # Errors
/// When it is too large.
pub(crate) fn map(field: &'static str, map: &HashMap<String, String>) -> Result<(), Invalid> {
    let length = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    within(field, length, MAP)
}

fn present(field: &'static str, text: &str) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(Invalid::Missing(field));
    }
    within(field, text.len(), STRING)
}

fn within(field: &'static str, length: usize, most: usize) -> Result<(), Invalid> {
    if length > most {
        return Err(Invalid::TooLong {
            field,
            length,
            most,
        });
    }
    Ok(())
}

/// Takes one capability.
///
/// # Errors
/// When it or a part of it is missing, or is not supported.
pub(crate) fn capability(capability: Option<&VolumeCapability>) -> Result<Capability, Invalid> {
    let capability = capability.ok_or(Invalid::Missing("volume_capability"))?;
    let mount = match &capability.access_type {
        None => return Err(Invalid::Missing("volume_capability.access_type")),
        Some(AccessType::Block(_)) => return Err(Invalid::Unsupported("block access".into())),
        Some(AccessType::Mount(mount)) => mount,
    };
    let mode = capability
        .access_mode
        .ok_or(Invalid::Missing("volume_capability.access_mode"))?;
    let mode = Mode::try_from(mode.mode).unwrap_or_default();
    if mode == Mode::Unknown {
        return Err(Invalid::Missing("volume_capability.access_mode.mode"));
    }
    let access_mode = AccessMode::of(mode)
        .ok_or_else(|| Invalid::Unsupported(format!("access mode {}", mode.as_str_name())))?;
    let (flags, context) = mount_flags(mount)?;
    Ok(Capability {
        access_mode,
        flags,
        context,
    })
}

/// Takes the capabilities of a request; there is at least one.
///
/// # Errors
/// For the first that is wrong.
pub(crate) fn capabilities(all: &[VolumeCapability]) -> Result<Vec<Capability>, Invalid> {
    if all.is_empty() {
        return Err(Invalid::Missing("volume_capabilities"));
    }
    all.iter().map(|each| capability(Some(each))).collect()
}

fn mount_flags(mount: &MountVolume) -> Result<(Flags, Option<String>), Invalid> {
    if !matches!(mount.fs_type.as_str(), "" | "tmpfs") {
        return Err(Invalid::Unsupported(format!("fs_type {:?}", mount.fs_type)));
    }
    if !mount.volume_mount_group.is_empty() {
        return Err(Invalid::Unsupported("volume_mount_group".into()));
    }
    let length = mount.mount_flags.iter().map(String::len).sum();
    within("mount_flags", length, MOUNT_FLAGS)?;
    let (mut flags, mut context) = (Flags::default(), None);
    for flag in &mount.mount_flags {
        match flag.as_str() {
            "ro" => flags.read_only = true,
            "noexec" => flags.no_exec = true,
            "noatime" => flags.no_atime = true,
            // What every mount of ours is anyway.
            "rw" | "nosuid" | "nodev" | "relatime" => {}
            other => context = Some(selinux_context(other)?),
        }
    }
    Ok((flags, context))
}

fn selinux_context(flag: &str) -> Result<String, Invalid> {
    let refused = || Invalid::Unsupported(format!("mount flag {flag:?}"));
    let value = flag.strip_prefix("context=").ok_or_else(refused)?;
    let value = value.trim_matches('"');
    // It is put between quotes into the options of mount(2).
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | ',' | '_' | '-' | '.');
    if value.is_empty() || !value.chars().all(plain) {
        return Err(refused());
    }
    Ok(value.to_owned())
}

/// The directories that targets may be in.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    roots: Vec<PathBuf>,
}

impl Targets {
    /// Targets below any of `roots`; a root that does not exist yet is taken as it is.
    pub(crate) fn new(roots: &[PathBuf]) -> Self {
        Self {
            roots: roots.iter().map(|root| real(root)).collect(),
        }
    }

    /// Takes a path of a request, with the symlinks of everything but its last part resolved, as the kernel's table shows it.
    ///
    /// # Errors
    /// When it is missing, too long, relative, has `..`, or leads out of every root.
    pub(crate) fn take(&self, field: &'static str, text: &str) -> Result<PathBuf, Invalid> {
        if text.is_empty() {
            return Err(Invalid::Missing(field));
        }
        within(field, text.len(), PATH - 1)?;
        let wrong = || Invalid::Path {
            field,
            path: text.to_owned(),
        };
        let path = Path::new(text);
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || text.contains('\0') || !path.components().all(plain) {
            return Err(wrong());
        }
        // `components` passes over `/./`.
        if text.split('/').any(|part| part == ".") {
            return Err(wrong());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(wrong());
        };
        let path = real(parent).join(name);
        if !self
            .roots
            .iter()
            .any(|root| path.starts_with(root) && path != *root)
        {
            return Err(Invalid::Outside {
                field,
                path: path.display().to_string(),
            });
        }
        Ok(path)
    }

    /// The pod that a target path, as [`take`](Self::take) returned it, belongs to: kubelet alone makes directories
    /// `pods/<uid>/volumes/…`, so this is the one identity that nobody else can claim.
    pub(crate) fn pod(&self, path: &Path) -> Option<PodUid> {
        let below = self
            .roots
            .iter()
            .find_map(|root| path.strip_prefix(root).ok())?;
        let mut parts = below.iter();
        let (pods, uid, volumes) = (parts.next()?, parts.next()?, parts.next()?);
        (pods == "pods" && volumes == "volumes").then_some(())?;
        PodUid::parse(uid.to_str()?)
    }
}

/// The path without symlinks as far as it exists.
fn real(path: &Path) -> PathBuf {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => real(parent).join(name),
                _ => path.to_owned(),
            }
        }
        other => other.unwrap_or_else(|_| path.to_owned()),
    }
}

#[cfg(test)]
#[path = "validation_tests.rs"]
mod tests;
