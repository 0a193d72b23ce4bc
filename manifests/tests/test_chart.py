"""What the chart makes."""

import re

import pytest
from conftest import CHART, NAMESPACE, ROOT, WAYS, Object, Render, helm, of_kind, pods, template

CLUSTER_WIDE = {
    "ClusterRole", "ClusterRoleBinding", "CSIDriver", "CustomResourceDefinition", "MutatingWebhookConfiguration",
    "Namespace", "PriorityClass", "StorageClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.replace(" ", "-"))
def test_helm_has_nothing_to_say_about_it(way: str) -> None:
    result = helm("lint", "--strict", str(CHART), "--namespace", NAMESPACE, *WAYS[way])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout


def test_the_plain_manifests_are_what_the_chart_makes() -> None:
    plain = (ROOT / "manifests/vineyard.yaml").read_text(encoding="utf-8")
    result = template("--set=namespace.create=true")
    assert result.returncode == 0
    assert result.stdout in plain, "run make manifests"


def test_every_object_is_there_once_and_in_the_namespace_of_the_release(objects: list[Object]) -> None:
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    assert len(names) == len(set(names))
    for it in objects:
        namespace = it["metadata"].get("namespace")
        assert namespace == (None if it["kind"] in CLUSTER_WIDE else NAMESPACE), it["metadata"]
        assert not {"status", "creationTimestamp"} & it.keys()


def test_selectors_find_the_pods_that_they_are_for(objects: list[Object]) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects).items()}
    for it in objects:
        match it["kind"]:
            case "Deployment" | "DaemonSet":
                selector, expected = it["spec"]["selector"]["matchLabels"], {it["metadata"]["name"]}
            case "PodDisruptionBudget":
                selector, expected = it["spec"]["selector"]["matchLabels"], {"vineyard-controller"}
            case "NetworkPolicy":
                selector, expected = it["spec"]["podSelector"]["matchLabels"], {it["metadata"]["name"]}
            case "Service":
                webhook = it["metadata"]["name"] == "vineyard-webhook"
                selector, expected = it["spec"]["selector"], {"vineyard-controller"} if webhook else set(labels)
            case _:
                continue
        assert {name for name, its in labels.items() if selector.items() <= its.items()} == expected, it["metadata"]


def test_volumes_that_are_mounted_exist_and_none_is_left_over(objects: list[Object]) -> None:
    for name, pod in pods(objects).items():
        volumes = [it["name"] for it in pod["spec"].get("volumes", [])]
        mounted = {it["name"] for each in pod["spec"]["containers"] for it in each.get("volumeMounts", [])}
        assert len(volumes) == len(set(volumes)), name
        assert mounted == set(volumes), name


def test_nothing_is_mounted_below_a_mount_that_the_node_sees(objects: list[Object]) -> None:
    """It would be mounted on the node as well, once more by each container, and stay there."""
    for name, pod in pods(objects).items():
        for container in pod["spec"]["containers"]:
            mounts = container.get("volumeMounts", [])
            seen = [it["mountPath"] for it in mounts if it.get("mountPropagation") == "Bidirectional"]
            assert seen or name != "vineyard-node"
            for path in (it["mountPath"] for it in mounts):
                assert not any(path.startswith(above + "/") for above in seen), f"{name}: {path}"


def test_roles_are_bound_to_accounts_that_pods_have(objects: list[Object]) -> None:
    accounts = {pod["spec"]["serviceAccountName"] for pod in pods(objects).values()}
    assert accounts == {it["metadata"]["name"] for it in of_kind(objects, "ServiceAccount")}
    roles = {(it["kind"], it["metadata"]["name"]) for it in objects if it["kind"] in ("Role", "ClusterRole")}
    bound = set()
    for it in of_kind(objects, "RoleBinding") + of_kind(objects, "ClusterRoleBinding"):
        bound.add((it["roleRef"]["kind"], it["roleRef"]["name"]))
        assert {subject["name"] for subject in it["subjects"]} <= accounts - {"vineyard-retainer"}
        assert {subject["namespace"] for subject in it["subjects"]} == {NAMESPACE}
    # This one is added to the cluster's own roles of who may view.
    assert roles == bound | {("ClusterRole", "vineyard-view")}


def test_no_role_has_wildcards_or_more_than_the_named_secret(objects: list[Object]) -> None:
    for role in of_kind(objects, "Role") + of_kind(objects, "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if {"secrets", "leases", "mutatingwebhookconfigurations"} & set(rule["resources"]):
                assert rule["resourceNames"]
                assert not {"create", "list", "watch"} & set(rule["verbs"])


def test_all_but_the_node_plugin_would_pass_the_restricted_pod_security(objects: list[Object]) -> None:
    for name, pod in pods(objects).items():
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            if name == "vineyard-node":
                assert context["privileged"]
                continue
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert pod["spec"]["securityContext"]["runAsNonRoot"]
            assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_retainer_may_hold_any_number_of_bytes_and_is_never_replaced_by_itself(render: Render) -> None:
    [retainer] = of_kind(render(), "DaemonSet", "vineyard-retainer")
    assert retainer["spec"]["updateStrategy"] == {"type": "OnDelete"}
    pod = retainer["spec"]["template"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "retainer"
    # Above all pods of users, and below 2e9: for a critical pod that is resized on a full node, kubelet kills others.
    [priority] = of_kind(render(), "PriorityClass", pod["spec"]["priorityClassName"])
    assert priority["value"] == 1_000_000_000
    [container] = pod["spec"]["containers"]
    assert container["resources"].keys() == {"requests"}
    assert {"resourceName": "memory", "restartPolicy": "NotRequired"} in container["resizePolicy"]
    node = pods(render())["vineyard-node"]["spec"]
    [socket] = [it.partition("=")[2] for it in container["args"] if it.startswith("--listen=")]
    assert f"--retainer={socket}" in node["containers"][0]["args"]
    overhead = container["resources"]["requests"]["memory"]
    assert f"--retainer-overhead={overhead}B" in node["containers"][0]["args"]


def test_the_webhook_is_in_nobodys_way_and_leaves_the_authority_to_the_controller(render: Render) -> None:
    made = render("--set=webhook.enabled=true,webhook.excludedNamespaces={istio-system}")
    [configuration] = of_kind(made, "MutatingWebhookConfiguration", "vineyard")
    webhook, _ = configuration["webhooks"]
    assert "caBundle" not in webhook["clientConfig"]
    assert (webhook["failurePolicy"], webhook["sideEffects"]) == ("Ignore", "None")
    assert webhook["timeoutSeconds"] <= 5
    [selected] = webhook["namespaceSelector"]["matchExpressions"]
    assert selected["operator"] == "NotIn"
    assert selected["values"] == ["kube-system", NAMESPACE, "istio-system"]
    [service] = of_kind(made, "Service", webhook["clientConfig"]["service"]["name"])
    [port] = service["spec"]["ports"]
    controller = pods(made)["vineyard-controller"]["spec"]["containers"][0]
    assert f"--webhook-listen=0.0.0.0:{port['targetPort']}" in controller["args"]
    assert "--sidecar-image=docker.io/vineyardcsi/sidecar:0.1.0" in controller["args"]
    assert "--sidecar=require" in pods(made)["vineyard-node"]["spec"]["containers"][0]["args"]
    [secret] = of_kind(made, "Secret")
    assert not secret.keys() & {"data", "stringData"}, "an upgrade would take the certificate away"


def test_a_retainer_never_waits_for_the_webhook_that_raises_its_request(render: Render) -> None:
    made = render(*WAYS["everything"])
    [configuration] = of_kind(made, "MutatingWebhookConfiguration", "vineyard")
    injects, raises = configuration["webhooks"]
    assert (injects["failurePolicy"], raises["failurePolicy"]) == ("Fail", "Ignore")
    assert (raises["sideEffects"], raises["reinvocationPolicy"]) == ("None", "Never")
    assert "caBundle" not in raises["clientConfig"]
    assert raises["clientConfig"]["service"] == injects["clientConfig"]["service"] | {"path": "/retainer"}
    [retainer] = of_kind(made, "DaemonSet", "vineyard-retainer")
    labels = retainer["spec"]["template"]["metadata"]["labels"]
    assert raises["objectSelector"]["matchLabels"].items() <= labels.items()
    assert raises["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAMESPACE}
    [configuration] = of_kind(render("--set=retainer.enabled=false"), "MutatingWebhookConfiguration", "vineyard")
    assert [it["name"] for it in configuration["webhooks"]] == ["pods.vineyard.io"]


def test_without_the_webhook_nothing_of_it_is_there(render: Render) -> None:
    made = render("--set=webhook.enabled=false")
    assert not of_kind(made, "MutatingWebhookConfiguration") + of_kind(made, "Secret") + of_kind(made, "Service")
    assert not [it for it in pods(made)["vineyard-controller"]["spec"]["containers"][0]["args"] if "webhook" in it]


def test_definitions_stay_only_when_they_are_to(render: Render) -> None:
    for keep in ("true", "false"):
        definitions = of_kind(render(f"--set=definitions.keep={keep}"), "CustomResourceDefinition")
        assert len(definitions) == 2
        for it in definitions:
            kept = it["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
            assert kept == ("keep" if keep == "true" else None)


def test_storage_classes_have_the_parameters_that_the_driver_takes(render: Render) -> None:
    made = render(*WAYS["everything"])
    classes = {it["metadata"]["name"]: it for it in of_kind(made, "StorageClass")}
    assert classes.keys() == {"vineyard", "scratch"}
    assert classes["vineyard"]["parameters"] == {"onLoss": "fail"}
    assert classes["scratch"]["parameters"] == {"onLoss": "recreate", "inodes": "4294967295"}
    assert classes["scratch"]["mountOptions"] == ["noatime", "noexec"]
    for it in classes.values():
        assert it["volumeBindingMode"] == "WaitForFirstConsumer"
        assert it["provisioner"] == "vineyard.io"


def test_one_controller_has_no_budget_that_would_block_a_drain(render: Render) -> None:
    assert of_kind(render(), "PodDisruptionBudget")
    assert not of_kind(render("--set=controller.replicas=1"), "PodDisruptionBudget")


def test_the_board_asks_for_metrics_that_the_driver_has(render: Render) -> None:
    [board] = of_kind(render("--set=metrics.dashboard.enabled=true"), "ConfigMap")
    asked = set(re.findall(r"vineyard_[a-z_]+", board["data"]["vineyard.json"]))
    assert len(asked) > 8
    source = "\n".join(it.read_text(encoding="utf-8") for it in (ROOT / "csi-driver/src").rglob("*.rs"))
    for name in asked:
        stem = re.sub(r"^vineyard_(csi_)?|(_bytes|_seconds)?(_total|_bucket)?$", "", name)
        assert f'"{stem}"' in source, name
