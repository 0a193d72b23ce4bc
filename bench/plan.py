"""What is measured: each workload puts in one process, gets in another, and records samples."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from session import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from session import Worker

MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How much each workload moves."""

    small: int = 2000
    block: int = 256 * MIB
    large: int = 1024 * MIB
    rows: int = 1_000_000
    strings: int = 3_000_000
    items: int = 1000
    million: int = 1_000_000
    seconds: float = 1.0


WARM: dict[str, list[Any]] = {"frame": [10], "nested": [8192], "list": [3]}
QUICK = Sizes(200, 8 * MIB, 16 * MIB, 20_000, 30_000, 100, 5_000, 0.2)


@dataclass
class Bench:
    """One setting of a peer under measurement: two clients, and what it takes to make more."""

    setting: str
    sizes: Sizes
    spawn: Callable[[], Worker]
    prime: Callable[[int], None]
    record: Callable[[str, float], None]
    producer: Worker
    consumer: Worker

    def times(self, metric: str, nanoseconds: list[int], per: float) -> None:
        """Records every time of one round as a sample."""
        for value in nanoseconds:
            self.record(metric, value / per)

    def put_get(self, kind: str, args: list[Any], expect: float | str, size: int, gets: int) -> None:
        """Puts one value once and gets it some times."""
        try:
            self.consumer.call("warm", kind=kind, args=WARM[kind])
            self.producer.call("make", kind=kind, args=args)
            self.prime(2 * size)
            put = self.producer.call("put", tag=kind)
            got = self.consumer.call("get", tokens=put["tokens"], count=gets, expect=expect)
        finally:
            self.producer.call("drop", tag=kind)
        self.times("put_ms", put["ns"], 1e6)
        self.times("get_ms", got["ns"], 1e6)


def percentiles(bench: Bench, verb: str, nanoseconds: list[int]) -> None:
    """p50, p99 and operations a second of one round."""
    cuts = quantiles(nanoseconds, n=100)
    bench.record(f"{verb}_p50_us", cuts[49] / 1e3)
    bench.record(f"{verb}_p99_us", cuts[98] / 1e3)
    bench.record(f"{verb}_ops", len(nanoseconds) / (sum(nanoseconds) / 1e9))


def cold(bench: Bench) -> None:
    """Puts a block into memory that this store has never touched: nothing is freed before the last round."""
    size = bench.sizes.block
    bench.producer.call("make", kind="array", args=[size])
    bench.prime(4 * size)
    put = bench.producer.call("put", tag="cold")
    bench.times("put_ms", put["ns"], 1e6)
    bench.record("put_gbps", size / put["ns"][0])


def cold_end(bench: Bench) -> None:
    """Frees what `cold` kept."""
    bench.producer.call("drop", tag="cold")


def small(bench: Bench) -> None:
    """1 KiB arrays, one client, one after the other."""
    count = bench.sizes.small // (20 if bench.setting == "s3" else 1)
    try:
        put = bench.producer.call("small_puts", tag="small", count=count, pause=0.2)
        got = bench.consumer.call("small_gets", tokens=put["tokens"])
    finally:
        bench.producer.call("drop", tag="small")
    percentiles(bench, "put", put["ns"])
    percentiles(bench, "get", got["ns"])


def clients8(bench: Bench) -> None:
    """1 KiB arrays, eight clients at once, each as fast as it can."""
    seconds = bench.sizes.seconds
    with ExitStack() as stack:
        clients = [stack.enter_context(bench.spawn()) for _ in range(8)]
        for client in clients:
            client.send("attach")
        for client in clients:
            client.receive(180)
            client.send("warm", kind="small", args=[1])
        for client in clients:
            client.receive(60)
        start = time.monotonic() + 0.3
        for client in clients:
            client.send("put_rate", tag="rate", start_at=start, seconds=seconds)
        puts = [client.receive(60) for client in clients]
        for client, other in zip(clients, puts[1:] + puts[:1], strict=True):
            client.call("prepare", tokens=other["tokens"])
        start = time.monotonic() + 0.3
        for client in clients:
            client.send("get_rate", start_at=start, seconds=seconds)
        gets = [client.receive(60) for client in clients]
        for client in clients:
            client.send("drop", tag="rate")
        for client in clients:
            client.receive(180)
    bench.record("put_ops", sum(put["rate"] for put in puts))
    bench.record("get_ops", sum(got["rate"] for got in gets))


def large(bench: Bench) -> None:
    """Puts a large array where an equal one has just been freed, and gets it."""
    size = bench.sizes.large
    if bench.setting == "redis" and size >= 512 * MIB:
        raise UnsupportedError("a value has at most 512 MB")
    if bench.setting == "s3" and size >= 512 * MIB:
        raise UnsupportedError("not asked: it takes many seconds and the server frees nothing for minutes")
    try:
        bench.producer.call("make", kind="array", args=[size])
        bench.prime(2 * size)
        put = bench.producer.call("put", tag="large", count=3, drop_before=True)
        expect = size / 8 - 1
        # A get of these copies everything and takes most of a second.
        count = 2 if bench.setting == "files-pickle" else 20
        got = bench.consumer.call("get", tokens=put["tokens"][-1:], count=count, expect=expect)
    finally:
        bench.producer.call("drop", tag="large")
    for nanoseconds in put["ns"][1:]:
        bench.record("put_ms", nanoseconds / 1e6)
        bench.record("put_gbps", size / nanoseconds)
    bench.times("get_us", got["ns"], 1e3)


def create(bench: Bench) -> None:
    """Creates and seals an object in place without filling it: what is left of a put."""
    for label, size in (("small", MIB), ("block", bench.sizes.block), ("large", bench.sizes.large)):
        bench.prime(2 * size)
        made = bench.producer.call("create", size=size, count=21)
        for created, sealed in zip(made["create_ns"][1:], made["seal_ns"][1:], strict=True):
            bench.record(f"{label}_us", (created + sealed) / 1e3)
            bench.record(f"{label}_seal_us", sealed / 1e3)


def build(bench: Bench) -> None:
    """Builds a large object in place: creates it, fills it from an array, seals it."""
    size = bench.sizes.large
    try:
        bench.producer.call("make", kind="array", args=[size])
        bench.prime(2 * size)
        made = bench.producer.call("build", count=3)
    finally:
        bench.producer.call("drop", tag="build")
    for created, filled in zip(made["create_ns"][1:], made["fill_ns"][1:], strict=True):
        bench.record("create_ms", created / 1e6)
        bench.record("fill_ms", filled / 1e6)
        bench.record("all_ms", (created + filled) / 1e6)
        bench.record("fill_gbps", size / filled)


def fresh(bench: Bench) -> None:
    """A process that has just begun attaches, gets a block and reads all of it."""
    size = bench.sizes.block
    words = size // 8
    try:
        bench.producer.call("make", kind="array", args=[size])
        bench.prime(2 * size)
        token = bench.producer.call("put", tag="fresh")["tokens"][0]
        for _ in range(2):
            with bench.spawn() as reader:
                got = reader.call("fresh", token=token, expect=words * (words - 1) / 2)
            bench.times("total_ms", got["ns"], 1e6)
            bench.times("attach_ms", got["attach_ns"], 1e6)
    finally:
        bench.producer.call("drop", tag="fresh")


def frame(bench: Bench) -> None:
    """A DataFrame of ten float64 columns."""
    rows = bench.sizes.rows
    expect = bench.producer.call("last_of", kind="frame", args=[rows])
    bench.put_get("frame", [rows], expect, rows * 80, gets=5)


def nested(bench: Bench) -> None:
    """A dict that holds a block."""
    size = bench.sizes.block
    bench.put_get("nested", [size], size / 8 - 1, size, gets=3)


def items(bench: Bench) -> None:
    """A list of small arrays."""
    count = bench.sizes.items
    bench.put_get("list", [count], count - 1.0, count * 1024, gets=5)


def strings(bench: Bench, dtype: str) -> None:
    """A frame of strings, each side in a process of its own: time, and how far its resident peak rose."""
    rows = bench.sizes.strings
    with bench.spawn() as writer, bench.spawn() as reader:
        for client in (writer, reader):
            client.call("attach")
            client.call("warm", kind="strings", args=[1000, dtype])
        writer.call("make", kind="strings", args=[rows, dtype])
        bench.prime(rows * 100)
        put = writer.call("put_peak", tag="strings")
        expect = f"customer-{rows - 1:015d}"
        got = reader.call("get_peak", tokens=put["tokens"], expect=expect)
        writer.call("drop", tag="strings")
    bench.times("put_ms", put["ns"], 1e6)
    bench.times("get_ms", got["ns"], 1e6)
    bench.times("put_peak_mib", put["peak"], MIB)
    bench.times("get_peak_mib", got["peak"], MIB)


def million(bench: Bench) -> None:
    """A mass of 1 KiB arrays, one by one and many in a call."""
    for verb, together in (("put", False), ("put_many", True)):
        count = bench.sizes.million
        if not together and bench.setting not in ("ours", "ours-billed", "files"):
            continue
        with bench.spawn() as writer:
            writer.call("attach")
            try:
                put = writer.call("mass_put", tag="mass", count=count, together=together, timeout=400)
                bench.record(f"{verb}_ops", put["rate"])
                bench.record(f"{verb}_seconds", put["seconds"])
            finally:
                writer.call("drop", tag="mass", timeout=400)


WORKLOADS: dict[str, Callable[[Bench], None]] = {
    "cold": cold,
    "small": small,
    "clients8": clients8,
    "large": large,
    "create": create,
    "build": build,
    "fresh": fresh,
    "frame": frame,
    "nested": nested,
    "list": items,
    "strings": lambda bench: strings(bench, "object"),
    "strings-arrow": lambda bench: strings(bench, "str"),
    "million": million,
}
# These take long and vary little, or repeat enough in one round.
FEWER_ROUNDS = {"million": 1, "strings": 1, "strings-arrow": 1, "clients8": 2, "build": 2}
