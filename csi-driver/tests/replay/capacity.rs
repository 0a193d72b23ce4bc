//! Capacity: exact, never over-committed, and where the topology says; expansion; what a volume holds.

use std::fs;

use tonic::Code;
use vineyard_proto::csi::*;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::requests::{book_request, create_request, delete_request};
use crate::rpc::{Rpc, at_least};
use crate::sandbox;

const MIB: i64 = 1 << 20;

fn with_kubelet<F: Future<Output = ()>>(test: impl FnOnce(Kubelet) -> F + Send) {
    sandbox::run(|folder| {
        let kubelet = Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
        sandbox::runtime().block_on(test(kubelet));
    });
}

async fn code<R: Rpc>(kubelet: &mut Kubelet, request: R) -> Code {
    match kubelet.once(request).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

fn between(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange {
        required_bytes,
        limit_bytes,
    })
}

async fn available(kubelet: &mut Kubelet, segments: &[(&str, &str)]) -> i64 {
    let segments = segments.iter();
    let segments = segments.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let request = GetCapacityRequest {
        accessible_topology: Some(Topology {
            segments: segments.collect(),
        }),
        ..Default::default()
    };
    kubelet.once(request).await.unwrap().available_capacity
}

#[test]
fn a_capacity_is_in_its_range_or_refused() {
    with_kubelet(async |mut kubelet| {
        for (range, expected) in [
            (between(MIB, MIB), Code::Ok),
            (between(4097, 8192), Code::Ok),
            (between(0, 5000), Code::Ok),
            (between(1, 4095), Code::OutOfRange),
            (between(2 * MIB, MIB), Code::OutOfRange),
            (between(i64::MAX, 0), Code::OutOfRange),
            (between(i64::MAX, i64::MAX), Code::OutOfRange),
            (between(-1, 0), Code::InvalidArgument),
            (between(0, -1), Code::InvalidArgument),
            (between(i64::MIN, i64::MIN), Code::InvalidArgument),
            (between(17 * MIB, 0), Code::ResourceExhausted),
            (between(1 << 62, 0), Code::ResourceExhausted),
        ] {
            let request = CreateVolumeRequest {
                capacity_range: range,
                ..create_request("v", 0)
            };
            match kubelet.once(request).await {
                Ok(response) => {
                    let (range, volume) = (range.unwrap(), response.volume.unwrap());
                    assert_eq!(expected, Code::Ok, "{range:?}");
                    assert!(volume.capacity_bytes >= range.required_bytes);
                    assert!(range.limit_bytes == 0 || volume.capacity_bytes <= range.limit_bytes);
                    kubelet.once(delete_request("v")).await.unwrap();
                }
                Err(status) => assert_eq!(status.code(), expected, "{range:?}: {status:?}"),
            }
        }
        assert_eq!(available(&mut kubelet, &[]).await, 16 * MIB);
        kubelet.driver.assert_nothing_is_left().await;
    });
}

#[test]
fn many_at_once_never_book_more_than_there_is() {
    with_kubelet(async |mut kubelet| {
        let channel = kubelet.driver.connect().await;
        let creates = (0..40).map(|number| {
            let request = create_request(&format!("v-{number}"), MIB);
            tokio::spawn(request.send(channel.clone()))
        });
        let (mut made, mut full) = (Vec::new(), 0);
        for create in creates.collect::<Vec<_>>() {
            match create.await.unwrap() {
                Ok(response) => made.push(response.into_inner().volume.unwrap()),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                    full += 1;
                }
            }
        }
        assert_eq!((made.len(), full), (16, 24));
        assert_eq!(available(&mut kubelet, &[]).await, 0);
        // Room comes back, and expansions race for it.
        for volume in made.drain(..8) {
            kubelet
                .once(delete_request(&volume.volume_id))
                .await
                .unwrap();
        }
        assert_eq!(available(&mut kubelet, &[]).await, 8 * MIB);
        let expansions = made.iter().map(|volume| {
            tokio::spawn(book_request(&volume.volume_id, 3 * MIB).send(channel.clone()))
        });
        let mut grown = 0;
        for expansion in expansions.collect::<Vec<_>>() {
            match expansion.await.unwrap() {
                Ok(_) => grown += 1,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
            }
        }
        assert_eq!((grown, available(&mut kubelet, &[]).await), (4, 0));
    });
}

#[test]
fn a_name_is_one_volume_and_the_same_in_every_answer() {
    with_kubelet(async |mut kubelet| {
        let request = create_request("Not a label: ü", MIB);
        let first = kubelet.once(request.clone()).await.unwrap().volume.unwrap();
        kubelet.driver.kill();
        let again = kubelet.once(request.clone()).await.unwrap().volume.unwrap();
        assert_eq!(again, first);
        let other = [
            CreateVolumeRequest {
                capacity_range: at_least(2 * MIB),
                ..request.clone()
            },
            CreateVolumeRequest {
                parameters: [("onLoss".into(), "recreate".into())].into(),
                ..request.clone()
            },
            CreateVolumeRequest {
                volume_capabilities: vec![crate::rpc::capability_of(
                    volume_capability::access_mode::Mode::SingleNodeSingleWriter,
                    &[],
                )],
                ..request.clone()
            },
        ];
        for request in other {
            assert_eq!(code(&mut kubelet, request).await, Code::AlreadyExists);
        }
        let id = first.volume_id.clone();
        kubelet.once(book_request(&id, 2 * MIB)).await.unwrap();
        let grown = Volume {
            capacity_bytes: 2 * MIB,
            ..first
        };
        let got = ControllerGetVolumeRequest {
            volume_id: id.clone(),
        };
        let got = kubelet.once(got).await.unwrap().volume.unwrap();
        let listed = kubelet.once(ListVolumesRequest::default()).await.unwrap();
        assert_eq!(
            (&got, listed.entries[0].volume.as_ref()),
            (&grown, Some(&grown))
        );
        // What the volume became contains what was asked for.
        let again = kubelet.once(request).await.unwrap().volume.unwrap();
        assert_eq!(again, grown);
    });
}

#[test]
fn pages_of_a_list_survive_volumes_that_come_and_go() {
    with_kubelet(async |mut kubelet| {
        for number in 0..9 {
            let request = create_request(&format!("v-{number}"), MIB);
            kubelet.once(request).await.unwrap();
        }
        let mut request = ListVolumesRequest {
            max_entries: 2,
            ..Default::default()
        };
        let mut seen = Vec::new();
        loop {
            let page = kubelet.once(request.clone()).await.unwrap();
            assert!(page.entries.len() <= 2);
            seen.extend(
                page.entries
                    .into_iter()
                    .map(|entry| entry.volume.unwrap().volume_id),
            );
            if page.next_token.is_empty() {
                break;
            }
            request.starting_token = page.next_token;
            // What was listed goes, and so does the token's own volume.
            let gone = seen.last().unwrap().clone();
            kubelet.once(delete_request(&gone)).await.unwrap();
            kubelet.driver.kill();
        }
        let all: Vec<_> = (0..9).map(|number| format!("v-{number}")).collect();
        assert_eq!(seen, all);
        request.starting_token = "nonsense".into();
        assert_eq!(code(&mut kubelet, request).await, Code::Aborted);
    });
}

#[test]
fn an_expanded_volume_takes_more_while_it_is_used() {
    with_kubelet(async |mut kubelet| {
        let (p, q) = (Kubelet::pod_uid(1), Kubelet::pod_uid(2));
        kubelet.create("v", MIB, &[]).await.unwrap();
        // Nothing to be done on a node that has none of it.
        let request = book_request("v", 2 * MIB);
        let booked = kubelet.once(request).await.unwrap();
        assert!(!booked.node_expansion_required);
        kubelet.stage("v").await.unwrap();
        kubelet.publish("v", &p, false).await.unwrap();
        kubelet.publish("v", &q, true).await.unwrap();
        let (target, view) = (kubelet.target(&p, "v"), kubelet.target(&q, "v"));
        let before = kubelet.stats("v", &p).await.unwrap();
        fs::write(target.join("half"), vec![1; 1 << 20]).unwrap();
        assert!(fs::write(target.join("more"), vec![2; 1 << 20]).is_err());
        fs::remove_file(target.join("more")).unwrap();
        let usage = kubelet.stats("v", &q).await.unwrap();
        assert_eq!(
            (usage[0].total, usage[0].used - before[0].used),
            (2 * MIB, MIB)
        );
        assert_eq!(usage[1].used - before[1].used, 1);
        let request = kubelet.grow_request("v", &p, 4 * MIB);
        assert_eq!(
            code(&mut kubelet, request).await,
            Code::OutOfRange,
            "not booked yet"
        );
        let booked = kubelet.once(book_request("v", 4 * MIB)).await.unwrap();
        assert!(booked.node_expansion_required);
        // From any place where it is, and again.
        kubelet.grow("v", &q, 4 * MIB).await;
        kubelet.grow("v", &p, 4 * MIB).await;
        fs::write(target.join("more"), vec![2; 2 << 20]).unwrap();
        assert_eq!(fs::read(view.join("half")).unwrap(), vec![1; 1 << 20]);
        // Smaller is what it is already.
        let smaller = kubelet.once(book_request("v", MIB)).await.unwrap();
        assert_eq!(smaller.capacity_bytes, 4 * MIB);
        for (range, expected) in [
            (between(0, MIB), Code::OutOfRange),
            (between(-1, 0), Code::InvalidArgument),
            (between(i64::MAX, 0), Code::OutOfRange),
            (between(17 * MIB, 0), Code::ResourceExhausted),
            (None, Code::InvalidArgument),
        ] {
            let request = ControllerExpandVolumeRequest {
                capacity_range: range,
                ..book_request("v", 0)
            };
            assert_eq!(code(&mut kubelet, request).await, expected, "{range:?}");
        }
        assert_eq!(kubelet.stats("v", &p).await.unwrap()[0].total, 4 * MIB);
        kubelet.unpublish("v", &p).await;
        let request = kubelet.stats_request("v", &p);
        assert_eq!(code(&mut kubelet, request).await, Code::NotFound);
        kubelet.unpublish("v", &q).await;
        kubelet.unstage("v").await;
        kubelet.delete("v").await;
        kubelet.driver.assert_nothing_is_left().await;
    });
}

#[test]
fn preferred_segments_are_tried_in_their_order_and_required_ones_bind() {
    const NODE: &str = "vineyard.io/node";
    const POOL: &str = "vineyard.io/pool";
    let term = |key: &str, value: &str| Topology {
        segments: [(key.to_owned(), value.to_owned())].into(),
    };
    with_kubelet(async |mut kubelet| {
        // A pool each: the answer says which it was.
        kubelet.driver.nodes = vec!["a=2MiB,pool-a", "b=2MiB,pool-b", "c=4MiB,pool-c"];
        let mut next = 0;
        for (preferred, requisite, expected) in [
            (vec![term(NODE, "b"), term(NODE, "c")], vec![], "pool-b"),
            (vec![term(NODE, "b"), term(NODE, "a")], vec![], "pool-b"),
            // b is full now.
            (vec![term(NODE, "b"), term(NODE, "a")], vec![], "pool-a"),
            (vec![], vec![term(POOL, "pool-a")], "pool-a"),
            (
                vec![term(NODE, "c")],
                vec![term(NODE, "a"), term(NODE, "c")],
                "pool-c",
            ),
            (vec![term(NODE, "a")], vec![term(NODE, "c")], "pool-c"),
            (vec![], vec![term(NODE, "a")], ""),
            (vec![], vec![term(NODE, "nobody")], ""),
            (vec![], vec![term("other/key", "c")], ""),
        ] {
            next += 1;
            let request = CreateVolumeRequest {
                accessibility_requirements: Some(TopologyRequirement {
                    requisite,
                    preferred,
                }),
                ..create_request(&format!("v-{next}"), MIB)
            };
            match kubelet.once(request).await {
                Ok(response) => {
                    let at = &response.volume.unwrap().accessible_topology;
                    assert_eq!(at, &[term(POOL, expected)], "v-{next}");
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                    assert_eq!(expected, "", "v-{next}: {status:?}");
                }
            }
        }
        let free = [("a", 0), ("b", 0), ("c", 2 * MIB), ("nobody", 0)];
        for (node, bytes) in free {
            assert_eq!(
                available(&mut kubelet, &[(NODE, node)]).await,
                bytes,
                "{node}"
            );
        }
    });
}

#[test]
fn secrets_are_in_no_log() {
    with_kubelet(async |mut kubelet| {
        kubelet.driver.level = "debug";
        let secrets: std::collections::HashMap<_, _> =
            [("key".to_owned(), "Sesame-4711".to_owned())].into();
        let pod = Kubelet::pod_uid(1);
        for bytes in [MIB, -1] {
            let request = CreateVolumeRequest {
                secrets: secrets.clone(),
                ..create_request("v", bytes)
            };
            let _ = kubelet.once(request).await;
        }
        let request = NodeStageVolumeRequest {
            secrets: secrets.clone(),
            ..kubelet.stage_request("v")
        };
        kubelet.once(request).await.unwrap();
        let request = NodePublishVolumeRequest {
            secrets: secrets.clone(),
            ..kubelet.publish_request("v", &pod, false)
        };
        kubelet.once(request).await.unwrap();
        let request = ControllerExpandVolumeRequest {
            secrets: secrets.clone(),
            ..book_request("v", -1)
        };
        kubelet.once(request).await.unwrap_err();
        let request = DeleteVolumeRequest {
            secrets,
            ..delete_request("v")
        };
        kubelet.once(request).await.unwrap_err();
        let log = kubelet.driver.whole_log();
        assert!(log.contains("NodePublishVolume") && log.contains("DEBUG"));
        assert!(!log.contains("Sesame"), "{log}");
    });
}
