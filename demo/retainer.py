"""The retainer: the payer of bytes whose producers have gone, and of the volume's own page."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from containers import Confinement
from machine import Machine
from payers import Payer


@contextlib.contextmanager
def retain(machine: Machine, allowance: int) -> Iterator[Payer]:
    """Makes the volume on the retainer's bill, and runs the retainer while the context is open."""
    with contextlib.ExitStack() as stack:
        folder = machine.work / "retainer"
        folder.mkdir()
        cgroup = None
        if machine.cgroup is not None:
            cgroup = machine.cgroup.create("retainer")
            stack.callback(cgroup.remove)
        maker = Confinement(cgroup).start(
            [sys.executable, "-c", f"import vineyard; vineyard.open({str(machine.volume)!r})"],
            environment={},
            log=folder / "maker.log",
            folder=folder,
        )
        if maker.wait() != 0:
            raise subprocess.CalledProcessError(maker.returncode, "vineyard.open")
        payer = Payer(machine, folder / "sidecar", cgroup, allowance)
        stack.callback(payer.stop)
        yield payer
