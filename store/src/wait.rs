//! `wait`: until names exist.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::Error;
use crate::name::Name;
use crate::object::Key;
use crate::volume::Volume;
use crate::watch::Watch;

impl Volume {
    /// Waits until all `names` can be got.
    ///
    /// # Errors
    /// [`Error::Timeout`] that names the first one that is missing.
    pub fn wait(&self, names: &[Name], timeout: Option<Duration>) -> Result<(), Error> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        for name in names {
            self.wait_for(name, until)?;
        }
        Ok(())
    }

    fn wait_for(&self, name: &Name, until: Option<Instant>) -> Result<(), Error> {
        let there = || match self.stat(Key::Name(name)) {
            Ok(_) => Ok(true),
            // Lost: it may be put again.
            Err(Error::NotFound { .. } | Error::Lost { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        if there()? {
            return Ok(());
        }
        loop {
            // Each round watches the deepest directory that there is already.
            let (mut watch, deepest) = self.watch_towards(name)?;
            loop {
                let seen = watch.seen();
                if there()? {
                    return Ok(());
                }
                if !deepest && self.deepest(name)?.1 {
                    break;
                }
                if !watch.wait(seen, until) {
                    return Err(Error::Timeout {
                        what: format!("{name} is not there yet"),
                    });
                }
                if !deepest {
                    break;
                }
            }
        }
    }

    /// A watch on the directory of `name`, or on the deepest one above it that exists; and which of the two.
    pub(crate) fn watch_towards(&self, name: &Name) -> Result<(Watch<'static>, bool), Error> {
        let (directory, deepest) = self.deepest(name)?;
        let fd = directory
            .as_ref()
            .map_or(self.tree().root.as_fd(), |fd| fd.as_fd());
        Ok((Watch::new(fd), deepest))
    }

    fn deepest(&self, name: &Name) -> Result<(Option<std::os::fd::OwnedFd>, bool), Error> {
        let mut path = name.split().0;
        let mut whole = true;
        while let Some(directory) = path {
            match self.tree().directory(directory) {
                Ok(fd) => return Ok((Some(fd), whole)),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(Error::io(directory, errno)),
            }
            whole = false;
            path = directory.rsplit_once('/').map(|(above, _)| above);
        }
        Ok((None, whole))
    }
}
