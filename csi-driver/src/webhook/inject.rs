//! The change of a pod, as a function of the pod and of what is known of its claims. Pure; `docs/reference/injection.md` is its meaning.
//!
//! The patch only adds, and only what is not there: whatever other webhooks did before or do after, it may be run again.

use std::collections::BTreeMap;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, PatchOperation};
use k8s_openapi::api::core::v1::{CSIVolumeSource, Container, Pod, PodSpec, Volume, VolumeMount};
use serde::Serialize;
use serde_json::{Value, json};

use super::affinity::{preferences, shared};
use super::annotations::{Annotations, WRITES, Wish};
use super::error::Refusal;
use super::facts::{Claim, Facts};
use super::sidecar::{self, Settings, Sizes};
use crate::identity::DRIVER;

/// Name of the sockets volume in a pod.
pub(super) const SOCKETS_VOLUME: &str = "vineyard-sockets";

/// Of the directory that `vineyard.open()` opens.
const VOLUME_VARIABLE: &str = "VINEYARD_VOLUME";
/// Of the socket of the sidecar.
const SOCKET_VARIABLE: &str = "VINEYARD_SOCKET";

/// What becomes of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Injection {
    /// Additions, in their order. None: it stays as it is.
    pub(super) patch: Vec<PatchOperation>,
    /// What its author should know.
    pub(super) warnings: Vec<String>,
}

/// Injects `pod`.
///
/// # Errors
/// [`Refusal`]: what the pod says of itself is wrong.
pub(super) fn inject(pod: &Pod, facts: &Facts, settings: &Settings) -> Result<Injection, Refusal> {
    let Some(spec) = &pod.spec else {
        return Ok(Injection::default());
    };
    if facts.claims.is_empty() || is_mirror(pod) {
        return Ok(Injection::default());
    }
    let annotations = Annotations::of(pod)?;
    if annotations.wish == Wish::Disabled {
        return Ok(Injection::default());
    }
    let volumes = Volumes::of(facts, annotations.wish);
    let mut warnings = volumes.warnings();
    if volumes.writable.is_empty() {
        return Ok(Injection {
            patch: Vec::new(),
            warnings,
        });
    }
    let preferred = annotations.volume.as_deref();
    if let Some(name) = preferred.filter(|name| !volumes.writable.contains_key(name)) {
        return Err(Refusal::NoVolume(name.to_owned()));
    }
    let sockets = sockets_volume(spec)?;
    let overrides = &annotations.overrides;
    let writes = volumes.writable.values().any(|writable| *writable);
    let sizes = writes.then(|| Sizes::decide(spec, facts, overrides, settings));
    let mut additions = Additions::default();
    let is_ours = |volume: &str| volumes.writable.contains_key(volume);
    let together = shared(pod, facts, is_ours);
    let preferences = preferences(pod, spec, facts, &together);
    additions.operations.extend(preferences);
    if sockets.is_none() {
        let volume = volume(sizes.as_ref());
        additions.append(["spec", "volumes"], false, &volume);
    }
    let sockets = sockets.unwrap_or(SOCKETS_VOLUME);
    let lists = [
        ("containers", Some(&spec.containers)),
        ("initContainers", spec.init_containers.as_ref()),
    ];
    for (list, containers) in lists {
        let containers = containers.into_iter().flatten().enumerate();
        for (index, container) in containers.filter(|(_, it)| it.name != sidecar::NAME) {
            let mounted = Mounted::of(container, &volumes, preferred);
            let Some(mounted) = mounted else { continue };
            let index = index.to_string();
            let place = ["spec", list, index.as_str()];
            additions.container(place, container, &mounted, sockets, &mut warnings);
        }
    }
    // Last: it moves the places of the other init containers.
    let existing = all(spec).find(|container| container.name == sidecar::NAME);
    match (sizes, existing) {
        (Some(sizes), None) => {
            let container = sidecar::container(sizes, sockets, overrides, settings);
            let first = spec.init_containers.as_ref().is_none_or(Vec::is_empty);
            additions.prepend(["spec", "initContainers"], first, &container);
        }
        // Others that know no native sidecars strip it, and then nothing else of the pod would ever start.
        (Some(_), Some(_)) => additions.restart_policy(spec),
        (None, _) => {}
    }
    Ok(Injection {
        patch: additions.operations,
        warnings,
    })
}

/// Whether a pod has what a pod that writes needs: a sidecar that runs beside its containers, and its sockets volume.
pub(crate) fn is_injected(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut natives = spec.init_containers.iter().flatten();
    let has_sidecar = natives.any(|container| {
        container.name == sidecar::NAME && container.restart_policy.as_deref() == Some("Always")
    });
    has_sidecar && spec.volumes.iter().flatten().any(is_sockets)
}

/// Pods that kubelet has from a file; the API server only shows them.
fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|it| it.contains_key("kubernetes.io/config.mirror"))
}

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

/// The volumes of a pod that are ours.
struct Volumes<'a> {
    /// With whether the pod may write them.
    writable: BTreeMap<&'a str, bool>,
    /// Claims that are left alone because they do not exist.
    missing: Vec<&'a str>,
}

impl<'a> Volumes<'a> {
    fn of(facts: &'a Facts, wish: Wish) -> Self {
        let (mut writable, mut missing) = (BTreeMap::new(), Vec::new());
        for (volume, claim) in &facts.claims {
            match claim {
                Claim::Ours { is_read_only, .. } => {
                    writable.insert(volume.as_str(), !is_read_only);
                }
                Claim::Missing { is_read_only, .. } if wish == Wish::Enabled => {
                    writable.insert(volume.as_str(), !is_read_only);
                }
                Claim::Missing { name, .. } => missing.push(name.as_str()),
            }
        }
        Self { writable, missing }
    }

    fn warnings(&self) -> Vec<String> {
        let sentence = |claim: &&str| {
            format!(
                "vineyard.io: claim {claim} does not exist yet, so this pod gets no sidecar for it; \
                 create the claim first, or annotate the pod with vineyard.io/inject: enabled"
            )
        };
        self.missing.iter().map(sentence).collect()
    }
}

fn is_sockets(volume: &Volume) -> bool {
    volume.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER)
}

/// The name of the sockets volume that the pod has.
fn sockets_volume(spec: &PodSpec) -> Result<Option<&str>, Refusal> {
    let volumes = || spec.volumes.iter().flatten();
    if let Some(sockets) = volumes().find(|volume| is_sockets(volume)) {
        return Ok(Some(&sockets.name));
    }
    match volumes().any(|volume| volume.name == SOCKETS_VOLUME) {
        true => Err(Refusal::Volume(SOCKETS_VOLUME)),
        false => Ok(None),
    }
}

fn volume(sizes: Option<&Sizes>) -> Volume {
    let writes = sizes.map(|sizes| (WRITES.to_owned(), sizes.allowance.0.to_string()));
    Volume {
        name: SOCKETS_VOLUME.to_owned(),
        csi: Some(CSIVolumeSource {
            driver: DRIVER.to_owned(),
            volume_attributes: writes.map(|writes| [writes].into()),
            ..CSIVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// What a container mounts of ours.
struct Mounted<'a> {
    /// Directories by volume, in the order of the container's mounts.
    directories: Vec<(&'a str, &'a str)>,
    /// The one that `vineyard.open()` opens.
    chosen: Option<&'a str>,
    /// Something of it can be written.
    writes: bool,
}

impl<'a> Mounted<'a> {
    fn of(
        container: &'a Container,
        volumes: &Volumes<'_>,
        preferred: Option<&str>,
    ) -> Option<Self> {
        let mounts = container.volume_mounts.iter().flatten();
        let ours: Vec<(&VolumeMount, bool)> = mounts
            .filter_map(|mount| {
                let writable = volumes.writable.get(mount.name.as_str())?;
                Some((mount, *writable && !mount.read_only.unwrap_or(false)))
            })
            .collect();
        if ours.is_empty() {
            return None;
        }
        // A part of a volume is no volume.
        let whole = ours.iter().filter(|(mount, _)| {
            let part = mount.sub_path.as_ref().or(mount.sub_path_expr.as_ref());
            part.is_none_or(String::is_empty)
        });
        let mut directories: Vec<(&str, &str)> = Vec::new();
        let (mut first, mut first_writable, mut named) = (None, None, None);
        for (mount, writable) in whole {
            let path = mount.mount_path.as_str();
            if directories.iter().all(|(name, _)| *name != mount.name) {
                directories.push((&mount.name, path));
            }
            first = first.or(Some(path));
            first_writable = first_writable.or(writable.then_some(path));
            named = named.or((Some(mount.name.as_str()) == preferred).then_some(path));
        }
        Some(Self {
            directories,
            chosen: named.or(first_writable).or(first),
            writes: ours.iter().any(|(_, writable)| *writable),
        })
    }
}

/// A patch that only adds.
#[derive(Default)]
struct Additions {
    operations: Vec<PatchOperation>,
}

impl Additions {
    fn add(&mut self, path: &[&str], value: Value) {
        self.operations.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(path.iter().map(|part| Token::new(*part))),
            value,
        }));
    }

    /// Adds `item` at the end of a list, which is made when the pod has none.
    fn append<const N: usize>(&mut self, list: [&str; N], is_first: bool, item: &impl Serialize) {
        self.insert(&list, "-", is_first, item);
    }

    fn prepend<const N: usize>(&mut self, list: [&str; N], is_first: bool, item: &impl Serialize) {
        self.insert(&list, "0", is_first, item);
    }

    fn insert(&mut self, list: &[&str], at: &str, is_first: bool, item: &impl Serialize) {
        let item = json!(item);
        match is_first {
            true => self.add(list, json!([item])),
            false => self.add(&[list, &[at]].concat(), item),
        }
    }

    /// Gives a container the sockets and the variables that it does not have.
    fn container(
        &mut self,
        [spec, list, index]: [&str; 3],
        container: &Container,
        mounted: &Mounted<'_>,
        sockets: &str,
        warnings: &mut Vec<String>,
    ) {
        let mut variables = Vec::new();
        if let Some(directory) = mounted.chosen {
            variables.push((VOLUME_VARIABLE.to_owned(), directory.to_owned()));
        }
        variables.extend(mounted.directories.iter().map(|(name, path)| {
            let name = name.to_ascii_uppercase().replace(['-', '.'], "_");
            (format!("{VOLUME_VARIABLE}_{name}"), (*path).to_owned())
        }));
        let mounts = || container.volume_mounts.iter().flatten();
        let has_sockets = mounts().find(|mount| mount.name == sockets);
        let taken = mounts().find(|mount| overlaps(&mount.mount_path));
        let directory = match (has_sockets, taken) {
            (Some(mount), _) => Some(mount.mount_path.as_str()),
            (None, None) => {
                let mount = VolumeMount {
                    name: sockets.to_owned(),
                    mount_path: sidecar::SOCKETS.to_owned(),
                    read_only: Some(true),
                    ..VolumeMount::default()
                };
                self.append([spec, list, index, "volumeMounts"], false, &mount);
                Some(sidecar::SOCKETS)
            }
            (None, Some(mount)) => {
                warnings.push(format!(
                    "vineyard.io: container {} mounts volume {} at {}, where its sockets would be: \
                     what it writes is on its own bill",
                    container.name, mount.name, mount.mount_path,
                ));
                None
            }
        };
        if let Some(directory) = directory.filter(|_| mounted.writes) {
            let socket = format!("{directory}/pod/vineyard.sock");
            variables.push((SOCKET_VARIABLE.to_owned(), socket));
        }
        self.variables([spec, list, index, "env"], container, variables);
    }

    /// In front of the container's own, which may refer to them, and which win.
    fn variables(&mut self, list: [&str; 4], container: &Container, new: Vec<(String, String)>) {
        let existing = container.env.as_deref().unwrap_or_default();
        let new = new
            .into_iter()
            .filter(|(name, _)| existing.iter().all(|it| it.name != *name));
        let new = new.map(|(name, value)| json!({"name": name, "value": value}));
        let new: Vec<Value> = new.collect();
        if new.is_empty() {
            return;
        }
        if existing.is_empty() {
            return self.add(&list, json!(new));
        }
        for item in new.iter().rev() {
            self.prepend(list, false, item);
        }
    }

    fn restart_policy(&mut self, spec: &PodSpec) {
        let natives = spec.init_containers.iter().flatten().enumerate();
        for (index, container) in natives.filter(|(_, it)| it.name == sidecar::NAME) {
            if container.restart_policy.is_none() {
                let index = index.to_string();
                let path = ["spec", "initContainers", index.as_str(), "restartPolicy"];
                self.add(&path, json!("Always"));
            }
        }
    }
}

/// Whether a mount is at, or below, the place of the sockets.
fn overlaps(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path.strip_prefix(sidecar::SOCKETS)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
