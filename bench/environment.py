"""What a run needs on this machine: an interpreter per peer, our own builds, the limits program, memory to store in."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
PEERS = Path(__file__).with_name("peers")
# The reference system's last wheels are for Python 3.12 and older; all peers run on the same one.
PYTHONS = ("python3.11", "python3.12")


@cache
def interpreter() -> str:
    """The interpreter that all environments are made with."""
    for name in PYTHONS:
        # A version manager's shim exists without working.
        if shutil.which(name) and subprocess.run([name, "-c", "import venv"], check=False).returncode == 0:
            return name
    return sys.executable


def environment(peer: str, wheel: Path | None) -> Path:
    """The interpreter of a peer's own virtual environment, made or brought up to date when its requirements changed."""
    requirements = PEERS / peer / "requirements.txt"
    contents = requirements.read_bytes() + (wheel.read_bytes() if wheel else b"")
    stamp = hashlib.sha256(contents).hexdigest()
    home = CACHE / peer / "venv"
    python, ready = home / "bin" / "python", home / ".ready"
    if ready.exists() and ready.read_text() == stamp:
        return python
    print(f"installing {peer}", file=sys.stderr)
    home.parent.mkdir(parents=True, exist_ok=True)
    wanted = ["-r", str(requirements)]
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".venv" / "bin"))
    if uv:
        if not python.exists():
            make = [uv, "venv", "--quiet", "--no-python-downloads", "--python", interpreter(), str(home)]
            subprocess.run(make, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        if not python.exists():
            subprocess.run([interpreter(), "-m", "venv", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, *wanted], check=True)
    if wheel:
        again = "--reinstall" if uv else "--force-reinstall"
        subprocess.run([*install, "--no-deps", again, str(wheel)], check=True)
    ready.write_text(stamp)
    return python


def newest(*patterns: str) -> Path | None:
    """The newest file below the repository that matches one of the patterns."""
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def sidecar() -> Path | None:
    """Our sidecar, static or not."""
    return newest("target/*/release/vineyard-sidecar", "target/release/vineyard-sidecar")


def versions(peer: str) -> str:
    """The pinned requirements of a peer, for the page."""
    lines = (PEERS / peer / "requirements.txt").read_text().split()
    return ", ".join(line.replace("==", " ") for line in lines)


def limits_program() -> Path:
    """Compiles `limits.c` when it is newer than its program."""
    source, program = Path(__file__).with_name("limits.c"), CACHE / "limits"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        compiler = shutil.which("cc") or "gcc"
        subprocess.run([compiler, "-O3", "-march=native", "-o", str(program), str(source)], check=True)
    return program


def redis_server() -> None:
    """Installs redis-server where that is possible without asking: as root on Debian."""
    if shutil.which("redis-server") or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    # The package would start a server of its own; nobody asked for that one.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "redis-server"]
    with (CACHE / "apt.log").open("wb") as log:
        subprocess.run(command, env=quiet, stdout=log, stderr=log, check=False)


@contextmanager
def memory(name: str, size: int) -> Iterator[Path]:
    """A tmpfs of its own, `huge=never` as the driver mounts volumes; without root a directory in /dev/shm."""
    if os.geteuid() == 0:
        with tempfile.TemporaryDirectory(prefix="vineyard-test-bench-") as parent:
            place = Path(parent) / name
            place.mkdir()
            options = f"size={size},nr_inodes=0,huge=never,mode=0777"
            mount = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "vineyard-test-bench", str(place)],
                check=False,
                capture_output=True,
            )
            try:
                yield place
            finally:
                if mount.returncode == 0:
                    subprocess.run(["umount", "--lazy", str(place)], check=False)
    else:
        with tempfile.TemporaryDirectory(prefix="vineyard-test-bench-", dir="/dev/shm") as place_:
            yield Path(place_)


@contextmanager
def cgroup(name: str) -> Iterator[Path | None]:
    """A memory cgroup named vineyard-test-bench-…, of version 1 or 2; None where we may not make one."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent = v1 if v1.is_dir() else v2
    place = parent / f"vineyard-test-bench-{os.getpid()}-{name}"
    try:
        place.mkdir()
    except OSError:
        yield None
        return
    try:
        yield place
    finally:
        try:
            place.rmdir()
        except OSError as error:
            print(f"left behind: {place}: {error}", file=sys.stderr)


def clean() -> dict[str, str]:
    """The environment of workers: no setting of this machine may speed up or slow down one peer only."""
    drop = ("OPENBLAS_", "OMP_", "MKL_", "MALLOC_", "VINEYARD_", "RAY_", "PYTHON", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if not key.startswith(drop)}


def conditions() -> dict[str, str]:
    """The machine, for the page."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    total = Path("/proc/meminfo").read_text().split()[1]
    load = Path("/proc/loadavg").read_text().split()[0]
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "memory": f"{int(total) / (1 << 20):.1f} GiB",
        "kernel": platform.release(),
        "load before the run": load,
    }
