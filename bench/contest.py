"""The contestants: each setting of each peer with its memory, its server and its two clients."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import environment
import servers
from plan import Bench, Sizes
from session import PeerError, UnsupportedError, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

# setting -> the peer whose adapter and environment it uses, and what its place says on top
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("ours", {}),
    "ours-billed": ("ours", {}),
    "files": ("files", {"format": "pickle5"}),
    "files-pickle": ("files", {"format": "pickle"}),
    "ray": ("ray", {}),
    "redis": ("redis", {}),
    "reference": ("reference", {}),
    "s3": ("s3", {}),
}


@dataclass
class Results:
    """All samples of a run, and why some are missing."""

    samples: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)

    def recorder(self, workload: str, setting: str) -> Callable[[str, float], None]:
        """Adds samples of one workload of one setting."""

        def record(metric: str, value: float) -> None:
            of_workload = self.samples.setdefault(workload, {})
            of_workload.setdefault(setting, {}).setdefault(metric, []).append(value)

        return record

    def miss(self, workload: str, setting: str, reason: str) -> None:
        """Notes why a figure is missing."""
        self.missing.setdefault(workload, {})[setting] = reason


class Contestant:
    """One setting, started."""

    def __init__(self, setting: str, stack: ExitStack, capacity: int, wheel: Path | None) -> None:
        self.setting = setting
        self.peer, extra = SETTINGS[setting]
        self.python = environment.environment(self.peer, wheel if self.peer == "ours" else None)
        self.logs = environment.CACHE / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        # Below /tmp and short: the path of a Unix socket has 107 bytes.
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="vyb-", dir="/tmp", ignore_cleanup_errors=True)
        )
        self.memory = stack.enter_context(environment.memory(setting, capacity))
        billed = setting == "ours-billed"
        site = servers.Site(
            python=self.python,
            scratch=Path(scratch),
            memory=self.memory,
            logs=self.logs,
            sidecar=environment.sidecar(),
            cgroup=stack.enter_context(environment.cgroup("payer")) if billed else None,
            capacity=capacity * 3 // 4,
        )
        stack.callback(site.stop)
        self.place = {**servers.START[setting](site), **extra}
        self.clients = stack.enter_context(ExitStack())
        self.producer, self.consumer = self.connect()

    def spawn(self) -> Worker:
        """Another client process, not attached yet."""
        log = self.logs / f"{self.setting}-client.log"
        return Worker(self.python, self.peer, self.place, environment.clean(), log)

    def connect(self) -> tuple[Worker, Worker]:
        """Two attached clients."""
        pair = (
            self.clients.enter_context(self.spawn()),
            self.clients.enter_context(self.spawn()),
        )
        for client in pair:
            client.call("attach")
            client.call("warm", kind="small", args=[1])
        return pair

    def measure(
        self,
        name: str,
        workload: Callable[[Bench], None],
        sizes: Sizes,
        results: Results,
    ) -> None:
        """Runs one workload once; what goes wrong is noted, and the clients begin anew."""
        bench = Bench(
            self.setting,
            sizes,
            self.spawn,
            prime,
            results.recorder(name, self.setting),
            self.producer,
            self.consumer,
        )
        try:
            workload(bench)
        except UnsupportedError as reason:
            results.miss(name, self.setting, str(reason))
        except PeerError as error:
            results.miss(name, self.setting, f"failed: {error}")
            self.clients.close()
            self.producer, self.consumer = self.connect()


def prime(size: int) -> None:
    """Has the host give `size` bytes of memory to this machine, see limits.c."""
    program = environment.limits_program()
    subprocess.run([str(program), "prime", str(max(1, size >> 20))], check=True)
