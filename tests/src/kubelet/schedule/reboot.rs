//! The node reboots: no process, no memory and no mount survives, and kubelet starts what it still believes in.

use anyhow::{Context, Result, ensure};
use tonic::{Code, Status};

use crate::node::Node;

use super::super::pod::{Farewell, Mount};
use super::{PASSAGES, Schedule};

impl Schedule {
    pub(super) fn reboot(&mut self) -> Result<()> {
        let mut gone = Vec::new();
        for mut pod in std::mem::take(&mut self.pods) {
            pod.end(Farewell::Killed)?;
            gone.push((pod.uid.clone(), pod.mounts.clone()));
        }
        self.retainer.kill()?;
        let keeps_run = self.random.chance(50);
        self.node.reboot(keeps_run)?;
        for volume in self.volumes.values_mut().filter(|it| it.made) {
            (volume.made, volume.lost) = (false, true);
            volume.objects.clear();
        }
        let driver_first = self.random.chance(50);
        if !driver_first {
            self.retainer.run()?;
        }
        if self.random.chance(30) {
            // It may die while it finds out.
            self.node.order_death(self.random.below(PASSAGES) + 1)?;
        }
        self.node.start()?;
        if self.node.spare()? {
            self.kills += 1;
            self.node.start()?;
        }
        if driver_first {
            self.retainer.run()?;
        }
        for (uid, mounts) in gone {
            self.start_again(&uid, &mounts)?;
        }
        Ok(())
    }

    /// A pod of the last boot: what is lost is not given to it, and then it is taken away.
    fn start_again(&mut self, uid: &str, mounts: &[Mount]) -> Result<()> {
        if self.random.chance(50) {
            self.call(|node| node.publish_sockets(uid, None))?;
        }
        for mount in mounts {
            self.is_refused(uid, mount)?;
        }
        let names = mounts.iter().map(|mount| mount.volume.clone());
        for name in names.chain(["sockets".to_owned()]) {
            self.call(|node| node.unpublish(&name, uid))?;
        }
        let _ = std::fs::remove_file(self.node.folder().join(uid));
        Ok(())
    }

    /// Whether kubelet stages it or believes that it is staged: it says that the data is lost, and nothing is shown.
    fn is_refused(&mut self, uid: &str, mount: &Mount) -> Result<()> {
        let staged = self.random.chance(50);
        let refused = self.call(|node| {
            let publish = match staged {
                true => Node::publish_staged,
                false => Node::publish,
            };
            Ok(publish(node, &mount.volume, uid, mount.read_only))
        })?;
        let error = refused.err().context("a lost volume is published")?;
        let code = error.downcast_ref::<Status>().map(Status::code);
        ensure!(code == Some(Code::DataLoss), "{error:?}");
        self.is_nowhere(&mount.volume)
    }

    /// Nothing empty stands for a volume that is lost.
    pub(super) fn is_nowhere(&self, name: &str) -> Result<()> {
        let parts = [name.to_owned(), format!("{name}-globalmount")];
        let mut mounts = self.node.mounts()?;
        mounts.retain(|point| {
            let mut components = point.components();
            components.any(|it| parts.iter().any(|part| it.as_os_str() == part.as_str()))
        });
        ensure!(mounts.is_empty(), "{name} is lost and mounted: {mounts:?}");
        Ok(())
    }
}
