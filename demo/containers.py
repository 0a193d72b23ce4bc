"""Starts a process as a container: in a memory cgroup, a mount namespace and a uid of its own."""

import ctypes
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cgroups import Cgroup

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Confinement:
    """Who a process is and who pays for its memory. `None` leaves the caller's."""

    cgroup: Cgroup | None = None
    uid: int | None = None
    # Folders that the process must reach although their parents may be closed to its uid, such as
    # a Python below /root.
    needs: tuple[Path, ...] = ()
    # An empty folder to hold them while their parents are covered.
    hold: Path | None = None

    def start(
        self, command: list[str], *, environment: dict[str, str], log: Path, folder: Path
    ) -> subprocess.Popen[bytes]:
        """Starts `command` in `folder` with exactly this environment; `log` gets its output."""
        with log.open("ab") as output:
            # The demo has no threads, so running Python between fork and exec is safe.
            return subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=self._enter(),  # noqa: PLW1509
            )

    def _enter(self) -> Callable[[], None]:
        covers = _covers(self.needs) if self.uid is not None else {}

        def enter() -> None:
            if self.cgroup is not None:
                self.cgroup.procs.write_text("0")
            if self.uid is not None:
                folder = Path.cwd()
                if covers:
                    _reveal(covers, self.hold)
                os.setgroups([])
                os.setresgid(self.uid, self.uid, self.uid)
                os.setresuid(self.uid, self.uid, self.uid)
                _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                os.chdir(folder)
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        return enter


def python_folders() -> tuple[Path, ...]:
    """The folders without which this Python does not start."""
    return tuple(dict.fromkeys(Path(folder).resolve() for folder in (sys.base_prefix, sys.prefix)))


def _covers(needs: tuple[Path, ...]) -> dict[Path, list[Path]]:
    """Which closed folders to cover, and what to show below each."""
    covers: dict[Path, list[Path]] = {}
    for need in needs:
        closed = [parent for parent in reversed(need.parents) if not parent.stat().st_mode & stat.S_IXOTH]
        if closed:
            covers.setdefault(closed[0], []).append(need)
    return covers


def _reveal(covers: dict[Path, list[Path]], hold: Path | None) -> None:
    if hold is None:
        raise ValueError("a folder to hold mounts is needed")
    _call("unshare", _CLONE_NEWNS)
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)
    _mount("demo-hold", hold, "tmpfs", 0)
    for cover, needs in covers.items():
        for number, need in enumerate(needs):
            (hold / str(number)).mkdir()
            _mount(str(need), hold / str(number), None, _MS_BIND | _MS_REC)
        _mount("demo-cover", cover, "tmpfs", 0, "mode=0755")
        for number, need in enumerate(needs):
            need.mkdir(parents=True, exist_ok=True)
            _mount(str(hold / str(number)), need, None, _MS_BIND | _MS_REC)
            _call("umount2", os.fsencode(hold / str(number)), 2)
            (hold / str(number)).rmdir()


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, str(target), kind, options)]
    _call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def _call(name: str, *arguments: object) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
