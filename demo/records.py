"""What the recorder in the pipeline wrote down, per hand-over and in total."""

import json
from dataclasses import dataclass, field
from typing import Any

from tables import milliseconds, size, table


@dataclass
class Get:
    """One consumer's load."""

    node: str
    # Milliseconds to have the value, and then to read every byte of it once.
    ms: float
    read_ms: float
    # Bytes of the value, of those in buffers, and of those in the volume's own memory.
    nbytes: int
    buffers: int
    shared: int

    @property
    def zero_copy(self) -> str:
        """How much of the value is the volume's own memory, by its addresses."""
        if self.shared == 0:
            return "no"
        return "yes" if self.shared == self.buffers else f"{100 * self.shared / self.buffers:.1f} %"


@dataclass
class Handover:
    """One dataset on its way from its producer to its consumers."""

    dataset: str
    producer: str
    nbytes: int
    put_ms: float
    gets: list[Get] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """What it takes to get the value to all of its consumers, read once by each."""
        return self.put_ms + sum(get.ms + get.read_ms for get in self.gets)


@dataclass
class Record:
    """All hand-overs of one run of the pipeline, and the milliseconds that its nodes computed."""

    handovers: dict[str, Handover] = field(default_factory=dict)
    nodes: dict[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that were put, and got by each consumer."""
        return sum(each.nbytes * (1 + len(each.gets)) for each in self.handovers.values())

    @property
    def put_ms(self) -> float:
        """Milliseconds in all puts."""
        return sum(each.put_ms for each in self.handovers.values())

    @property
    def get_ms(self) -> float:
        """Milliseconds in all gets."""
        return sum(get.ms for each in self.handovers.values() for get in each.gets)

    @property
    def read_ms(self) -> float:
        """Milliseconds to read every byte of every value once after its get."""
        return sum(get.read_ms for each in self.handovers.values() for get in each.gets)

    @property
    def compute_ms(self) -> float:
        """Milliseconds in the nodes themselves."""
        return sum(self.nodes.values())

    @property
    def handover_ms(self) -> float:
        """What it takes to get every value from its producer to its consumers, read once."""
        return sum(each.ms for each in self.handovers.values())

    def add(self, events: str) -> None:
        """Adds events, one a line, among other lines. The report is the pipeline's result and no hand-over."""
        for line in events.splitlines():
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if event["event"] == "node":
                self.nodes[event["node"]] = event["ms"]
            elif event["event"] == "put" and event["dataset"] != "report":
                name = event["dataset"]
                self.handovers[name] = Handover(name, event["node"], event["bytes"], event["ms"])
            elif event["event"] == "get":
                self.handovers[event["dataset"]].gets.append(_get(event))

    def table(self) -> str:
        """One line per consumer of each dataset."""
        rows = []
        for each in self.handovers.values():
            for number, get in enumerate(each.gets):
                first = number == 0
                rows.append(
                    [
                        each.dataset if first else "",
                        f"{each.producer} → {get.node}",
                        size(each.nbytes),
                        milliseconds(each.put_ms) if first else "",
                        milliseconds(get.ms),
                        milliseconds(get.read_ms),
                        get.zero_copy,
                    ]
                )
        return table(["dataset", "hand-over", ">bytes", ">put ms", ">get ms", ">read ms", "zero-copy"], rows)


def _get(event: dict[str, Any]) -> Get:
    buffers = event["bytes"] - event["inline"]
    return Get(event["node"], event["ms"], event["read_ms"], event["bytes"], buffers, event["shared"])
