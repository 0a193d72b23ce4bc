#!/usr/bin/env python3
"""`make bench`: this store against its peers, everything in one run on one machine.

Every peer runs in a virtual environment of its own below .cache/bench, its server on loopback or a Unix socket, its
data in a tmpfs of its own. Rounds are interleaved: each workload visits every peer before its next round begins.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import environment
import handover
import plan
import report
from contest import SETTINGS, Contestant, Results
from servers import MissingError
from session import PeerError


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PEER,…", help=f"of {','.join(SETTINGS)}")
    parser.add_argument("--workload", metavar="NAME,…", help=f"of {','.join(plan.WORKLOADS)},handover")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every workload (default 3)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample to FILE; - is standard output")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables to FILE too")
    parser.add_argument("--page", metavar="FILE", type=Path, help="put the tables between the marks of this page")
    parser.add_argument("--wheel", type=Path, help="our wheel (default: the newest in target/wheels)")
    parser.add_argument("--capacity", type=int, default=8, metavar="GIB", help="of each store (default 8)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round, ours and files: a smoke test")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="FILE", help="render an earlier --json FILE again")
    given = parser.parse_args()
    if given.page and not given.page.exists():
        parser.error(f"{given.page} does not exist: it is a page with marks that the tables go between")
    if given.quick:
        given.rounds, given.only = 1, given.only or "ours,ours-billed,files"
    return given


def chosen(text: str | None, known: list[str]) -> list[str]:
    """The names that a comma-separated option picks, in the order of `known`."""
    if text is None:
        return known
    wanted = set(text.split(","))
    if unknown := wanted - set(known):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return [name for name in known if name in wanted]


def limits(quick: bool) -> dict[str, Any]:
    """What this machine can do, and the floor of a fresh process that reads 2 MiB pages."""
    program, python = environment.limits_program(), environment.environment("files", None)
    with environment.memory("limits", 4 << 30) as place:
        command = [str(program), str(place), "64" if quick else "1024"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        floor = [str(python), str(Path(__file__).with_name("floor.py")), str(place / "huge")]
        times = [float(subprocess.run(floor, check=True, capture_output=True, text=True).stdout) for _ in range(5)]
    return {**found, "fresh_floor_ms": sorted(times)[2]}


def measure(given: argparse.Namespace, results: Results) -> None:
    """All rounds of all workloads."""
    sizes = plan.QUICK if given.quick else plan.Sizes()
    wheel = given.wheel or environment.newest("target/wheels/vineyard_csi-*.whl")
    names = chosen(given.workload, [*plan.WORKLOADS, "handover"])
    with ExitStack() as stack:
        contestants = []
        for setting in chosen(given.only, list(SETTINGS)):
            try:
                if setting.startswith("ours") and wheel is None:
                    raise MissingError("no wheel in target/wheels: `make wheel`")
                contestants.append(Contestant(setting, stack, given.capacity << 30, wheel))
            except (MissingError, PeerError, subprocess.CalledProcessError) as reason:
                print(f"without {setting}: {reason}", file=sys.stderr)
                results.miss("all", setting, str(reason))
        for name in names:
            if name == "handover":
                handover.measure(sizes, given.capacity << 30, wheel, results)
                continue
            for turn in range(min(given.rounds, plan.FEWER_ROUNDS.get(name, given.rounds))):
                for contestant in contestants:
                    begun = time.monotonic()
                    contestant.measure(name, plan.WORKLOADS[name], sizes, results)
                    spent = time.monotonic() - begun
                    print(f"{name} {turn + 1} {contestant.setting} {spent:.1f} s", file=sys.stderr)
            if name == "cold":
                for contestant in contestants:
                    contestant.measure(name, plan.cold_end, sizes, results)


def ours_failed(run: dict[str, Any]) -> list[str]:
    """What our own settings could not do; in a smoke test that is the result."""
    return [
        f"{workload}, {setting}: {reason}"
        for workload, settings in run["missing"].items()
        for setting, reason in settings.items()
        if setting.startswith("ours")
    ]


def main() -> None:
    """Measures and reports."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    if given.earlier:
        run = json.loads(given.earlier.read_text())
    else:
        environment.CACHE.mkdir(parents=True, exist_ok=True)
        environment.redis_server()
        conditions = environment.conditions()
        begun, results = time.monotonic(), Results()
        run = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "quick": given.quick}
        run["limits"] = limits(given.quick)
        measure(given, results)
        run["limits_after"] = limits(given.quick)
        run["conditions"] = {**conditions, "load after the run": environment.conditions()["load before the run"]}
        run["seconds"] = round(time.monotonic() - begun)
        run["versions"] = {s: environment.versions(peer) for s, (peer, _) in SETTINGS.items()}
        run["samples"], run["missing"] = results.samples, results.missing
    text = report.markdown(run)
    if given.json:
        encoded = json.dumps(run, indent=1) + "\n"
        sys.stdout.write(encoded) if str(given.json) == "-" else given.json.write_text(encoded)
    if given.markdown:
        given.markdown.write_text(text)
    if given.page:
        given.page.write_text(report.on_page(given.page.read_text(), text))
    if str(given.json) != "-":
        print(text)
    if run["quick"] and (broken := ours_failed(run)):
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
