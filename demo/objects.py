"""What the demo asks of Kubernetes: a namespace, a claim, and a pod for each task."""

from typing import Any

from tasks import Task

NAMESPACE = "flights"
CLAIM = "flights"
IMAGE = "vineyard.test/flights:1"
RUN = "cluster"
VOLUME = "/data"
_CONTAINER = "main"

# Runs the task, takes away what nobody needs any more, tells what there is to tell, and stays until it may leave:
# meanwhile one can look at its bill.
_SCRIPT = """
python3 -m kedro run "$@" >&2
if [ -n "$CONSUMED" ]; then python3 -c 'import sys, vineyard
for name in sys.argv[1:]: vineyard.open().rm(name)' $CONSUMED; fi
cat /tmp/events.jsonl
if [ -e /tmp/report.json ]; then python3 -c 'import json
print(json.dumps({"event": "report", "report": json.load(open("/tmp/report.json"))}))'; fi
echo '{"event": "done"}'
until [ -e /tmp/leave ]; do sleep 0.2; done
"""


def namespace() -> dict[str, Any]:
    """Whose pods may do nothing but compute: what the webhook injects is admitted there, too."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def claim(capacity: int) -> dict[str, Any]:
    """The one that all tasks share."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "namespace": NAMESPACE},
        "spec": {
            "storageClassName": "vineyard",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": str(capacity)}},
        },
    }


def pod(task: Task, arguments: list[str], consumed: list[str], node: str) -> dict[str, Any]:
    """A task as its author writes it: a container with the claim, and how much it puts. The rest is injected.

    `node` has the volume, if any has: it does not move yet.
    """
    resources = {"memory": str(task.limit)}
    environment = {
        "HOME": "/tmp",
        "KEDRO_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "DEMO_RECORD": "/tmp/events.jsonl",
        "DEMO_VOLUME": VOLUME,
        "VINEYARD_RUN": RUN,
        "CONSUMED": " ".join(f"{RUN}/{name}" for name in consumed),
    }
    container = {
        "name": _CONTAINER,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-ec", _SCRIPT, task.node, *arguments, "--nodes", task.node],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {"requests": {"cpu": "100m", **resources}, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": VOLUME}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": task.node,
            "namespace": NAMESPACE,
            "annotations": {"vineyard.io/writes": str(task.writes)},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "nodeSelector": {"kubernetes.io/hostname": node} if node else {},
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
    }
