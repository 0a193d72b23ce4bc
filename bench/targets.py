"""What was promised, as ratios: every target was set on one day next to the limits and peers of that day.

A target of 12 us where creating a file took 7 us is kept as 12/7 of what creating a file takes in this run.
`Target.limit` and `Target.peer` are the figures of that day; the requirement of this run is the target times
(figure of this run / figure of that day).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

OURS = ("ours", "ours-billed")


@dataclass(frozen=True)
class Target:
    """One promise."""

    label: str
    workload: str
    metric: str
    must: float
    unit: str
    higher: bool = False
    # Key in the limits and its figure of that day; `inverse` when the limit is a rate and the target a time.
    limit: tuple[str, float] | None = None
    inverse: bool = False
    # The best peer's figure of that day.
    peer: float | None = None


TARGETS = (
    Target("put 1 KB array, p50", "small", "put_p50_us", 12, "us", limit=("small_create_us", 7), peer=22),
    Target("get 1 KB array, p50", "small", "get_p50_us", 6, "us", limit=("small_read_us", 5.25), peer=14),
    Target("put 1 KB, 1 client", "small", "put_ops", 80e3, "/s", higher=True, peer=59e3),
    Target("get 1 KB, 1 client", "small", "get_ops", 150e3, "/s", higher=True, peer=98e3),
    Target("put 1 KB, 8 clients", "clients8", "put_ops", 160e3, "/s", higher=True, peer=117e3),
    Target("get 1 KB, 8 clients", "clients8", "get_ops", 350e3, "/s", higher=True, peer=209e3),
    Target(
        "put 256 MiB, memory never touched",
        "cold",
        "put_gbps",
        10,
        "GB/s",
        higher=True,
        limit=("collapse_then_write_gbps", 10.85),
        peer=2.8,
    ),
    Target(
        "put 1 GiB where one was removed",
        "large",
        "put_gbps",
        20,
        "GB/s",
        higher=True,
        limit=("memcpy_warm_gbps", 17.3),
        peer=18.2,
    ),
    Target(
        "put 1 GiB into reserved pages (fill, seal)",
        "build",
        "fill_gbps",
        20,
        "GB/s",
        higher=True,
        limit=("memcpy_warm_gbps", 17.3),
        peer=18.2,
    ),
    Target("create and seal in place, 1 GiB", "create", "large_us", 30, "us", limit=("small_create_us", 7)),
    Target("seal in place, 1 GiB", "create", "large_seal_us", 30, "us", limit=("small_create_us", 7)),
    Target("get 1 GiB", "large", "get_us", 120, "us", peer=180),
    Target(
        "fresh process: attach, get, read 256 MiB",
        "fresh",
        "total_ms",
        16,
        "ms",
        limit=("fresh_floor_ms", 13.7),
        peer=40,
    ),
    Target(
        "put DataFrame 1e6 x 10",
        "frame",
        "put_ms",
        5,
        "ms",
        limit=("memcpy_warm_gbps", 17.3),
        inverse=True,
        peer=6.3,
    ),
    Target("get DataFrame 1e6 x 10", "frame", "get_ms", 0.45, "ms", peer=0.54),
)


@dataclass(frozen=True)
class Verdict:
    """A target against one run."""

    target: Target
    setting: str
    measured: float
    # What this run's limit and best peer require; None where the target has no such figure.
    by_limit: float | None
    by_peer: float | None
    best_peer: tuple[str, float] | None

    def missed(self, required: float | None) -> float | None:
        """How many times worse than required; below 1 the target is met."""
        if required is None:
            return None
        return required / self.measured if self.target.higher else self.measured / required


def figure(run: dict[str, Any], workload: str, setting: str, metric: str) -> float | None:
    """The median of the samples of one figure."""
    samples = run["samples"].get(workload, {}).get(setting, {}).get(metric)
    return median(samples) if samples else None


def limit(run: dict[str, Any], key: str) -> float | None:
    """A limit: the better of what was measured before and after the workloads."""
    found = [part[key] for part in (run["limits"], run.get("limits_after", {})) if key in part]
    if not found:
        return None
    return max(found) if key.endswith("_gbps") else min(found)


def verdicts(run: dict[str, Any]) -> list[Verdict]:
    """Every target against every setting of ours in this run."""
    out = []
    for target in TARGETS:
        peers = {
            setting: value
            for setting in run["samples"].get(target.workload, {})
            if setting not in OURS and (value := figure(run, target.workload, setting, target.metric)) is not None
        }
        pick = max if target.higher else min
        best = pick(peers.items(), key=lambda item: item[1], default=None)
        by_peer = target.must * best[1] / target.peer if best and target.peer else None
        by_limit = None
        if target.limit and (now := limit(run, target.limit[0])) is not None:
            ratio = now / target.limit[1]
            by_limit = target.must / ratio if target.inverse else target.must * ratio
        for setting in OURS:
            measured = figure(run, target.workload, setting, target.metric)
            if measured is not None:
                out.append(Verdict(target, setting, measured, by_limit, by_peer, best))
    return out
