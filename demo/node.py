"""The node: the standalone driver, its retainer, and what kubelet asks of the driver for a pod.

Every process is in a cgroup of its own, and a pod's is named after its uid, as kubelet names them: that is how the
driver tells whose bytes are whose.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cgroups import Cgroup
from containers import Confinement
from programs import binary

_CLAIM = "flights"


class NodeError(Exception):
    """The driver refused a call or did not start; the message has its answer or the end of its output."""


@dataclass
class Calls:
    """Milliseconds of kubelet's calls for one pod; the last unpublish waits until the pod's bill is handed over."""

    publish_ms: float = 0.0
    unpublish_ms: float = 0.0


@dataclass
class Node:
    """The driver with one volume, staged."""

    retainer: Cgroup
    folder: Path
    calls: list[Calls] = field(default_factory=list)

    @property
    def volume(self) -> Path:
        """Where the driver has the volume's memory: for who looks at it from outside of the pods."""
        return self.folder / "layers" / _CLAIM

    @property
    def staging(self) -> Path:
        """Where kubelet has it staged: nothing is mounted there."""
        return self.folder / "kubelet" / "plugins" / _CLAIM

    def publish(self, pod: str, writes: int) -> tuple[Path, Path]:
        """Publishes the claim and the sockets volume to a pod; returns where the pod has them."""
        claim, sockets = (self._target(pod, name) for name in (_CLAIM, "sockets"))
        took = self.call("publish-sockets", _sockets(pod), str(sockets), str(writes))
        took += self.call("publish", _CLAIM, str(self.staging), str(claim))
        self.calls.append(Calls(publish_ms=took))
        # A container has it at a path as short; a socket's path has at most 107 bytes.
        short = self.folder / pod
        short.symlink_to(sockets)
        return claim, short

    def unpublish(self, pod: str) -> float:
        """Takes both away again, when what the pod was billed for is on the retainer's bill; returns milliseconds."""
        took = self.call("unpublish", _CLAIM, str(self._target(pod, _CLAIM)))
        took += self.call("unpublish", _sockets(pod), str(self._target(pod, "sockets")))
        (self.folder / pod).unlink()
        self.calls[-1].unpublish_ms = took
        return took

    def delete(self) -> int:
        """Deletes the volume; returns the bytes that its retainer is still billed for, itself among them."""
        self.call("unstage", _CLAIM, str(self.staging))
        self.call("delete", _CLAIM)
        return self.retainer.usage

    def call(self, *arguments: str) -> float:
        """Makes one CSI call; returns the milliseconds that it took."""
        command = [str(binary("examples/kubelet")), "--endpoint", str(self.folder / "csi.sock"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NodeError(f"{' '.join(arguments)}: {done.stderr.strip()}\n{_end(self.folder / 'driver.log')}")
        return float(done.stdout)

    def _target(self, pod: str, name: str) -> Path:
        parent = self.folder / "kubelet" / "pods" / pod / "volumes" / "kubernetes.io~csi" / name
        parent.mkdir(parents=True, exist_ok=True)
        return parent / "mount"


@contextlib.contextmanager
def serve(folder: Path, cgroup: Cgroup, capacity: int) -> Iterator[Node]:
    """Runs a driver and a retainer, with a volume of so many bytes. What is left is unmounted at the end."""
    with contextlib.ExitStack() as stack:
        folder.mkdir()
        retainer, driver = cgroup.create("retainer"), cgroup.create("driver")
        stack.callback(retainer.remove)
        stack.callback(driver.remove)
        stack.callback(_unmount_below, folder)
        program, socket = str(binary("vineyard-csi")), folder / "retainer.sock"
        _start(stack, retainer, [program, "retainer", f"--listen={socket}"], folder / "retainer.log")
        command = [
            program,
            "standalone",
            f"--endpoint={folder / 'csi.sock'}",
            f"--catalog={folder / 'catalog'}",
            f"--layers={folder / 'layers'}",
            f"--kubelet-dir={folder / 'kubelet'}",
            f"--run-dir={folder / 'run'}",
            f"--cgroup-root={cgroup.path}",
            f"--retainer={socket}",
            "--node-id=demo",
            f"--budget={capacity}",
        ]
        (folder / "kubelet" / "plugins").mkdir(parents=True)
        _start(stack, driver, command, folder / "driver.log")
        node = Node(retainer, folder)
        node.call("create", _CLAIM, str(capacity))
        node.call("stage", _CLAIM, str(node.staging))
        yield node


def _start(stack: contextlib.ExitStack, cgroup: Cgroup, command: list[str], log: Path) -> None:
    process = Confinement(cgroup).start(command, environment={"PATH": os.environ["PATH"]}, log=log, folder=log.parent)
    stack.callback(process.wait)
    stack.callback(process.terminate)


def _unmount_below(folder: Path) -> None:
    """Takes off what a driver that died has left mounted, the newest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=True)


def _sockets(pod: str) -> str:
    # As kubelet's: "csi-" and 64 digits.
    return f"csi-{pod:0>64}"


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
