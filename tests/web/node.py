"""A real standalone driver with its retainer, and pods that are cgroups: what the page is looked at with.

Everything is in a folder and in cgroups of the test's own, and goes with it.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEBUG = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "debug"
START_SECONDS = 60


def memory_cgroups() -> Path | None:
    """Where memory cgroups of version 1 can be made; None: not here."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(target) if os.access(target, os.W_OK) else None
    return None


@dataclass
class Pod:
    """A pod: its cgroup, and the volume as its containers see it."""

    uid: str
    cgroup: Path
    volume: Path

    def write(self, name: str, size: int) -> None:
        """Writes a plain file of so many bytes, from a process in the pod's container."""
        script = f'echo $$ > "{self.cgroup}/app/cgroup.procs" && head -c {size} /dev/zero > "{self.volume}/{name}"'
        subprocess.run(["sh", "-c", script], check=True)


@dataclass
class Node:
    """A driver that serves its page."""

    folder: Path
    cgroup: Path
    url: str

    def call(self, *arguments: str) -> None:
        """Makes one CSI call, as kubelet or the provisioner would."""
        command = [str(DEBUG / "examples/kubelet"), "--endpoint", str(self.folder / "csi.sock"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.log()}"

    def create(self, name: str, size: int, claim: str) -> None:
        """Creates a volume for a claim."""
        self.call("create", name, str(size), f"--claim={claim}")

    def start_pod(self, volume: str, uid: str, name: str) -> Pod:
        """Stages the volume, and publishes it to a new pod."""
        self.call("stage", volume, str(self.staging(volume)))
        target = self.target(volume, uid)
        target.parent.mkdir(parents=True, exist_ok=True)
        cgroup = self.cgroup / f"pod{uid}"
        (cgroup / "app").mkdir(parents=True, exist_ok=True)
        self.call("publish", volume, str(self.staging(volume)), str(target), f"--pod={name}/{uid}")
        return Pod(uid, cgroup, target)

    def end_pod(self, volume: str, pod: Pod) -> None:
        """Ends a pod as kubelet does: its volume first, then its cgroup."""
        self.call("unpublish", volume, str(self.target(volume, pod.uid)))
        remove_cgroups(pod.cgroup)

    def staging(self, volume: str) -> Path:
        """Where kubelet stages it."""
        return self.folder / "kubelet" / "plugins" / volume

    def target(self, volume: str, uid: str) -> Path:
        """Where kubelet has it for a pod."""
        return self.folder / "kubelet" / "pods" / uid / "volumes" / "kubernetes.io~csi" / volume / "mount"

    def log(self) -> str:
        """The end of what the driver logged."""
        return "\n".join((self.folder / "driver.log").read_text(errors="replace").splitlines()[-20:])


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Node]:
    """Runs a driver and a retainer until the context ends."""
    root = memory_cgroups()
    assert root is not None
    with contextlib.ExitStack() as stack:
        cgroup = root / f"vineyard-test-web-{os.getpid()}"
        cgroup.mkdir()
        stack.callback(remove_cgroups, cgroup)
        stack.callback(unmount_below, folder)
        (folder / "kubelet" / "plugins").mkdir(parents=True)
        retainer = folder / "retainer.sock"
        start(stack, cgroup / "retainer", ["retainer", f"--listen={retainer}"], folder / "retainer.log")
        port = free_port()
        flags = [
            f"--endpoint={folder / 'csi.sock'}",
            f"--catalog={folder / 'catalog'}",
            f"--layers={folder / 'layers'}",
            f"--kubelet-dir={folder / 'kubelet'}",
            f"--run-dir={folder / 'run'}",
            f"--cgroup-root={cgroup}",
            f"--retainer={retainer}",
            "--node-id=node-1",
            "--budget=1GiB",
            "--look-period=200",
            "--survey-period=200",
            "--report-period=200",
            f"--web-listen=127.0.0.1:{port}",
        ]
        start(stack, cgroup / "driver", ["standalone", *flags], folder / "driver.log")
        node = Node(folder, cgroup, f"http://127.0.0.1:{port}/")
        wait(lambda: (folder / "csi.sock").exists(), "the driver serves")
        yield node


def start(stack: contextlib.ExitStack, cgroup: Path, arguments: list[str], log: Path) -> None:
    """Starts our program in a cgroup of its own; it ends with the context."""
    cgroup.mkdir()
    script = f'echo $$ > "{cgroup}/cgroup.procs" && exec "$@"'
    with log.open("wb") as output:
        command = ["sh", "-c", script, "sh", str(DEBUG / "vineyard-csi"), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    stack.callback(process.wait)
    stack.callback(process.terminate)


def wait(done: object, what: str) -> None:
    """Waits until `done()` is true."""
    assert callable(done)
    deadline = time.monotonic() + START_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"not for {START_SECONDS} s: {what}"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def unmount_below(folder: Path) -> None:
    """Takes off what the driver has mounted, the newest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=True)


def remove_cgroups(path: Path) -> None:
    """Removes a cgroup and those below. Processes that have ended may still be leaving."""
    for child in [*path.iterdir()] if path.exists() else []:
        if child.is_dir():
            remove_cgroups(child)
    deadline = time.monotonic() + START_SECONDS
    while path.exists():
        try:
            path.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{path} is in use"
            time.sleep(0.05)
