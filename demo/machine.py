"""What this machine lets the demo do, and the volume that the demo works in."""

import contextlib
import mmap
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cgroups import Cgroup, NoCgroupError
from node import Node, NodeError, serve


@dataclass(frozen=True)
class Machine:
    """Where the demo may work. `cgroup` and `node` are None where nobody is billed; `no_bill` says why."""

    work: Path
    volume: Path
    cgroup: Cgroup | None
    node: Node | None
    no_bill: str | None

    @property
    def uids(self) -> bool:
        """Whether every task can have a uid of its own."""
        return os.geteuid() == 0


@contextlib.contextmanager
def prepare(volume_bytes: int) -> Iterator[Machine]:
    """Makes a work folder, a node with a volume and a cgroup to put pods in; removes them at the end."""
    with contextlib.ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="vineyard-demo-", dir="/tmp"))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        work.chmod(0o755)
        cgroup, node, no_bill = None, None, _no_root()
        if no_bill is None:
            try:
                cgroup = Cgroup.root().create(f"vineyard-demo-{os.getpid()}")
                stack.callback(cgroup.remove)
                node = stack.enter_context(serve(work / "node", cgroup, volume_bytes))
            except (NoCgroupError, NodeError, OSError) as error:
                no_bill = str(error)
                cgroup = None
        if node is None:
            volume = Path(
                tempfile.mkdtemp(
                    prefix="vineyard-demo-",
                    dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None,
                )
            )
            stack.callback(shutil.rmtree, volume, ignore_errors=True)
            volume.chmod(0o777)
        else:
            volume = node.volume
        yield Machine(work, volume, cgroup, node, no_bill)


def describe() -> str:
    """One line about the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB, {system}"


def memory_speed(nbytes: int = 1 << 28) -> tuple[float, float]:
    """GB/s of filling memory that is touched for the first time, and again.

    On a virtual machine whose host takes idle memory back, the first is what puts are up against.
    """
    with mmap.mmap(-1, nbytes) as memory:
        page = bytes(1 << 20)
        speeds = []
        for _ in range(2):
            started = time.perf_counter()
            for offset in range(0, nbytes, len(page)):
                memory[offset : offset + len(page)] = page
            speeds.append(nbytes / (time.perf_counter() - started) / 1e9)
    return speeds[0], speeds[1]


def _no_root() -> str | None:
    if os.geteuid() != 0:
        return (
            f"uid {os.geteuid()} may make neither cgroups nor mounts, nor read who is charged; "
            "run it as root to see the bill"
        )
    if not os.access("/proc/kpagecgroup", os.R_OK):
        return "/proc/kpagecgroup cannot be read: the kernel does not tell who is charged"
    return None
