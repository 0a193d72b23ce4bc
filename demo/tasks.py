"""The tasks of the pipeline, and what each asks of its pod."""

import sys
from dataclasses import dataclass

from programs import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "demo" / "pipeline" / "src"))

from flights.pipeline_registry import register_pipelines

_MIB = 1 << 20
_FIRST_UID = 20001


@dataclass(frozen=True)
class Task:
    """One node of the pipeline as a pod."""

    node: str
    inputs: frozenset[str]
    outputs: frozenset[str]
    uid: int
    # Memory limit of its container, and the bytes that it may put: the pod's annotation.
    limit: int
    writes: int


# MiB for one year of flights: memory of Python, pandas and the computing; then what is put.
_NEEDS = {
    "load": (640, 96),
    "clean": (640, 64),
    "join": (640, 96),
    "features": (1024, 320),
    "train-late": (1536, 4),
    "train-delay": (1536, 4),
    "report": (640, 4),
}


def tasks(scale: int) -> list[Task]:
    """All tasks in the order of their running, for so many years of flights."""
    found = []
    for number, node in enumerate(register_pipelines()["__default__"].nodes):
        limit, writes = _NEEDS[node.name]
        inputs = frozenset(name for name in node.inputs if not name.startswith("params:"))
        outputs = frozenset(node.outputs) - {"report"}
        found.append(
            Task(
                node.name,
                inputs,
                outputs,
                _FIRST_UID + number,
                limit * scale * _MIB,
                writes * scale * _MIB,
            )
        )
    return found


def consumed(done: list[Task], all_tasks: list[Task]) -> set[str]:
    """Datasets that no task after `done` reads."""
    made = {name for task in done for name in task.outputs}
    return made - {name for task in all_tasks[len(done) :] for name in task.inputs}
