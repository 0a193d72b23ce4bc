"""The cluster under test: brought up or taken, with the driver in it."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from programs import REPOSITORY, binary

SYSTEM = "vineyard-system"
_NODES = 2
# MiB that a node offers to pods, for each year of flights.
_NODE_MEMORY = 3072
_PATIENCE = 300.0
# `make PROFILE=test` is sooner done, and as good here.
_PROFILES = ("release", "debug")


class ClusterError(Exception):
    """Something on the cluster failed; the message has what it said."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    name: str

    def run(self, *command: str, stdin: str | None = None, node: int | None = None) -> str:
        """Runs a command where the cluster is, or on one of its nodes, with kubectl, its plugin and helm."""
        where = [] if node is None else ["--node", str(node)]
        return _call("exec", "--id", self.name, *where, "--", *command, stdin=stdin)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs kubectl as the administrator."""
        return self.run("kubectl", *arguments, stdin=stdin)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Makes or changes objects."""
        self.kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, *arguments: str) -> dict[str, Any]:
        """Reads an object, or a list of them."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "--output=json", *arguments))
        return found

    def plugin(self, *arguments: str) -> list[dict[str, Any]]:
        """Asks `kubectl vineyard`, for programs: one value a line."""
        return [json.loads(line) for line in self.kubectl("vineyard", "--json", *arguments).splitlines()]

    def install(self, budget: int) -> None:
        """Installs the chart, with nodes that offer so many bytes, or brings what is installed to that."""
        values = [f"--values={REPOSITORY / path}" for path in ("tests/cluster/values.yaml", "demo/values.yaml")]
        chart = str(REPOSITORY / "manifests" / "vineyard")
        self.run(
            "helm", "upgrade", "--install", "vineyard", chart, f"--namespace={SYSTEM}", "--create-namespace",
            *values, f"--set-string=node.budget={budget}", "--wait=legacy", "--timeout=5m",
        )  # fmt: skip

    def uninstall(self) -> None:
        """Takes it off again."""
        self.run("helm", "uninstall", "vineyard", f"--namespace={SYSTEM}", "--wait", "--timeout=5m")
        self.kubectl("delete", "namespace", SYSTEM, "--timeout=120s")


@contextlib.contextmanager
def up(name: str, scale: int, image: Path, *, keep: bool) -> Iterator[Cluster]:
    """A cluster of two nodes with an image. One that was there already, or is to be kept, stays when this ends."""
    was_up = any(line.split("\t")[:2] == [name, f"{_NODES} nodes"] for line in _call("list").splitlines())
    if not was_up:
        programs, images = (str(REPOSITORY / ".cache" / folder) for folder in ("bin", "images"))
        memory = f"--node-memory={_NODE_MEMORY * scale}"
        _call("up", f"--id={name}", f"--nodes={_NODES}", memory, f"--programs={programs}", f"--images={images}")
    try:
        _call("import", f"--id={name}", str(image))
        yield Cluster(name)
    finally:
        if not was_up and not keep:
            _call("down", f"--id={name}")


def plugin() -> Path:
    """The program behind `kubectl vineyard`. Under the name `vineyard`, beside it, it asks this machine."""
    return binary("kubectl-vineyard", *_PROFILES)


def wait(what: str, found: Callable[[], bool], why: Callable[[], str] = str) -> float:
    """Waits until something is found; returns how many seconds that took. `why` tells what there is instead."""
    started = time.monotonic()
    while not found():
        if time.monotonic() - started > _PATIENCE:
            raise ClusterError(f"{what}: not after {_PATIENCE:.0f} s\n{why()}")
        time.sleep(0.3)
    return time.monotonic() - started


def _call(*arguments: str, stdin: str | None = None) -> str:
    program = binary("vineyard-test-cluster", "debug")
    folder = plugin().parent
    done = subprocess.run(
        [str(program), *arguments],
        input=stdin or "",
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
