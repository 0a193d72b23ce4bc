"""Memory cgroups of version 1 or 2, as far as the demo needs them."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_FILES = {
    1: {
        "limit": "memory.limit_in_bytes",
        "usage": "memory.usage_in_bytes",
        "peak": "memory.max_usage_in_bytes",
        "events": "memory.oom_control",
    },
    2: {
        "limit": "memory.max",
        "usage": "memory.current",
        "peak": "memory.peak",
        "events": "memory.events",
    },
}
_REMOVE_SECONDS = 10


class NoCgroupError(Exception):
    """This machine lets us make no memory cgroup; the message says why."""


@dataclass(frozen=True)
class Cgroup:
    """One memory cgroup."""

    path: Path
    version: int

    @classmethod
    def root(cls) -> Self:
        """Finds where the memory controller is mounted."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, target, kind, options, *_ = line.split()
            if kind == "cgroup" and "memory" in options.split(","):
                return cls(Path(target), 1)
            if kind == "cgroup2" and "memory" in (Path(target) / "cgroup.controllers").read_text().split():
                return cls(Path(target), 2)
        raise NoCgroupError("no memory cgroup controller is mounted")

    def create(self, name: str, limit: int | None = None) -> "Cgroup":
        """Makes a child, with a limit in bytes."""
        child = Cgroup(self.path / name, self.version)
        try:
            if self.version == 2 and "memory" not in (self.path / "cgroup.subtree_control").read_text().split():
                (self.path / "cgroup.subtree_control").write_text("+memory")
            child.path.mkdir()
            if limit is not None:
                child._file("limit").write_text(str(limit))
        except OSError as error:
            raise NoCgroupError(f"cannot make a memory cgroup: {error}") from error
        return child

    @property
    def procs(self) -> Path:
        """The file that a process writes `0` to, to enter."""
        return self.path / "cgroup.procs"

    @property
    def usage(self) -> int:
        """Bytes charged now, with descendants."""
        return int(self._file("usage").read_text())

    @property
    def peak(self) -> int | None:
        """Most bytes ever charged, if the kernel counts them (version 2: since 5.19)."""
        try:
            return int(self._file("peak").read_text())
        except FileNotFoundError:
            return None

    @property
    def oom_kills(self) -> int:
        """Processes that the kernel killed here for lack of memory."""
        lines = self._file("events").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def remove(self) -> None:
        """Removes the cgroup and its children. Nothing may run in them any more."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        for folder in (*(child for child in self.path.iterdir() if child.is_dir()), self.path):
            while True:
                try:
                    folder.rmdir()
                    break
                except OSError:
                    # A process that has been waited for may still be leaving.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)

    def _file(self, what: str) -> Path:
        return self.path / _FILES[self.version][what]
