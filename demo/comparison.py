"""All variants side by side."""

import os

from tables import milliseconds, size, table
from variants import Result


def comparison(results: list[Result], against: str) -> str:
    """Times of all variants, and the ratio of their hand-overs to those of `against`."""
    ours = next(result for result in results if result.variant.name == against)
    rows = []
    for result in results:
        record = result.record
        shared = sum(get.shared for each in record.handovers.values() for get in each.gets)
        got = sum(get.nbytes for each in record.handovers.values() for get in each.gets)
        rows.append(
            [
                result.variant.title,
                f"{record.put_ms:.0f}",
                f"{record.get_ms:.0f}",
                f"{record.read_ms:.0f}",
                f"{record.handover_ms:.0f}",
                f"{record.handover_ms / ours.record.handover_ms:.1f}x",
                f"{100 * shared / got:.0f} %" if got else "",
                f"{record.compute_ms / 1e3:.1f}",
                f"{result.seconds:.1f}",
            ]
        )
    head = ["", ">put ms", ">get ms", ">first read ms", ">hand-over ms", ">ratio", ">zero-copy"]
    return table([*head, ">computing s", ">all pods s"], rows)


def by_dataset(results: list[Result], against: str) -> str:
    """Milliseconds of every hand-over, put, gets and first reads, and the ratio to `against`."""
    ours = next(result for result in results if result.variant.name == against)
    others = [each for each in results if each.variant.per_task and each is not ours]
    rows = []
    for name, handover in ours.record.handovers.items():
        row = [name, str(len(handover.gets)), size(handover.nbytes), milliseconds(handover.ms)]
        for other in others:
            ms = other.record.handovers[name].ms
            row += [milliseconds(ms), f"{ms / handover.ms:.1f}x"]
        rows.append(row)
    heads = [head for each in others for head in (f">{_name(each)} ms", ">ratio")]
    return table(["dataset", ">consumers", ">bytes", f">{_name(ours)} ms", *heads], rows)


def _name(result: Result) -> str:
    return result.variant.title.partition(",")[0]


def pods(result: Result) -> str:
    """What each pod was allowed and what it needed."""
    rows = []
    for pod in result.pods:
        outcome = pod.outcome
        rows.append(
            [
                pod.name.removeprefix(f"{result.variant.name}-"),
                str(pod.uid if pod.machine.uids else os.geteuid()),
                size(pod.limit) if pod.machine.cgroup is not None else "-",
                _peak(outcome.app_peak),
                size(pod.allowance) if pod.allowance else "-",
                _peak(outcome.sidecar_peak),
                str(outcome.oom_kills),
                f"{outcome.seconds:.1f}",
            ]
        )
    head = [
        "pod",
        ">uid",
        ">app limit",
        ">app peak",
        ">allowance",
        ">sidecar peak",
        ">oom kills",
        ">seconds",
    ]
    return table(head, rows)


def _peak(value: int | None) -> str:
    return "-" if value is None else size(value)
