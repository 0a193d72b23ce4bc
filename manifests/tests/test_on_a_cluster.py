"""The chart in a real API server: `make cluster-test` installs it before, and finds it installed after."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import NAMESPACE, ROOT, WAYS, template

ID = os.environ.get("VINEYARD_TEST_CLUSTER")
pytestmark = pytest.mark.skipif(not ID, reason="needs a cluster: make cluster-test")

# Helm 4's own way would wait for retainers to be replaced, which nobody does.
VALUES = ["--namespace", NAMESPACE, "--values", "tests/cluster/values.yaml", "--wait=legacy", "--timeout", "4m"]
INSTALL = ["helm", "upgrade", "--install", "vineyard", "manifests/vineyard", "--create-namespace", *VALUES]
# Kinds that Kubernetes adds to whatever is there.
ALWAYS = {"events", "events.events.k8s.io", "pods.metrics.k8s.io"}


def kubectl(line: str, *more: str, stdin: str | None = None) -> str:
    """Runs kubectl with the words of a line, and more that are not to be split."""
    return run("kubectl", *line.split(), *more, stdin=stdin)


def run(*command: str, stdin: str | None = None) -> str:
    """Runs a command where the cluster is."""
    cluster = str(ROOT / "target/debug/vineyard-test-cluster")
    result = subprocess.run(
        [cluster, "exec", "--id", str(ID), "--", *command],
        input=stdin, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}: {result.stderr}{result.stdout}"
    return result.stdout


def get(*what: str) -> Any:
    """What kubectl gets, parsed."""
    return json.loads(run("kubectl", "get", *what, "-o", "json"))


def poll(seconds: float, reached: Callable[[], object]) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"chart-{os.getpid()}"
    run("kubectl", "create", "namespace", name)
    yield name
    run("kubectl", "delete", "namespace", name, "--timeout=180s")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.replace(" ", "-"))
def test_the_api_server_takes_every_object_of(way: str, namespace: str) -> None:
    # Nobody has defined monitors here.
    rendered = template(*WAYS[way], "--set=metrics.serviceMonitor.enabled=false", "--namespace", namespace).stdout
    assert rendered.count("\nkind: ") > 15
    said = kubectl("apply --server-side --force-conflicts --dry-run=server --warnings-as-errors -f -", stdin=rendered)
    assert said.count("serverside-applied") == rendered.count("\nkind: ")


@pytest.mark.parametrize("example", sorted((ROOT / "manifests/examples").iterdir()), ids=lambda path: path.stem)
def test_the_api_server_takes_the_example(example: Path, namespace: str) -> None:
    for each in yaml.safe_load_all(example.read_text(encoding="utf-8")):
        each["metadata"].pop("namespace", None)
        kubectl(f"create --dry-run=server --namespace {namespace} -f -", stdin=yaml.safe_dump(each))


def test_an_upgrade_leaves_alone_what_the_controller_wrote_and_the_retainers() -> None:
    run(*INSTALL)
    configuration = ("mutatingwebhookconfiguration", "vineyard")
    secret = ("secret", "vineyard-webhook", "--namespace", NAMESPACE)
    retainers = ("pods", "--namespace", NAMESPACE, "--selector", "app.kubernetes.io/component=retainer")

    def bundles() -> list[str | None]:
        return [webhook["clientConfig"].get("caBundle") for webhook in get(*configuration)["webhooks"]]

    assert poll(60, lambda: all(bundles())), "the controller has not written the authority"
    before = bundles(), get(*secret)["data"], [it["metadata"]["uid"] for it in get(*retainers)["items"]]
    parts = ("node", "controller", "retainer")
    run(*INSTALL, *[f"--set-string={part}.podAnnotations.upgrade=1" for part in parts])
    assert before == (bundles(), get(*secret)["data"], [it["metadata"]["uid"] for it in get(*retainers)["items"]])


def test_a_node_plugin_may_write_about_its_own_node_only() -> None:
    [node, *_] = [it["metadata"]["name"] for it in get("vineyardnodes", "--namespace", NAMESPACE)["items"]]

    def pod(component: str) -> str:
        selector = f"--selector=app.kubernetes.io/component={component}"
        pods = get("pods", "--namespace", NAMESPACE, selector, f"--field-selector=spec.nodeName={node}")
        [name] = [it["metadata"]["name"] for it in pods["items"]]
        return str(name)

    bound = f"--bound-object-kind=Pod --bound-object-name={pod('node')}"
    token = kubectl(f"create token vineyard-node --namespace {NAMESPACE} {bound}").strip()
    server = kubectl("config view --minify --output=jsonpath={.clusters[0].cluster.server}")

    # Not by kubectl, which also reads what it patches: that it may not.
    def patch(path: str, body: dict[str, Any]) -> str:
        curl = "curl --silent --insecure --request PATCH --header Content-Type:application/strategic-merge-patch+json"
        if "vineyardnodes" in path:
            curl = curl.replace("strategic-merge", "merge")
        url = f"{server}{path}?dryRun=All"
        return run(*curl.split(), "--header", f"Authorization: Bearer {token}", "--data", json.dumps(body), url)

    nodes = f"/apis/vineyard.io/v1alpha1/namespaces/{NAMESPACE}/vineyardnodes"
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    other = {"apiVersion": "vineyard.io/v1alpha1", "kind": "VineyardNode", "metadata": {"name": "other"}, "spec": {}}
    kubectl(f"create --namespace {NAMESPACE} -f -", stdin=json.dumps(other))
    try:
        assert '"pool": "other"' in patch(f"{nodes}/{node}", {"spec": {"pool": "other"}})
        assert "may not write about node other" in patch(f"{nodes}/other", {"spec": {"pool": "other"}})
    finally:
        kubectl(f"delete vineyardnode other --namespace {NAMESPACE}")

    def resize(container: str) -> dict[str, Any]:
        return {"spec": {"containers": [{"name": container, "resources": {"requests": {"memory": "70Mi"}}}]}}

    assert "70Mi" in patch(f"{pods}/{pod('retainer')}/resize", resize("retainer"))
    assert "may resize its own retainer only" in patch(f"{pods}/{pod('node')}/resize", resize("node"))


def test_uninstall_is_refused_while_there_are_volumes() -> None:
    run(*INSTALL)
    volume = {
        "apiVersion": "vineyard.io/v1alpha1", "kind": "VineyardVolume", "metadata": {"name": "precious"},
        "spec": {"name": "precious", "capacity": 1, "pool": "x", "accessModes": [], "parameters": {"onLoss": "fail"}},
        "status": {"phase": "Booked", "booked": "nowhere", "epoch": 0, "generation": 0},
    }  # fmt: skip
    kubectl(f"create --namespace {NAMESPACE} -f -", stdin=json.dumps(volume))
    try:
        with pytest.raises(AssertionError, match="1 volumes are there: precious"):
            run("helm", "uninstall", "vineyard", "--namespace", NAMESPACE)
        assert get("deployments", "vineyard-controller", "--namespace", NAMESPACE)
    finally:
        kubectl(f"delete vineyardvolume precious --namespace {NAMESPACE}")
    # As the guide says.
    [release] = json.loads(run("helm", "list", "--all-namespaces", "--output", "json"))
    run("helm", "rollback", "vineyard", release["revision"], "--namespace", NAMESPACE)


def test_uninstall_leaves_nothing() -> None:
    run(*INSTALL)
    run("helm", "uninstall", "vineyard", "--namespace", NAMESPACE, "--wait", "--timeout", "4m")
    try:
        # Without our own: their definitions are looked for.
        kinds = set(kubectl("api-resources --verbs=list,delete --output=name").split()) - ALWAYS
        assert not [kind for kind in kinds if "vineyard" in kind]
        assert poll(60, lambda: not left(kinds)), left(kinds)
        drivers = [it["name"] for node in get("csinodes")["items"] for it in node["spec"]["drivers"] or []]
        assert "vineyard.io" not in drivers
        noted = [it["metadata"]["annotations"] for it in get("nodes")["items"]]
        assert not [key for each in noted for key in each if "vineyard.io" in key]
    finally:
        run(*INSTALL)


def left(kinds: set[str]) -> list[str]:
    """Objects that are ours: in the namespace, or named like us elsewhere."""
    cluster_wide = set(kubectl("api-resources --namespaced=false --output=name").split())
    here, there = ",".join(sorted(kinds - cluster_wide)), ",".join(sorted(kinds & cluster_wide))
    own = set(kubectl(f"get {here} --namespace {NAMESPACE} --output=name").split())
    others = {it for it in kubectl(f"get {there} --output=name").split() if "vineyard" in it}
    made_by_kubernetes = {"configmap/kube-root-ca.crt", "serviceaccount/default", f"namespace/{NAMESPACE}"}
    return sorted((own | others) - made_by_kubernetes)
