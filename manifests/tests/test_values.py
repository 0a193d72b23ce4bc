"""What can be configured, and what cannot."""

import re

import pytest
import yaml
from conftest import CHART, ROOT, template

REFUSED = [
    "nodes.budget=1GiB",
    "node.budgets=1GiB",
    "node.budget=1G",
    "node.budget=0",
    "node.pool=-x",
    "node.logLevel=loud",
    "node.maxUnavailable=0",
    "node.maxUnavailable=0%",
    "node.resources.limits.memory=much",
    "node.resources.limits.disk=1Gi",
    "kubeletDir=var/lib/kubelet",
    "kubeletDir=/var/lib/kubelet/",
    "cgroupRoot=/kubepods",
    "controller.replicas=0",
    "controller.defaultCapacity=1GB",
    "image.pullPolicy=Sometimes",
    "image.tag=a b",
    "storageClasses.vineyard.onLoss=weep",
    "storageClasses.vineyard.inodes=63",
    "storageClasses.vineyard.inodes=4294967296",
    "storageClasses.vineyard.size=1Gi",
    "storageClasses.vineyard.mountOptions={suid}",
    "storageClasses.Vineyard.onLoss=fail",
    "webhook.failurePolicy=Panic",
    "webhook.require=please",
    "webhook.timeoutSeconds=30",
    "retainer.limits.memory=1Gi",
    "retainer.requests.memory=null",
    "retainer.requests.memory=16M",
    "provisioner.capacityPollInterval=10",
    "namespace.crate=true",
]


@pytest.mark.parametrize("value", REFUSED)
def test_a_wrong_value_is_refused_and_named(value: str) -> None:
    result = template(f"--set={value}")
    assert result.returncode != 0
    assert "values don't meet the specifications of the schema" in result.stderr
    assert any(part in result.stderr for part in re.split(r"[.=]", value)[:-1])


def flat(values: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested values by their dotted names."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def test_the_table_in_the_readme_has_every_value_and_its_default() -> None:
    values = flat(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")))
    table = (ROOT / "manifests/README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (?:`(.*?)` )?\|", table, re.MULTILINE))
    assert rows.keys() == values.keys()
    for name, value in values.items():
        assert yaml.safe_load(rows[name] or '""') == value, name
