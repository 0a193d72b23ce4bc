//! Many pods, many claims, all at once: kubelet mounts and unmounts a pod's volumes concurrently, in any order, and repeats itself.

use std::fs;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::rpc::Rpc;
use crate::sandbox;

const MIB: i64 = 1 << 20;
const CLAIMS: u32 = 6;
const PODS: u32 = 8;

/// Calls until it is done, as each of kubelet's own threads does.
async fn until_done<R: Rpc>(request: R, channel: Channel) -> Result<(), Status> {
    loop {
        match request.clone().send(channel.clone()).await {
            Err(status) if status.code() == Code::Aborted => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            answer => return answer.map(drop),
        }
    }
}

/// All at once, twice each.
async fn all_at_once<R: Rpc>(kubelet: &mut Kubelet, requests: Vec<R>) {
    let channel = kubelet.driver.connect().await;
    let twice = requests.iter().chain(&requests);
    let calls: Vec<_> = twice
        .map(|request| tokio::spawn(until_done(request.clone(), channel.clone())))
        .collect();
    for call in calls {
        if let Err(status) = call.await.unwrap() {
            kubelet.complain(R::NAME, &status);
        }
    }
}

/// Which claims a pod has: one to all of them.
fn claims_of(pod: u32) -> impl Iterator<Item = u32> {
    (0..CLAIMS).filter(move |claim| claim % (pod % 3 + 1) == 0)
}

#[test]
fn pods_with_several_claims_come_and_go_at_once() {
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let kubelet = &mut Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
            let names: Vec<_> = (0..CLAIMS).map(|claim| format!("pvc-{claim}")).collect();
            for name in &names {
                kubelet.create(name, MIB, &[]).await.unwrap();
            }
            let places: Vec<_> = (0..PODS)
                .flat_map(|pod| claims_of(pod).map(move |claim| (pod, claim)))
                .map(|(pod, claim)| (Kubelet::pod_uid(pod), &names[claim as usize]))
                .collect();
            for round in 0..3 {
                let stage = names.iter().map(|name| kubelet.stage_request(name));
                let stage = stage.collect();
                all_at_once(kubelet, stage).await;
                let publish = places.iter();
                let publish = publish.map(|(pod, name)| kubelet.publish_request(name, pod, false));
                let publish = publish.collect();
                all_at_once(kubelet, publish).await;
                let mounts = kubelet.driver.mounts();
                // The memory, and one for each pod that has it.
                assert_eq!(mounts.len(), names.len() + places.len());
                for (pod, name) in &places {
                    let file = kubelet.target(pod, name).join("content");
                    match fs::read_to_string(&file) {
                        Ok(content) => assert_eq!(content, **name),
                        Err(_) if round == 0 => fs::write(&file, name.as_str()).unwrap(),
                        Err(error) => panic!("{}: {error}", file.display()),
                    }
                }
                let unpublish = places.iter();
                let unpublish = unpublish.map(|(pod, name)| kubelet.unpublish_request(name, pod));
                let unpublish = unpublish.collect();
                all_at_once(kubelet, unpublish).await;
                let unstage = names.iter().map(|name| kubelet.unstage_request(name));
                let unstage = unstage.collect();
                all_at_once(kubelet, unstage).await;
                assert_eq!(kubelet.driver.mounts().len(), names.len());
                kubelet.driver.kill();
            }
            for (pod, name) in &places {
                kubelet.unpublish(name, pod).await;
            }
            for name in &names {
                kubelet.unstage(name).await;
                kubelet.delete(name).await;
            }
            kubelet.driver.assert_nothing_is_left().await;
        });
    });
}
