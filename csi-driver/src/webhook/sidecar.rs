//! The container that is injected: what it may add, what it asks for, and what it runs. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ExecAction, PodSpec, Probe, ResourceRequirements, SeccompProfile,
    SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::facts::{Bounds, Claim, Facts};
use super::quantity;
use crate::bytes::Bytes;

/// Name of the container.
pub(super) const NAME: &str = "vineyard-sidecar";

/// Where the sockets volume is mounted, in the sidecar and in its clients.
pub(super) const SOCKETS: &str = "/run/vineyard";

/// The program in its image.
const PROGRAM: &str = "/vineyard-sidecar";

/// Where the admission of service accounts mounts their token, unless something is mounted there.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Anybody but root; the image says the same.
const USER: i64 = 65532;

/// What a sidecar may use of a processor where everybody has a limit, in thousandths: it allocates in bursts.
const CPU_LIMIT: u64 = 500;

/// What it asks for in a pod of the class Guaranteed, where the request is the limit.
const GUARANTEED_CPU: u64 = 100;

/// What injected sidecars are like.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Image of the sidecar.
    pub(crate) image: String,
    /// Its own memory, beside what it adds to the bill.
    pub(crate) overhead: Bytes,
    /// The processor time that it asks for, in thousandths.
    pub(crate) cpu: u64,
}

/// What the pod itself says of its sidecar.
#[derive(Clone, Debug, Default)]
pub(super) struct Overrides {
    /// Bytes that it may add.
    pub(super) writes: Option<Bytes>,
    /// The image.
    pub(super) image: Option<String>,
    /// Its own memory.
    pub(super) overhead: Option<Bytes>,
    /// Processor time, in thousandths.
    pub(super) cpu: Option<u64>,
}

/// What the pod may add to its bill, and what the container gets for it.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// What it may add.
    pub(super) allowance: Bytes,
    resources: ResourceRequirements,
}

impl Sizes {
    /// Decides them. An explicit wish is never made smaller: the API server refuses what its namespace does not allow.
    pub(super) fn decide(
        spec: &PodSpec,
        facts: &Facts,
        overrides: &Overrides,
        settings: &Settings,
    ) -> Self {
        let bounds = &facts.bounds;
        let overhead = overrides.overhead.unwrap_or(settings.overhead);
        let allowance = overrides.writes.unwrap_or_else(|| {
            let fresh = facts.claims.values().map(|claim| match claim {
                Claim::Ours {
                    capacity,
                    is_fresh: true,
                    is_read_only: false,
                } => capacity.0,
                _ => 0,
            });
            let fresh = fresh.fold(0, u64::saturating_add);
            Bytes(fresh.min(room(spec, bounds).saturating_sub(overhead.0)))
        });
        let memory = Bytes(allowance.0.saturating_add(overhead.0));
        let memory = memory.max(bounds.least_memory.unwrap_or_default());
        let cpu = Cpu::of(spec);
        let request = overrides.cpu.unwrap_or(match cpu {
            Cpu::Guaranteed => settings.cpu.max(GUARANTEED_CPU),
            Cpu::Unlimited | Cpu::Limited => settings.cpu,
        });
        let request = request.max(bounds.least_cpu.unwrap_or(0));
        let limit = match cpu {
            Cpu::Unlimited => None,
            Cpu::Guaranteed => Some(request),
            Cpu::Limited => {
                let most = bounds.most_cpu.unwrap_or(u64::MAX);
                Some(CPU_LIMIT.min(most).max(request))
            }
        };
        let quantities = |cpu: Option<u64>| -> BTreeMap<String, Quantity> {
            let cpu = cpu.map(|cpu| ("cpu".to_owned(), quantity::of_millicores(cpu)));
            let memory = ("memory".to_owned(), quantity::of_bytes(memory));
            cpu.into_iter().chain([memory]).collect()
        };
        Self {
            allowance,
            resources: ResourceRequirements {
                requests: Some(quantities(Some(request))),
                limits: Some(quantities(limit)),
                ..ResourceRequirements::default()
            },
        }
    }
}

/// The memory that a container of ours may have at most in this pod.
fn room(spec: &PodSpec, bounds: &Bounds) -> u64 {
    let of_container = bounds.most_memory.map_or(u64::MAX, |most| most.0);
    let of_pod = bounds.most_pod_memory.map_or(u64::MAX, |most| {
        let others = lasting(spec).filter_map(|container| limit(container, "memory"));
        let others = others.filter_map(quantity::bytes);
        let others = others.fold(0, |sum: u64, each| sum.saturating_add(each.0));
        most.0.saturating_sub(others)
    });
    of_container.min(of_pod)
}

/// The containers that run as long as the pod does.
fn lasting(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let natives = spec.init_containers.iter().flatten();
    let natives = natives.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(natives)
}

fn limit<'a>(container: &'a Container, resource: &str) -> Option<&'a str> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    limits.get(resource).map(|Quantity(text)| text.as_str())
}

fn request<'a>(container: &'a Container, resource: &str) -> Option<&'a str> {
    let requests = container.resources.as_ref()?.requests.as_ref();
    let request = requests.and_then(|requests| requests.get(resource));
    // What is not asked for is the limit.
    match request {
        Some(Quantity(text)) => Some(text.as_str()),
        None => limit(container, resource),
    }
}

/// How the other containers of a pod use processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cpu {
    /// Some have no limit: then we need none either.
    Unlimited,
    /// All have a limit, as a quota for limits demands of every container.
    Limited,
    /// All have requests that are their limits, for processors and memory: a limit of ours keeps the pod in the class.
    Guaranteed,
}

impl Cpu {
    fn of(spec: &PodSpec) -> Self {
        let all = || {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        };
        if !all().all(|container| limit(container, "cpu").is_some()) {
            return Self::Unlimited;
        }
        let is_fixed = |container: &Container| {
            ["cpu", "memory"].iter().all(|resource| {
                let number = |text: Option<&str>| text.and_then(quantity::millicores);
                let limit = number(limit(container, resource));
                limit.is_some() && limit == number(request(container, resource))
            })
        };
        match all().all(is_fixed) {
            true => Self::Guaranteed,
            false => Self::Limited,
        }
    }
}

/// The container itself, listening in the sockets volume named `sockets`.
pub(super) fn container(
    sizes: Sizes,
    sockets: &str,
    overrides: &Overrides,
    settings: &Settings,
) -> Container {
    let listen = format!("--listen={}", socket());
    let mount = |path: &str, is_read_only: bool| VolumeMount {
        name: sockets.to_owned(),
        mount_path: path.to_owned(),
        read_only: is_read_only.then_some(true),
        ..VolumeMount::default()
    };
    Container {
        name: NAME.to_owned(),
        image: Some(overrides.image.as_ref().unwrap_or(&settings.image).clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        restart_policy: Some("Always".to_owned()),
        args: Some(vec![
            listen.clone(),
            format!("--driver={SOCKETS}/driver/driver.sock"),
            "--log-format=json".to_owned(),
        ]),
        resources: Some(sizes.resources),
        // The others start when it listens.
        startup_probe: Some(Probe {
            exec: Some(ExecAction {
                command: Some(vec![PROGRAM.to_owned(), "--probe".to_owned(), listen]),
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(5),
            failure_threshold: Some(60),
            ..Probe::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_group: Some(USER),
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        // The second one keeps the pod's token out: it needs none.
        volume_mounts: Some(vec![mount(SOCKETS, false), mount(TOKEN, true)]),
        ..Container::default()
    }
}

/// Where the sidecar listens.
pub(super) fn socket() -> String {
    format!("{SOCKETS}/pod/vineyard.sock")
}
