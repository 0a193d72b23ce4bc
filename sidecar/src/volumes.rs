//! The volumes that this pod may write: which descriptors are accepted, and how much the volumes hold.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use nix::sys::statvfs::{Statvfs, statvfs};
use vineyard_charge::descriptor::Device;

/// The volumes: those of the command line, or those that the node driver says.
#[derive(Debug)]
pub(crate) struct Volumes {
    paths: Vec<PathBuf>,
    devices: RwLock<Arc<[Device]>>,
}

/// A path that is no volume.
#[derive(Debug, thiserror::Error)]
#[error("volume {}: {source}", path.display())]
pub(crate) struct VolumeError {
    path: PathBuf,
    source: io::Error,
}

impl Volumes {
    /// Looks up the devices of the volumes mounted at `paths`.
    ///
    /// # Errors
    /// When a path does not exist.
    pub(crate) fn open(paths: Vec<PathBuf>) -> Result<Self, VolumeError> {
        let mut devices = Vec::with_capacity(paths.len());
        for path in &paths {
            let device = Device::of(path).map_err(|source| VolumeError {
                path: path.clone(),
                source,
            })?;
            devices.push(device);
        }
        let devices = RwLock::new(devices.into());
        Ok(Self { paths, devices })
    }

    /// The devices of which descriptors are accepted.
    pub(crate) fn devices(&self) -> Arc<[Device]> {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&devices)
    }

    /// Accepts descriptors of these devices from now on.
    pub(crate) fn replace(&self, devices: Vec<Device>) {
        *self.devices.write().unwrap_or_else(PoisonError::into_inner) = devices.into();
    }

    /// Bytes that all volumes hold together, `None` when one of them is not there any more, or cannot be seen from here.
    pub(crate) fn used(&self) -> Option<u64> {
        let devices = self.devices();
        let mut seen = Vec::with_capacity(devices.len());
        let mut sum = 0_u64;
        for (path, device) in self.paths.iter().zip(&*devices) {
            if seen.contains(device) {
                continue;
            }
            seen.push(*device);
            if Device::of(path).ok()? != *device {
                return None;
            }
            let used = used(&statvfs(path).ok()?)?;
            sum = sum.saturating_add(used);
        }
        (!seen.is_empty()).then_some(sum)
    }
}

/// A tmpfs without a size reports no blocks at all: nothing is known then.
fn used(volume: &Statvfs) -> Option<u64> {
    if volume.blocks() == 0 {
        return None;
    }
    let blocks = volume.blocks().saturating_sub(volume.blocks_free());
    Some(blocks.saturating_mul(volume.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_does_not_exist_is_named() {
        let error = Volumes::open(vec!["/vineyard-test-nowhere".into()]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("volume /vineyard-test-nowhere: ")
        );
    }

    #[test]
    fn without_volumes_nothing_is_known() {
        assert_eq!(Volumes::open(Vec::new()).unwrap().used(), None);
    }
}
