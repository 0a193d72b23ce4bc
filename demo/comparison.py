"""All variants side by side."""

from tables import size, table
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
                size(record.nbytes),
                f"{record.put_ms:.0f}",
                f"{record.get_ms:.0f}",
                f"{record.read_ms:.0f}",
                f"{record.handover_ms:.0f}",
                f"{record.handover_ms / ours.record.handover_ms:.1f}x",
                f"{100 * shared / got:.0f} %" if got else "",
                f"{result.seconds:.1f}",
            ]
        )
    head = [
        "",
        ">put + got",
        ">put ms",
        ">get ms",
        ">first read ms",
        ">hand-over ms",
        ">ratio",
        ">zero-copy",
        ">whole run s",
    ]
    return table(head, rows)


def pods(result: Result) -> str:
    """What each pod was allowed and what it needed."""
    rows = []
    for pod in result.pods:
        outcome = pod.outcome
        rows.append(
            [
                pod.name.removeprefix(f"{result.variant.name}-"),
                str(pod.uid),
                size(pod.limit),
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
