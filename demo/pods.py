"""A pod: a container for the task and a sidecar that pays for what it puts, each with a limit."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field

from cgroups import Cgroup
from containers import Confinement, python_folders
from machine import Machine
from payers import OVERHEAD, UID, Payer
from programs import REPOSITORY

PROJECT = REPOSITORY / "demo" / "pipeline"


class PodError(Exception):
    """The task of a pod failed; the message has the end of its output."""


@dataclass
class Outcome:
    """What a pod needed: seconds, most bytes charged to each container, processes killed."""

    seconds: float = 0.0
    app_peak: int | None = None
    sidecar_peak: int | None = None
    oom_kills: int = 0


@dataclass
class Pod:
    """One pod. Without cgroups on this machine it is just its processes."""

    machine: Machine
    name: str
    uid: int
    # Memory limit of the task's container, in bytes.
    limit: int
    # Bytes that the pod may add to the volume on its own bill. 0: no sidecar.
    allowance: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.folder = self.machine.work / self.name
        self.folder.mkdir()
        (self.folder / "hold").mkdir()
        self.home = self.folder / "home"
        self.home.mkdir()
        self.record = self.home / "events.jsonl"
        self.log = self.folder / "app.log"
        self.cgroup: Cgroup | None = None
        self.app: Cgroup | None = None
        self.sidecar: Cgroup | None = None
        self._payer: Payer | None = None
        self._published = False
        self._task: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        if self.machine.uids:
            os.chown(self.home, self.uid, self.uid)
        if self.machine.cgroup is not None:
            sidecar_limit = self.allowance + OVERHEAD if self.allowance else 0
            # Kubelet's name for it; the uid of this pod is its name.
            self.cgroup = self.machine.cgroup.create(f"pod{self.name}", self.limit + sidecar_limit)
            self.app = self.cgroup.create("app", self.limit)
            if self.allowance:
                self.sidecar = self.cgroup.create("sidecar", sidecar_limit)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts the sidecar and then `kedro run` with these arguments."""
        self._started = time.monotonic()
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KEDRO_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "DEMO_RECORD": str(self.record),
            **self.environment,
        }
        if self.allowance:
            environment |= self._mount()
        needs = (*python_folders(), REPOSITORY / "demo")
        confinement = Confinement(self.app, self.uid if self.machine.uids else None, needs, self.folder / "hold")
        command = [sys.executable, "-m", "kedro", "run", *arguments]
        self._task = confinement.start(command, environment=environment, log=self.log, folder=PROJECT)
        return self._task

    def _mount(self) -> dict[str, str]:
        """Publishes the volume to the pod and starts its sidecar; returns what the task must know."""
        if self.machine.node is None:
            volume, socket = self.machine.volume, self.folder / "sidecar" / "vineyard.sock"
            socket.parent.mkdir()
            if self.machine.uids:
                os.chown(socket.parent, UID, UID)
            grants = [f"--volume={volume}", f"--allowance={self.allowance}"]
        else:
            volume, sockets = self.machine.node.publish(self.name, self.allowance)
            self._published = True
            socket = sockets / "pod" / "vineyard.sock"
            grants = [f"--driver={sockets / 'driver' / 'driver.sock'}"]
        self._payer = Payer(self.machine, self.folder, self.sidecar, socket, grants)
        return {"DEMO_VOLUME": str(volume), "VINEYARD_VOLUME": str(volume), "VINEYARD_SOCKET": str(socket)}

    def run(self, *arguments: str) -> None:
        """Runs `kedro run` in the pod to its end."""
        self.finish(self.start(*arguments).wait())

    def finish(self, status: int, paused: float = 0.0) -> None:
        """Notes what the pod needed, without `paused` seconds, and fails if its task did."""
        self.outcome.seconds = time.monotonic() - self._started - paused
        if self.app is not None:
            self.outcome.app_peak = self.app.peak
            self.outcome.oom_kills = self.app.oom_kills
        if self.sidecar is not None:
            self.outcome.sidecar_peak = self.sidecar.peak
            self.outcome.oom_kills += self.sidecar.oom_kills
        if status != 0:
            killed = ", killed for lack of memory" if self.outcome.oom_kills else ""
            end = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            raise PodError(f"the task of pod {self.name} ended with status {status}{killed}:\n{end}")

    def leave(self) -> float | None:
        """Ends the pod as kubelet does: sidecar, volumes, cgroups; returns the milliseconds of its unpublishing."""
        if self._task is not None and self._task.poll() is None:
            self._task.kill()
            self._task.wait()
        if self._payer is not None:
            self._payer.stop()
        moved_ms = None
        if self.machine.node is not None and self._published:
            moved_ms = self.machine.node.unpublish(self.name)
            self._published = False
        if self.cgroup is not None:
            self.cgroup.remove()
            self.cgroup = self.app = self.sidecar = None
        return moved_ms

    def remove(self) -> None:
        """Removes all that is left of the pod."""
        self.leave()
        shutil.rmtree(self.folder)
