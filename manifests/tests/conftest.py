"""How the tests render the chart: by Helm, as users do."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "manifests/vineyard"
NAMESPACE = "vineyard-system"
Object = dict[str, Any]
Render = Callable[..., list[Object]]

# Ways to install it, as arguments of Helm.
WAYS: dict[str, list[str]] = {
    "defaults": [],
    "everything": [
        "--set=namespace.create=true,definitions.keep=true,webhook.enabled=true,webhook.failurePolicy=Fail",
        "--set=webhook.excludedNamespaces={istio-system},metrics.serviceMonitor.enabled=true,metrics.dashboard.enabled=true",
        "--set=storageClasses.scratch.onLoss=recreate,storageClasses.scratch.inodes=4294967295,cgroupRoot=/sys/fs/cgroup/memory/k",
        "--set=storageClasses.scratch.mountOptions={noatime,noexec},imagePullSecrets[0].name=registry,image.tag=1.2.3",
        "--set-string=node.nodeSelector.pool=memory,node.resources.limits.memory=1Gi",
        "--set-json=networkPolicy.metricsFrom=[{\"namespaceSelector\":{\"matchLabels\":{\"name\":\"monitoring\"}}}]",
    ],
    "least": [
        "--set=storageClasses.vineyard=null,retainer.enabled=false,networkPolicy.enabled=false,controller.replicas=1",
        "--set=node.restrictToOwnNode=false,podDisruptionBudget.enabled=false,image.registry=",
    ],
    "cluster under test": ["--values", str(ROOT / "tests/cluster/values.yaml")],
}  # fmt: skip


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Helm; the caller looks at how it ended."""
    program = os.environ.get("HELM", str(ROOT / ".cache/bin/helm"))
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


def template(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Renders the chart for a Kubernetes as the cluster under test has it."""
    api = "--api-versions=admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"
    return helm("template", "vineyard", str(CHART), "--namespace", NAMESPACE, api, "--no-hooks", *arguments)


@pytest.fixture
def render() -> Render:
    def rendered(*arguments: str) -> list[Object]:
        result = template(*arguments)
        assert result.returncode == 0, result.stderr
        return [each for each in yaml.safe_load_all(result.stdout) if each]

    return rendered


@pytest.fixture(params=WAYS, ids=lambda way: way.replace(" ", "-"))
def objects(request: pytest.FixtureRequest, render: Render) -> list[Object]:
    return render(*WAYS[request.param])


def of_kind(objects: list[Object], kind: str, name: str | None = None) -> list[Object]:
    """Those of a kind, and of a name."""
    return [it for it in objects if it["kind"] == kind and name in (None, it["metadata"]["name"])]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod templates by the name of what makes pods from them."""
    return {
        it["metadata"]["name"]: it["spec"]["template"] for it in objects if it["kind"] in ("Deployment", "DaemonSet")
    }
