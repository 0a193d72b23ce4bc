"""The timed loops. The same code for every peer: only `Store` differs.

A `Store` (bench/peers/*/adapter.py) has

    Store(place)              attaches to the running peer
    put(value) -> handle      timed
    get(handle) -> value      timed, always in another process than the put
    put_many(values)          timed, optional; returns handles
    create(size) -> draft     timed, optional; memory of `size` bytes that will be an object, not filled here
    fill(draft, array)        timed, with `create`
    seal(draft) -> handle     timed, with `create`
    export(handles) -> [str]  and  resolve([str]) -> handles   hands handles to another process, never timed
    drop(handles)             frees, never timed
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import values

if TYPE_CHECKING:
    from collections.abc import Callable

now = time.perf_counter_ns


class UnsupportedError(Exception):
    """This peer cannot do that."""


def peak_rss() -> int:
    """The process' peak of resident bytes since the last reset (VmHWM)."""
    return status("VmHWM")


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class Client:
    """One client process."""

    def __init__(self, store: Callable[[dict[str, Any]], Any], place: dict[str, Any]) -> None:
        self.new_store = store
        self.place = place
        self.store: Any = None
        self.held: dict[str, list[Any]] = {}
        self.value: Any = None
        self.resolved: list[Any] = []

    def attach(self) -> None:
        """Connects, so that the first timed operation does not."""
        if self.store is None:
            self.store = self.new_store(self.place)

    def make(self, kind: str, args: list[Any]) -> None:
        """Makes the value that the next puts store."""
        self.value = values.make(kind, *args)

    def last_of(self, kind: str, args: list[Any]) -> float | str:
        """What the consumer has to find at the end of such a value."""
        return values.last(values.make(kind, *args))

    def warm(self, kind: str, args: list[Any]) -> None:
        """Puts and gets a small value of that kind, so that the timed ones import and build nothing."""
        handle = self.store.put(values.make(kind, *args))
        self.store.get(handle)
        self.store.drop([handle])

    def put(self, tag: str, count: int = 1, drop_before: bool = False) -> dict[str, Any]:
        """Puts the made value `count` times; `drop_before` frees each before the next is put."""
        times, handles = [], self.held.setdefault(tag, [])
        for _ in range(count):
            if drop_before and handles:
                self.store.drop(handles)
                handles.clear()
            gc.collect()
            start = now()
            handle = self.store.put(self.value)
            times.append(now() - start)
            handles.append(handle)
        return {"ns": times, "tokens": self.store.export(handles[-count:])}

    def get(self, tokens: list[str], count: int, expect: float | str) -> dict[str, Any]:
        """Gets each of the tokens `count` times, drops the value, and checks what came."""
        times = []
        for handle in self.store.resolve(tokens):
            for _ in range(count):
                gc.collect()
                start = now()
                value = self.store.get(handle)
                times.append(now() - start)
                found = values.last(value)
                if found != expect:
                    raise ValueError(f"wrong value: {found!r} instead of {expect!r}")
                del value
        return {"ns": times}

    def drop(self, tag: str) -> None:
        """Frees what was put under that tag, and the value."""
        handles = self.held.pop(tag, [])
        if handles:
            self.store.drop(handles)
        self.value = None
        gc.collect()

    def small_puts(self, tag: str, count: int, pause: float = 0.0) -> dict[str, Any]:
        """Puts `count` different 1 KiB arrays and times each."""
        arrays = [values.small(i) for i in range(count)]
        times, handles = [0] * count, []
        put = self.store.put
        for array in arrays[: min(50, count)]:
            self.held.setdefault(tag, []).append(put(array))
        time.sleep(pause)
        gc.disable()
        for i, array in enumerate(arrays):
            start = now()
            handles.append(put(array))
            times[i] = now() - start
        gc.enable()
        self.held[tag] += handles
        return {"ns": times, "tokens": self.store.export(handles)}

    def small_gets(self, tokens: list[str]) -> dict[str, Any]:
        """Gets each of the 1 KiB arrays once and checks it after the clock has stopped."""
        handles = self.store.resolve(tokens)
        times = [0] * len(handles)
        get = self.store.get
        for handle in handles[:50]:
            get(handle)
        gc.disable()
        for i, handle in enumerate(handles):
            start = now()
            value = get(handle)
            times[i] = now() - start
            if value[255] != i:
                raise ValueError(f"wrong value in small object {i}")
        gc.enable()
        return {"ns": times}

    def put_rate(self, tag: str, start_at: float, seconds: float) -> dict[str, Any]:
        """Puts 1 KiB arrays from `start_at` (CLOCK_MONOTONIC) on, for so long. All clients start together."""
        array, put, handles = values.small(7), self.store.put, []
        gc.disable()
        begun, end = wait_until(start_at), start_at + seconds
        while time.monotonic() < end:
            handles.extend([put(array), put(array), put(array), put(array)])
        elapsed = time.monotonic() - begun
        gc.enable()
        self.held.setdefault(tag, []).extend(handles)
        return {"rate": len(handles) / elapsed, "tokens": self.store.export(handles[:1000])}

    def prepare(self, tokens: list[str]) -> None:
        """Resolves the tokens that `get_rate` will read."""
        self.resolved = self.store.resolve(tokens)

    def get_rate(self, start_at: float, seconds: float) -> dict[str, Any]:
        """Gets the prepared objects over and over."""
        handles, get, count = self.resolved, self.store.get, 0
        gc.disable()
        begun, end = wait_until(start_at), start_at + seconds
        while time.monotonic() < end:
            at = count % (len(handles) - 3)
            get(handles[at]), get(handles[at + 1]), get(handles[at + 2]), get(handles[at + 3])
            count += 4
        elapsed = time.monotonic() - begun
        gc.enable()
        self.resolved = []
        return {"rate": count / elapsed}

    def create(self, size: int, count: int) -> dict[str, Any]:
        """Creates and seals objects of `size` bytes in place, without filling them, and drops each."""
        if not hasattr(self.store, "create"):
            raise UnsupportedError("no creation in place")
        created, sealed = [], []
        for _ in range(count):
            start = now()
            draft = self.store.create(size)
            middle = now()
            handle = self.store.seal(draft)
            end = now()
            created.append(middle - start)
            sealed.append(end - middle)
            del draft
            self.store.drop([handle])
        return {"create_ns": created, "seal_ns": sealed}

    def build(self, count: int) -> dict[str, Any]:
        """Builds objects in place: creates, fills from the made array, seals, and drops each."""
        if not hasattr(self.store, "create"):
            raise UnsupportedError("no creation in place")
        flat = self.value.view("u1")
        created, filled = [], []
        for _ in range(count):
            start = now()
            draft = self.store.create(flat.nbytes)
            middle = now()
            self.store.fill(draft, flat)
            handle = self.store.seal(draft)
            end = now()
            created.append(middle - start)
            filled.append(end - middle)
            del draft
            self.store.drop([handle])
        return {"create_ns": created, "fill_ns": filled}

    def fresh(self, token: str, expect: float) -> dict[str, Any]:
        """Attaches, gets and reads everything: what a new task does first. Imports are not counted."""
        start = now()
        self.attach()
        attached = now()
        value = self.store.get(self.store.resolve([token])[0])
        total = float(value.sum())
        end = now()
        if total != expect:
            raise ValueError(f"wrong sum {total}")
        return {"ns": [end - start], "attach_ns": [attached - start]}

    def put_peak(self, tag: str) -> dict[str, Any]:
        """Puts the made value and tells by how much the process' resident peak rose."""
        before = reset_peak()
        result = self.put(tag)
        return {**result, "peak": [peak_rss() - before]}

    def get_peak(self, tokens: list[str], expect: float | str) -> dict[str, Any]:
        """Gets a value and tells by how much the process' resident peak rose."""
        before = reset_peak()
        result = self.get(tokens, 1, expect)
        return {**result, "peak": [peak_rss() - before]}

    def mass_put(self, tag: str, count: int, together: bool) -> dict[str, Any]:
        """Puts `count` 1 KiB arrays, one by one or by `put_many` in batches of 10,000."""
        if together and not hasattr(self.store, "put_many"):
            raise UnsupportedError("no put of many values in one call")
        handles, spent = self.held.setdefault(tag, []), 0
        for begin in range(0, count, 10_000):
            batch = [values.small(i) for i in range(begin, min(begin + 10_000, count))]
            gc.disable()
            start = now()
            if together:
                new = self.store.put_many(batch)
            else:
                put = self.store.put
                new = [put(value) for value in batch]
            spent += now() - start
            gc.enable()
            handles.extend(new)
        return {"rate": count / (spent / 1e9), "seconds": spent / 1e9}


def reset_peak() -> int:
    """Resets VmHWM and returns the resident bytes now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def wait_until(moment: float) -> float:
    """Sleeps until a moment of CLOCK_MONOTONIC; returns when it really was."""
    time.sleep(max(0.0, moment - time.monotonic()))
    return time.monotonic()
