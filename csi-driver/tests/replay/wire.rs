//! Bytes on the wire that no client writes: fields that are absent, huge, no text, of another type, or lead elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use vineyard_proto::csi::*;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::requests::{book_request, create_request, delete_request, modify_request};
use crate::rpc::capability;
use crate::{number, sandbox};

const MIB: i64 = 1 << 20;

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

async fn send(channel: Channel, path: &'static str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(path);
    let response = client.unary(Request::new(message), path, Raw).await?;
    Ok(response.into_inner())
}

/// A field of an encoded message: where its tag, its content and its end are. Only fields with a length have a content.
#[derive(Clone, Copy, Debug)]
struct Field {
    number: u64,
    begin: usize,
    content: Option<usize>,
    end: usize,
}

fn varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn fields(bytes: &[u8]) -> Vec<Field> {
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let begin = at;
        let tag = varint(bytes, &mut at);
        let length = varint(bytes, &mut at);
        let content = (tag & 7 == 2).then_some(at);
        at += if content.is_some() {
            usize::try_from(length).unwrap()
        } else {
            0
        };
        found.push(Field {
            number: tag >> 3,
            begin,
            content,
            end: at,
        });
    }
    found
}

/// The message with another content of a field; `None` leaves the field out.
fn with(message: &[u8], field: Field, content: Option<&[u8]>) -> Vec<u8> {
    let mut changed = message[..field.begin].to_vec();
    if let Some(content) = content {
        prost::encoding::encode_varint(field.number << 3 | 2, &mut changed);
        prost::encoding::encode_varint(content.len() as u64, &mut changed);
        changed.extend_from_slice(content);
    }
    changed.extend_from_slice(&message[field.end..]);
    changed
}

/// Requests that change nothing, because it is so already, and the fields that they must have.
fn requests(kubelet: &Kubelet, pod: &str) -> Vec<(&'static str, Vec<u8>, &'static [u64])> {
    let get = ControllerGetVolumeRequest {
        volume_id: "v".into(),
    };
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: "v".into(),
        volume_capabilities: vec![capability()],
        ..Default::default()
    };
    let create = CreateVolumeRequest {
        parameters: [("onLoss".into(), "fail".into())].into(),
        accessibility_requirements: Some(TopologyRequirement::default()),
        ..create_request("v", MIB)
    };
    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: "v".into(),
        ..kubelet.unpublish_request("nobody", pod)
    };
    let unstage = NodeUnstageVolumeRequest {
        volume_id: "v".into(),
        ..kubelet.unstage_request("nobody")
    };
    let publish = kubelet.publish_request("v", pod, false).encode_to_vec();
    let stage = kubelet.stage_request("v").encode_to_vec();
    let grow = kubelet.grow_request("v", pod, MIB).encode_to_vec();
    let stats = kubelet.stats_request("v", pod).encode_to_vec();
    vec![
        (
            "/csi.v1.Controller/CreateVolume",
            create.encode_to_vec(),
            &[1, 3],
        ),
        (
            "/csi.v1.Controller/DeleteVolume",
            delete_request("nobody").encode_to_vec(),
            &[1],
        ),
        (
            "/csi.v1.Controller/ControllerExpandVolume",
            book_request("v", MIB).encode_to_vec(),
            &[1, 2],
        ),
        (
            "/csi.v1.Controller/ControllerModifyVolume",
            modify_request("v", "fail").encode_to_vec(),
            &[1],
        ),
        (
            "/csi.v1.Controller/ControllerGetVolume",
            get.encode_to_vec(),
            &[1],
        ),
        (
            "/csi.v1.Controller/ValidateVolumeCapabilities",
            validate.encode_to_vec(),
            &[1, 3],
        ),
        ("/csi.v1.Node/NodeStageVolume", stage, &[1, 3, 4]),
        ("/csi.v1.Node/NodePublishVolume", publish, &[1, 3, 4, 5]),
        ("/csi.v1.Node/NodeExpandVolume", grow, &[1, 2]),
        ("/csi.v1.Node/NodeGetVolumeStats", stats, &[1, 2]),
        (
            "/csi.v1.Node/NodeUnpublishVolume",
            unpublish.encode_to_vec(),
            &[1, 2],
        ),
        (
            "/csi.v1.Node/NodeUnstageVolume",
            unstage.encode_to_vec(),
            &[1, 2],
        ),
    ]
}

/// A record without what its node reports about it from time to time, which no request has changed.
fn without_reports(content: Vec<u8>) -> Vec<u8> {
    let Ok(mut record) = serde_json::from_slice::<serde_json::Value>(&content) else {
        return content;
    };
    let reported = ["resourceVersion", "report", "usage", "conditions"];
    for part in ["", "/volume"] {
        if let Some(fields) = record.pointer_mut(part).and_then(|it| it.as_object_mut()) {
            fields.retain(|name, _| !reported.contains(&name.as_str()));
        }
    }
    record.to_string().into_bytes()
}

/// Everything that a call could change: mounts with their flags, records, directories.
fn state(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let own = table
        .lines()
        .filter(|line| line.contains(folder.to_str().unwrap()));
    let mut found: BTreeMap<_, _> = own.map(|line| (line.to_owned(), Vec::new())).collect();
    let mut pending: Vec<PathBuf> = ["kubelet", "layers", "catalog", "outside"]
        .iter()
        .map(|name| folder.join(name))
        .collect();
    while let Some(path) = pending.pop() {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            pending.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let content = if kind.is_file() {
            without_reports(fs::read(&path).unwrap())
        } else {
            Vec::new()
        };
        // A heartbeat is no change.
        if path.extension().is_none_or(|extension| extension != "beat") {
            found.insert(path.display().to_string(), content);
        }
    }
    found
}

/// A volume that a pod uses, and something outside that nobody may touch.
async fn scene(folder: &Path) -> (Kubelet, String) {
    let mut kubelet = Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
    let pod = Kubelet::pod_uid(1);
    fs::create_dir(folder.join("outside")).unwrap();
    fs::write(folder.join("outside/precious"), "precious").unwrap();
    kubelet.create("v", MIB, &[]).await.unwrap();
    kubelet.stage("v").await.unwrap();
    kubelet.publish("v", &pod, false).await.unwrap();
    fs::write(kubelet.target(&pod, "v").join("content"), "content").unwrap();
    (kubelet, pod)
}

#[test]
fn a_field_that_is_absent_or_nonsense_is_an_error_that_says_so_and_changes_nothing() {
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let (mut kubelet, pod) = scene(folder).await;
            let requests = requests(&kubelet, &pod);
            let before = state(folder);
            let channel = kubelet.driver.connect().await;
            let huge = vec![b'a'; 1 << 20];
            let larger = vec![b'a'; 5 << 20];
            for (path, message, required) in requests {
                send(channel.clone(), path, message.clone()).await.unwrap();
                assert!(send(channel.clone(), path, vec![0xff; 9]).await.is_err());
                for field in fields(&message) {
                    let what = format!("{path} field {}", field.number);
                    let absent = send(channel.clone(), path, with(&message, field, None)).await;
                    let is_required = required.contains(&field.number);
                    match absent {
                        Ok(_) => assert!(!is_required, "{what}"),
                        Err(status) => {
                            let precondition =
                                path.ends_with("NodePublishVolume") && field.number == 3;
                            let code = if precondition {
                                Code::FailedPrecondition
                            } else {
                                Code::InvalidArgument
                            };
                            assert_eq!(
                                (status.code(), is_required),
                                (code, true),
                                "{what}: {status:?}"
                            );
                            assert!(status.message().contains("missing"), "{what}: {status:?}");
                        }
                    }
                    assert_eq!(state(folder), before, "{what} absent");
                    // A number where text or a message belongs, and the other way round.
                    let mut wrong_type = message[..field.begin].to_vec();
                    let other = if field.content.is_some() { 0 } else { 2 };
                    prost::encoding::encode_varint(field.number << 3 | other, &mut wrong_type);
                    wrong_type.push(1);
                    assert!(
                        send(channel.clone(), path, wrong_type).await.is_err(),
                        "{what}"
                    );
                    if field.content.is_none() {
                        continue;
                    }
                    for content in [
                        &b"\xff\xfe"[..],
                        &huge,
                        &larger,
                        b"../../../../outside/precious",
                        b"a\0b",
                    ] {
                        let size = content.len();
                        let answer =
                            send(channel.clone(), path, with(&message, field, Some(content))).await;
                        match answer {
                            Err(status) => assert!(!status.message().is_empty(), "{what}"),
                            // Some other text, which a name may be and an unknown volume has.
                            Ok(answer) => {
                                assert!(
                                    size < 100 && content[0] < 0x80,
                                    "{what}: {size} bytes are taken"
                                );
                                if path.ends_with("CreateVolume") {
                                    let made = CreateVolumeResponse::decode(&*answer).unwrap();
                                    kubelet.delete(&made.volume.unwrap().volume_id).await;
                                }
                            }
                        }
                        assert_eq!(state(folder), before, "{what} with {size} bytes");
                    }
                }
            }
        });
    });
}

/// `VINEYARD_CASES` says how many, `VINEYARD_SEED` which.
#[test]
fn no_bytes_kill_the_driver_or_reach_outside() {
    let cases = number("VINEYARD_CASES").unwrap_or(1_000);
    let seed = number("VINEYARD_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("VINEYARD_SEED={seed}");
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let (mut kubelet, pod) = scene(folder).await;
            let requests = requests(&kubelet, &pod);
            let channel = kubelet.driver.connect().await;
            let mut chance = Chance::new(seed);
            let mut taken = 0;
            for _ in 0..cases {
                let (path, message, _) = &requests[chance.place(requests.len()).unwrap()];
                let mut message = message.clone();
                for _ in 0..=chance.below(3) {
                    mutate(&mut message, &mut chance);
                }
                match send(channel.clone(), path, message.clone()).await {
                    Ok(_) => taken += 1,
                    Err(status) => assert!(
                        !matches!(status.code(), Code::Unavailable | Code::Unknown),
                        "{path} {message:?}: {status:?} {}",
                        kubelet.driver.log()
                    ),
                }
            }
            println!("{taken} of {cases} were taken");
            assert_eq!(
                fs::read(folder.join("layers/v/content")).unwrap(),
                b"content"
            );
            let outside = fs::read_dir(folder.join("outside")).unwrap().count();
            assert_eq!(outside, 1);
            assert_eq!(
                fs::read(folder.join("outside/precious")).unwrap(),
                b"precious"
            );
            let places = [folder.join("layers"), folder.join("kubelet")];
            for mount in kubelet.driver.mounts() {
                assert!(
                    places.iter().any(|place| mount.starts_with(place)),
                    "{mount:?}"
                );
            }
        });
    });
}

fn mutate(message: &mut Vec<u8>, chance: &mut Chance) {
    let Some(at) = chance.place(message.len()) else {
        return;
    };
    let byte = u8::try_from(chance.below(256)).unwrap();
    match chance.below(5) {
        0 => message[at] = byte,
        1 => message.insert(at, byte),
        2 => drop(message.remove(at)),
        3 => message.truncate(at),
        _ => {
            let part = message[at..].to_vec();
            message.extend(part);
        }
    }
}
