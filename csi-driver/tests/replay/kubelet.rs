//! The calls of kubelet, provisioner and resizer, repeated until they are answered, while the driver is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Response, Status};
use vineyard_proto::csi::{Volume, VolumeUsage};

use crate::chance::Chance;
use crate::driver::Driver;
use crate::requests::{
    book_request, clone_request, create_request, delete_request, modify_request,
};
use crate::rpc::Rpc;

/// More than ever helps.
const TRIES: usize = 400;

/// When the driver dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kills {
    /// Where an order says that was given before, and then not again.
    AsOrdered,
    /// In one call of four, and now and then while it starts.
    AtRandom,
}

/// Who calls, and the driver that is called.
pub(crate) struct Kubelet {
    folder: PathBuf,
    pub(crate) driver: Driver,
    chance: Chance,
    kills: Kills,
}

/// Every error says something and carries no details.
fn well_formed<T>(answer: Result<T, Status>) -> Result<T, Status> {
    if let Err(status) = &answer {
        assert!(!status.message().is_empty() && status.details().is_empty());
    }
    answer
}

/// Worth another try, as kubelet sees it.
fn is_uncertain(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Aborted | Code::Unavailable | Code::Unknown | Code::Cancelled
    )
}

impl Kubelet {
    pub(crate) fn new(folder: &Path, chance: Chance, kills: Kills) -> Self {
        Self {
            folder: folder.to_owned(),
            driver: Driver::new(folder),
            chance,
            kills,
        }
    }

    /// `globalmount` of a volume.
    pub(crate) fn staging(&self, name: &str) -> PathBuf {
        self.folder
            .join("kubelet/plugins")
            .join(name)
            .join("globalmount")
    }

    /// Where a pod has a volume.
    pub(crate) fn target(&self, pod: &str, name: &str) -> PathBuf {
        let volumes = format!("kubelet/pods/{pod}/volumes/kubernetes.io~csi");
        self.folder.join(volumes).join(name).join("mount")
    }

    /// The uid of a pod.
    pub(crate) fn pod_uid(number: u32) -> String {
        format!("00000000-0000-4000-8000-{number:012x}")
    }

    /// Calls once, and nobody is killed.
    pub(crate) async fn once<R: Rpc>(&mut self, request: R) -> Result<R::Reply, Status> {
        let channel = self.driver.connect().await;
        well_formed(request.send(channel).await).map(Response::into_inner)
    }

    /// Calls until there is an answer that is certain: the driver may be killed at any moment, calls come twice at once, and
    /// even an answered one may be repeated.
    pub(crate) async fn call<R: Rpc>(&mut self, request: R) -> Result<R::Reply, Status> {
        for _ in 0..TRIES {
            let random = self.kills == Kills::AtRandom;
            if random && !self.driver.runs() && self.chance.below(6) == 0 {
                let passage = self.chance.below(8) + 1;
                self.driver.order(&format!("kill * {passage}"));
            }
            let channel = self.driver.connect().await;
            if random && self.driver.spare() {
                continue;
            }
            let killed = random && self.chance.below(4) == 0;
            let answer = if killed && cfg!(not(feature = "failpoints")) {
                // Wherever it is then.
                let moment = Duration::from_micros(self.chance.below(6_000));
                let answer = tokio::time::timeout(moment, request.clone().send(channel)).await;
                self.driver.kill();
                answer.unwrap_or_else(|_| Err(Status::unavailable("killed")))
            } else {
                if killed {
                    let passage = self.chance.below(40) + 1;
                    self.driver.order(&format!("kill * {passage}"));
                }
                self.once_or_twice(&request, channel).await
            };
            if killed || self.driver.killed_itself() {
                self.driver.spare();
            }
            match answer {
                Err(status) if is_uncertain(&status) => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                // The answer was lost on its way.
                Ok(_) if random && self.chance.below(8) == 0 => {}
                answer => return well_formed(answer).map(Response::into_inner),
            }
        }
        panic!(
            "no answer to {} in {TRIES} tries: {}",
            R::NAME,
            self.driver.log()
        );
    }

    async fn once_or_twice<R: Rpc>(
        &mut self,
        request: &R,
        channel: tonic::transport::Channel,
    ) -> Result<Response<R::Reply>, Status> {
        if self.kills != Kills::AtRandom || self.chance.below(8) > 0 {
            return request.clone().send(channel).await;
        }
        let (one, two) = tokio::join!(
            request.clone().send(channel.clone()),
            request.clone().send(channel)
        );
        match (one, two) {
            (Err(status), other) | (other, Err(status)) if is_uncertain(&status) => other,
            (Ok(answer), Ok(_)) => Ok(answer),
            (Err(status), Err(_)) => Err(status),
            (Ok(_), Err(status)) | (Err(status), Ok(_)) => {
                panic!("two of {} disagree: {status:?}", R::NAME)
            }
        }
    }

    /// Fails with what the driver said.
    pub(crate) fn complain(&self, what: &str, status: &Status) -> ! {
        panic!("{what}: {status:?}\n{}", self.driver.log())
    }

    fn must<T>(&self, answer: Result<T, Status>, what: &str) -> T {
        answer.unwrap_or_else(|status| self.complain(what, &status))
    }

    pub(crate) async fn create(
        &mut self,
        name: &str,
        bytes: i64,
        parameters: &[(&str, &str)],
    ) -> Result<Volume, Status> {
        let parameters = parameters.iter();
        let request = vineyard_proto::csi::CreateVolumeRequest {
            parameters: parameters
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..create_request(name, bytes)
        };
        Ok(self.call(request).await?.volume.unwrap())
    }

    /// CreateVolume with another volume as its source.
    pub(crate) async fn clone_of(
        &mut self,
        source: &str,
        name: &str,
        bytes: i64,
    ) -> Result<Volume, Status> {
        let request = clone_request(source, name, bytes);
        Ok(self.call(request).await?.volume.unwrap())
    }

    pub(crate) async fn delete(&mut self, name: &str) {
        let answer = self.call(delete_request(name)).await;
        self.must(answer, "DeleteVolume");
    }

    pub(crate) async fn try_delete(&mut self, name: &str) -> Result<(), Status> {
        self.call(delete_request(name)).await.map(drop)
    }

    pub(crate) async fn stage(&mut self, name: &str) -> Result<(), Status> {
        let request = self.stage_request(name);
        self.call(request).await.map(drop)
    }

    /// Unstages, and removes what kubelet made for it.
    pub(crate) async fn unstage(&mut self, name: &str) {
        let path = self.staging(name);
        // What is mounted there and elsewhere kubelet never unstages, and the memory is mounted elsewhere.
        assert!(!self.driver.mounts().contains(&path), "{}", path.display());
        let answer = self.call(self.unstage_request(name)).await;
        self.must(answer, "NodeUnstageVolume");
        if path.exists() {
            fs::remove_dir(&path).unwrap();
            fs::remove_dir(path.parent().unwrap()).unwrap();
        }
    }

    pub(crate) async fn publish(
        &mut self,
        name: &str,
        pod: &str,
        readonly: bool,
    ) -> Result<(), Status> {
        let target = self.target(pod, name);
        let request = self.publish_request(name, pod, readonly);
        self.call(request).await?;
        let mounts = self.driver.mounts();
        let here = mounts.iter().filter(|point| **point == target).count();
        assert_eq!(here, 1, "{}", target.display());
        Ok(())
    }

    /// Publishes the sockets volume of a pod. The driver listens there.
    pub(crate) async fn publish_sockets(&mut self, pod: &str) {
        let request = self.publish_sockets_request(pod);
        let answer = self.call(request).await;
        self.must(answer, "NodePublishVolume");
        let socket = self.target(pod, "sockets").join("driver/driver.sock");
        assert!(
            fs::symlink_metadata(&socket).is_ok(),
            "{}",
            socket.display()
        );
    }

    /// Takes it away, and removes what kubelet made for it.
    pub(crate) async fn unpublish_sockets(&mut self, pod: &str) {
        let answer = self.call(self.unpublish_sockets_request(pod)).await;
        self.must(answer, "NodeUnpublishVolume");
        self.remove_target("sockets", pod);
    }

    /// Unpublishes, and removes what kubelet made for it.
    pub(crate) async fn unpublish(&mut self, name: &str, pod: &str) {
        let answer = self.call(self.unpublish_request(name, pod)).await;
        self.must(answer, "NodeUnpublishVolume");
        self.remove_target(name, pod);
    }

    fn remove_target(&self, name: &str, pod: &str) {
        let target = self.target(pod, name);
        assert!(!target.exists(), "{}", target.display());
        let own = self.folder.join("kubelet/pods");
        for folder in target.ancestors().skip(1).take_while(|it| **it != *own) {
            // Until there is another volume in it.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }

    pub(crate) async fn book(&mut self, name: &str, bytes: i64) -> Result<i64, Status> {
        Ok(self.call(book_request(name, bytes)).await?.capacity_bytes)
    }

    /// NodeExpandVolume where a pod has it.
    pub(crate) async fn grow(&mut self, name: &str, pod: &str, bytes: i64) {
        let target = self.target(pod, name);
        let answer = self.call(self.grow_request(name, pod, bytes)).await;
        self.must(answer, "NodeExpandVolume");
        let stat = nix::sys::statvfs::statvfs(&target).unwrap();
        let size = i64::try_from(stat.blocks() * stat.fragment_size()).unwrap();
        assert_eq!(size, bytes);
    }

    pub(crate) async fn modify(&mut self, name: &str, on_loss: &str) {
        let answer = self.call(modify_request(name, on_loss)).await;
        self.must(answer, "ControllerModifyVolume");
    }

    pub(crate) async fn stats(
        &mut self,
        name: &str,
        pod: &str,
    ) -> Result<Vec<VolumeUsage>, Status> {
        let request = self.stats_request(name, pod);
        Ok(self.call(request).await?.usage)
    }
}
