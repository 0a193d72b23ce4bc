use serde_json::json;

use super::*;

fn pod(request: &str, allocated: &str, generations: Option<(i64, i64)>) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "retainer-x", "uid": "u"},
        "spec": {"containers": [{"name": "r", "resources": {"requests": {"memory": request}}}]},
        "status": {"containerStatuses": [{
            "name": "r", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"memory": allocated},
        }]},
    });
    if let Some((generation, observed)) = generations {
        pod["metadata"]["generation"] = generation.into();
        pod["status"]["observedGeneration"] = observed.into();
    }
    serde_json::from_value(pod).unwrap()
}

fn pending(pod: &mut Pod, reason: &str, generation: Option<i64>) {
    let condition = PodCondition {
        type_: "PodResizePending".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some("why".into()),
        observed_generation: generation,
        ..PodCondition::default()
    };
    pod.status.as_mut().unwrap().conditions = Some(vec![condition]);
}

fn of(pod: &Pod) -> Observation {
    Observation::of(pod).unwrap()
}

const MIB: u64 = 1 << 20;

#[test]
fn what_kubelet_has_allocated_counts_and_not_what_is_asked_for() {
    let seen = of(&pod("64Mi", "16Mi", Some((2, 2))));
    assert_eq!(seen.request, Bytes(64 * MIB));
    assert_eq!(seen.surely_allocated(None), Bytes(16 * MIB));
    // Whatever was known before: this is newer.
    assert_eq!(seen.surely_allocated(Some(Bytes(0))), Bytes(16 * MIB));
}

#[test]
fn a_status_that_is_older_than_the_spec_never_raises_what_is_allocated() {
    // 100 were allocated, then 40 and 90 were asked for, and kubelet has said nothing since.
    let late = of(&pod("90Mi", "100Mi", Some((4, 2))));
    assert_eq!(
        late.surely_allocated(Some(Bytes(40 * MIB))),
        Bytes(40 * MIB)
    );
    // Another driver asked; at most what is asked for now stays allocated.
    assert_eq!(late.surely_allocated(None), Bytes(90 * MIB));
    // Without generations, equality is the sign.
    let unsaid = of(&pod("90Mi", "100Mi", None));
    assert_eq!(
        unsaid.surely_allocated(Some(Bytes(40 * MIB))),
        Bytes(40 * MIB)
    );
    let equal = of(&pod("90Mi", "90Mi", None));
    assert_eq!(
        equal.surely_allocated(Some(Bytes(40 * MIB))),
        Bytes(90 * MIB)
    );
}

#[test]
fn the_container_status_of_an_older_kubelet_is_read_as_well() {
    let mut pod = pod("64Mi", "64Mi", None);
    let status = &mut pod.status.as_mut().unwrap().container_statuses;
    let container = &mut status.as_mut().unwrap()[0];
    let allocated = container.allocated_resources.take();
    container.resources = Some(k8s_openapi::api::core::v1::ResourceRequirements {
        requests: allocated,
        ..Default::default()
    });
    assert_eq!(of(&pod).surely_allocated(None), Bytes(64 * MIB));
    pod.status = None;
    assert_eq!(of(&pod).surely_allocated(None), Bytes(0));
}

#[test]
fn an_answer_to_an_older_question_is_none() {
    let mut pod = pod("64Mi", "16Mi", Some((3, 3)));
    pending(&mut pod, "Deferred", Some(2));
    assert_eq!(of(&pod).answer, Answer::Silence);
    pending(&mut pod, "Deferred", Some(3));
    assert_eq!(of(&pod).answer, Answer::Deferred("why".into()));
    pending(&mut pod, "Infeasible", None);
    assert_eq!(of(&pod).answer, Answer::Infeasible("why".into()));
}

#[test]
fn of_several_containers_the_one_that_is_called_retainer_counts() {
    let mut pod = pod("64Mi", "16Mi", None);
    let containers = &mut pod.spec.as_mut().unwrap().containers;
    containers.push(Container {
        name: "other".into(),
        ..Container::default()
    });
    assert!(Observation::of(&pod).is_none());
    pod.spec.as_mut().unwrap().containers[1].name = "retainer".into();
    let seen = of(&pod);
    assert_eq!(
        (seen.container.as_str(), seen.request),
        ("retainer", Bytes(0))
    );
}

#[test]
fn a_pod_that_ends_is_no_retainer_any_more() {
    let mut pod = pod("64Mi", "16Mi", None);
    assert!(is_alive(&pod));
    pod.status.as_mut().unwrap().phase = Some("Failed".into());
    assert!(!is_alive(&pod));
}
