"""Hand-over: the bill of a volume moves to another payer, by `vineyard recharge`. Needs root and cgroups."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import environment
import servers
from contest import prime
from plan import MIB, Sizes
from session import PeerError, Worker

if TYPE_CHECKING:
    from contest import Results

SETTING = "ours-billed"


def measure(sizes: Sizes, capacity: int, wheel: Path | None, results: Results) -> None:
    """A mass of small objects, then four blocks, each handed from one payer's cgroup to another's."""
    try:
        record = results.recorder("handover", SETTING)
        with ExitStack() as stack:
            small = Handover(stack, "small", capacity, wheel)
            small.put("mass_put", count=sizes.million, together=False)
            seconds = small.recharge(sizes.million * 4096)
            record("small_ops", sizes.million / seconds)
            record("small_seconds", seconds)
        with ExitStack() as stack:
            large = Handover(stack, "large", capacity, wheel)
            large.worker.call("make", kind="array", args=[sizes.block])
            large.put("put", count=4)
            prime(4 * sizes.block)
            record("large_gbps", 4 * sizes.block / large.recharge(4 * sizes.block) / 1e9)
    except (servers.MissingError, PeerError, subprocess.TimeoutExpired) as reason:
        results.miss("handover", SETTING, str(reason))


class Handover:
    """A volume between two payers, each in a cgroup of its own."""

    def __init__(self, stack: ExitStack, name: str, capacity: int, wheel: Path | None) -> None:
        program = environment.newest("target/release/vineyard")
        if program is None or wheel is None:
            raise servers.MissingError("no command line or no wheel built: `make build wheel`")
        self.program = program
        self.memory = stack.enter_context(environment.memory(f"handover-{name}", capacity))
        self.places = []
        logs = environment.CACHE / "logs"
        for payer in ("producer", "successor"):
            group = stack.enter_context(environment.cgroup(f"{name}-{payer}"))
            if group is None:
                raise servers.MissingError("needs root and a writable cgroup")
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="vyb-", dir="/tmp"))
            site = servers.Site(
                python=environment.environment("ours", wheel),
                scratch=Path(scratch),
                memory=self.memory,
                logs=logs,
                sidecar=environment.sidecar(),
                cgroup=group,
                capacity=capacity,
            )
            stack.callback(site.stop)
            self.places.append(servers.billed(site))
        log = logs / "handover-client.log"
        worker = Worker(site.python, "ours", self.places[0], environment.clean(), log)
        self.worker = stack.enter_context(worker)
        self.worker.call("attach")

    def put(self, call: str, **args: Any) -> None:
        """Has the client put what is handed over."""
        self.worker.call(call, tag="handover", timeout=400, **args)

    def recharge(self, expected: int) -> float:
        """Seconds until all of it is charged to the successor; the program itself surveys that it is."""
        command = [str(self.program), "--volume", str(self.memory), "--json", "recharge"]
        command += ["--to", self.places[1]["socket"]]
        begun = time.monotonic()
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
        seconds = time.monotonic() - begun
        if done.returncode != 0:
            raise PeerError(f"recharge: {(done.stderr or done.stdout)[:300]}")
        report = json.loads(done.stdout)
        moved = report["pulled_bytes"] + report["copied_bytes"]
        if report["failed"] or report["left_bytes"] or moved < expected - 4 * MIB:
            raise PeerError(f"recharge left something behind: {done.stdout[:300]}")
        return seconds
