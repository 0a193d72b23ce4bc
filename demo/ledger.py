"""Who is billed for the volume's bytes, asked of the kernel page by page after every step."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgroups import Cgroup
from machine import Machine
from programs import binary
from tables import size, table

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Entry:
    """One look at the bill: bytes, by who is charged for them."""

    step: str
    moment: str
    volume: int
    sidecar: int
    retainer: int
    # In use, but below no path: a live client's files that are reserved ahead or kept for its next
    # put, or removed objects that somebody still maps.
    pathless: int
    # Whether a pod is there that may have such.
    live: bool
    # Milliseconds of unpublishing, in which the charge is moved.
    moved_ms: float | None = None

    @property
    def elsewhere(self) -> int:
        """Bytes charged to anybody else, or to nobody."""
        return self.volume - self.sidecar - self.retainer - self.pathless


class Ledger:
    """Looks, remembers, and says at the end whether every byte was where it belonged."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.entries: list[Entry] = []

    def look(self, step: str, moment: str, sidecar: Cgroup | None, moved_ms: float | None = None) -> None:
        """Surveys the volume and notes who is charged."""
        if self._machine.node is None:
            return
        found = json.loads(self._vineyard("--json", "charges"))
        root = Cgroup.root().path
        charged: dict[Path | None, int] = {}
        for bill in found["bills"]:
            path = None if bill["path"] is None else root / bill["path"].lstrip("/")
            charged[path] = charged.get(path, 0) + bill["bytes"]
        self.entries.append(
            Entry(
                step,
                moment,
                found["used_bytes"],
                _charged(charged, sidecar),
                _charged(charged, self._machine.node.retainer),
                found["unreached_bytes"],
                sidecar is not None,
                moved_ms,
            )
        )

    @property
    def wrong(self) -> list[str]:
        """What should not be: bytes charged to somebody unexpected, out of reach, or left over."""
        found = []
        for entry in self.entries:
            where = f"{entry.step or 'then'}, {entry.moment}"
            if entry.elsewhere != 0:
                found.append(f"{where}: {entry.elsewhere} bytes are charged elsewhere")
            if not entry.live and entry.pathless != 0:
                found.append(f"{where}: {entry.pathless} bytes are below no path")
        # The volume's own page is the only one that stays.
        if self.entries and self.entries[-1].volume > _PAGE:
            found.append(f"{self.entries[-1].volume} bytes are left at the end")
        return found

    def table(self, first: int = 0) -> str:
        """The ledger from its entry number `first` on."""
        rows = [
            [
                entry.step,
                entry.moment,
                size(entry.volume),
                size(entry.sidecar),
                size(entry.retainer),
                size(entry.pathless),
                size(entry.elsewhere),
                "" if entry.moved_ms is None else f"{entry.moved_ms:.0f}",
            ]
            for entry in self.entries[first:]
        ]
        head = ["step", "moment", ">in the volume", ">its sidecar", ">retainer"]
        return table([*head, ">no path", ">elsewhere", ">moved in ms"], rows)

    def _vineyard(self, *arguments: str) -> Any:
        command = [str(binary("vineyard")), "--volume", str(self._machine.volume), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            line = " ".join(command)
            raise RuntimeError(f"{line} ended with status {done.returncode}:\n{done.stderr}")
        return done.stdout


def _charged(charged: dict[Path | None, int], cgroup: Cgroup | None) -> int:
    return 0 if cgroup is None else charged.get(cgroup.path, 0)
