"""The same pipeline, run in different ways."""

import contextlib
import json
import select
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import Machine
from pods import Pod
from records import Record
from tasks import Task, tasks

_RUNNER = "vineyard.contrib.kedro.runner"
_JOB_UID = 20000


@dataclass(frozen=True)
class Variant:
    """One way to run the pipeline."""

    name: str
    title: str
    # Through a volume, and so with a sidecar.
    vineyard: bool = False
    # A pod per task, or one pod for all of them.
    per_task: bool = False
    # What `kedro run` is given.
    arguments: tuple[str, ...] = ()
    # Parameters of the pipeline, for the catalog.
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What a run brought."""

    variant: Variant
    record: Record = field(default_factory=Record)
    report: dict[str, Any] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Wall clock of all pods, from the start of the sidecar to the end of the task."""
        return sum(pod.outcome.seconds for pod in self.pods)

    def add(self, pod: Pod) -> None:
        """Adds what a pod has recorded."""
        self.record.add(pod.record.read_text())
        self.pods.append(pod)


def volume_runner(name: str) -> tuple[str, ...]:
    """Arguments of `kedro run` for one of our runners."""
    return ("--runner", f"{_RUNNER}.{name}")


def run_one_pod(
    machine: Machine,
    variant: Variant,
    scale: int,
    after_node: Callable[[Pod, str], None] | None = None,
) -> Result:
    """Runs the whole pipeline in one pod, by one `kedro run`."""
    every = tasks(scale)
    allowance = sum(task.writes for task in every) if variant.vineyard else 0
    pod = Pod(machine, variant.name, _JOB_UID, 4 * max(task.limit for task in every), allowance)
    with _removed(pod):
        arguments = _arguments(pod, variant, scale)
        if after_node is None:
            pod.run(*arguments)
        else:
            _run_stepwise(pod, arguments, after_node)
        result = Result(variant)
        result.add(pod)
        result.report = json.loads((pod.home / "report.json").read_text())
    return result


def run_pod_per_task(
    machine: Machine,
    variant: Variant,
    scale: int,
    after_task: Callable[[Pod, list[Task], list[Task]], None] | None = None,
) -> Result:
    """Runs every node in a pod of its own; `after_task` gets it, the tasks done so far, and all."""
    every = tasks(scale)
    done: list[Task] = []
    result = Result(variant)
    for task in every:
        allowance = task.writes if variant.vineyard else 0
        environment = {"VINEYARD_RUN": variant.name} if variant.vineyard else {}
        pod = Pod(machine, f"{variant.name}-{task.node}", task.uid, task.limit, allowance, environment)
        with _removed(pod):
            pod.run(*_arguments(pod, variant, scale), "--nodes", task.node)
            done.append(task)
            result.add(pod)
            if task.node == "report":
                result.report = json.loads((pod.home / "report.json").read_text())
            if after_task is not None:
                after_task(pod, done, every)
    return result


def shared_folder(machine: Machine, name: str) -> Path:
    """A folder on disk that every pod may write, as a network file system would be mounted."""
    folder = machine.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def _arguments(pod: Pod, variant: Variant, scale: int) -> list[str]:
    parameters = {"scale": str(scale), "out": str(pod.home / "report.json"), **variant.parameters}
    return [
        *variant.arguments,
        "--params",
        ",".join(f"{key}={value}" for key, value in parameters.items()),
    ]


@contextlib.contextmanager
def _removed(pod: Pod) -> Any:
    try:
        yield
    finally:
        pod.remove()


def _run_stepwise(pod: Pod, arguments: list[str], after_node: Callable[[Pod, str], None]) -> None:
    """Lets the pod wait after each node until `after_node` has looked."""
    path = pod.folder / "steps.sock"
    pod.environment["DEMO_STEPS"] = str(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        pod.folder.chmod(0o755)
        listener.listen()
        process = pod.start(*arguments)
        paused = 0.0
        while process.poll() is None:
            if not select.select([listener], [], [], 0.1)[0]:
                continue
            connection, _ = listener.accept()
            with connection:
                node = connection.makefile("r").read()
                started = time.monotonic()
                after_node(pod, node)
                paused += time.monotonic() - started
    pod.finish(process.returncode, paused)
