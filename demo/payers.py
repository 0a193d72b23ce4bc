"""A sidecar process: it pays for what its pod puts into the volume."""

import subprocess
import time
from pathlib import Path

from cgroups import Cgroup
from containers import Confinement
from machine import Machine
from programs import binary

# Nobody: a sidecar needs no right but to be handed descriptors.
UID = 65534
# What the program itself takes, on top of what it pays for.
OVERHEAD = 24 << 20
_START_SECONDS = 20
_STOP_SECONDS = 10


class PayerError(Exception):
    """The sidecar did not start; the message has the end of its output."""


class Payer:
    """A running sidecar that works in `folder`; `grants` are flags: who grants what, on which volume."""

    def __init__(self, machine: Machine, folder: Path, cgroup: Cgroup | None, socket: Path, grants: list[str]) -> None:
        self.socket = socket
        hold = folder / "hold-sidecar"
        hold.mkdir()
        program = binary("vineyard-sidecar")
        confinement = Confinement(cgroup, UID if machine.uids else None, (program.parent,), hold)
        command = [str(program), f"--listen={socket}", *grants]
        log = folder / "sidecar.log"
        self._process = confinement.start(command, environment={}, log=log, folder=folder)
        deadline = time.monotonic() + _START_SECONDS
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PayerError(f"the sidecar in {folder} did not start:\n{log.read_text()}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Ends the process, as kubelet does. What it has paid for stays on its bill."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
