"""Who is billed for the volume's bytes, asked of the kernel page by page after every step."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cgroups import Cgroup
from machine import Machine, binary
from payers import Payer
from tables import size, table


@dataclass(frozen=True)
class Entry:
    """One look at the bill. Bytes, by who is charged for them; `elsewhere` must be 0."""

    step: str
    moment: str
    volume: int
    pod: int
    retainer: int
    elsewhere: int
    # Milliseconds that it took to move the charge, where it was moved.
    moved_ms: float | None = None


class Ledger:
    """Looks, remembers, and says at the end whether every byte was where it belonged."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.entries: list[Entry] = []

    def look(
        self,
        step: str,
        moment: str,
        pod: Cgroup | None,
        retainer: Cgroup | None = None,
        moved_ms: float | None = None,
    ) -> None:
        """Surveys the volume and notes who is charged."""
        if self._machine.cgroup is None:
            return
        charged = self._charges()
        on_pod = _take(charged, pod)
        on_retainer = _take(charged, retainer)
        entry = Entry(
            step, moment, self._used(), on_pod, on_retainer, sum(charged.values()), moved_ms
        )
        self.entries.append(entry)

    def hand_over(self, to: Payer) -> float:
        """Moves every charge to another payer, as a pod leaves; returns milliseconds."""
        started = time.perf_counter()
        self._vineyard("recharge", "--to", str(to.socket))
        return (time.perf_counter() - started) * 1e3

    @property
    def wrong(self) -> list[Entry]:
        """Looks at which a byte was charged to somebody unexpected, or to nobody."""
        return [
            each
            for each in self.entries
            if each.elsewhere or each.volume != each.pod + each.retainer
        ]

    def table(self, first: int = 0) -> str:
        """The ledger from its entry number `first` on."""
        rows = [
            [
                entry.step,
                entry.moment,
                size(entry.volume),
                size(entry.pod),
                size(entry.retainer),
                size(entry.volume - entry.pod - entry.retainer),
                "" if entry.moved_ms is None else f"{entry.moved_ms:.0f}",
            ]
            for entry in self.entries[first:]
        ]
        return table(
            [
                "step",
                "moment",
                ">in the volume",
                ">billed to its pod",
                ">to the retainer",
                ">elsewhere",
                ">moved in ms",
            ],
            rows,
        )

    def _charges(self) -> dict[str, int]:
        """Bytes per cgroup path, as `vineyard charges` surveys them."""
        lines = self._vineyard("--json", "charges").splitlines()
        return {
            each["cgroup"]: each["bytes"] for each in map(json.loads, lines) if "cgroup" in each
        }

    def _used(self) -> int:
        stat = os.statvfs(self._machine.volume)
        return (stat.f_blocks - stat.f_bfree) * stat.f_frsize

    def _vineyard(self, *arguments: str) -> str:
        command = [str(binary("vineyard")), "--volume", str(self._machine.volume), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(
                f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}"
            )
        return done.stdout


def _take(charged: dict[str, int], cgroup: Cgroup | None) -> int:
    """Removes what is charged to a cgroup and those below it, and returns its bytes."""
    if cgroup is None:
        return 0
    taken = [
        path for path in charged if Path(path) == cgroup.path or cgroup.path in Path(path).parents
    ]
    return sum(charged.pop(path) for path in taken)
