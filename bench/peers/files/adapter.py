# ruff: noqa: PTH104, PTH108, PTH123
"""Plain files on tmpfs, the way a careful user writes them: under a temporary name, then renamed.

No pathlib in what is timed: a `Path` would cost a plain file several microseconds.

`format: pickle5` keeps buffers out of band and maps them on get; `format: pickle` is what `pickle.dump` does.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import struct
from pathlib import Path
from typing import Any

ALIGN = 64
INLINE = 4096
COUNTS = struct.Struct("<QQ")
SPAN = struct.Struct("<QQ")


class Store:
    """A directory of files."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.root = Path(place["directory"])
        self.numbers = itertools.count()
        self.prefix = f"{self.root}/{os.getpid()}-"
        self.mapped = place["format"] == "pickle5"

    def put(self, value: Any) -> str:
        path = f"{self.prefix}{next(self.numbers)}"
        temporary = path + ".tmp"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            if self.mapped:
                write_mapped(file, value)
            else:
                write_all(file, memoryview(pickle.dumps(value, protocol=5)))
        finally:
            os.close(file)
        os.rename(temporary, path)
        return path

    def get(self, handle: str) -> Any:
        if self.mapped:
            return read_mapped(handle)
        with open(handle, "rb", buffering=0) as file:
            return pickle.loads(file.read())

    def create(self, size: int) -> tuple[str, mmap.mmap]:
        """A sparse file: pages come with the first touch, and SIGBUS when there is none."""
        path = f"{self.prefix}{next(self.numbers)}"
        file = os.open(path + ".tmp", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(file, size)
            mapping = mmap.mmap(file, size)
        finally:
            os.close(file)
        return path, mapping

    def fill(self, draft: tuple[str, mmap.mmap], array: Any) -> None:
        memoryview(draft[1])[:] = memoryview(array)

    def seal(self, draft: tuple[str, mmap.mmap]) -> str:
        path, mapping = draft
        mapping.close()
        os.rename(path + ".tmp", path)
        return path

    def export(self, handles: list[str]) -> list[str]:
        return handles

    def resolve(self, tokens: list[str]) -> list[str]:
        return tokens

    def drop(self, handles: list[str]) -> None:
        for path in handles:
            os.unlink(path)


def write_all(file: int, data: memoryview) -> None:
    """Writes every byte; one `write` takes at most 2 GiB."""
    while data:
        data = data[os.write(file, data) :]


def write_mapped(file: int, value: Any) -> None:
    """u64 pickle bytes, u64 buffers, (offset, length) each, the pickle, then the buffers at multiples of 64."""
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < INLINE:
            return True
        buffers.append(raw)
        return False

    stream = pickle.dumps(value, protocol=5, buffer_callback=keep)
    offset = COUNTS.size + SPAN.size * len(buffers) + len(stream)
    spans, pads = [], []
    for raw in buffers:
        pad = -offset % ALIGN
        pads.append(pad)
        spans.append(SPAN.pack(offset + pad, raw.nbytes))
        offset += pad + raw.nbytes
    head = b"".join([COUNTS.pack(len(stream), len(buffers)), *spans, stream])
    os.write(file, head)
    for pad, raw in zip(pads, buffers, strict=True):
        if pad:
            os.write(file, bytes(pad))
        write_all(file, raw)


def read_mapped(path: str) -> Any:
    """Maps the file copy-on-write, so that what comes back is writable and shares the pages."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(file).st_size
        if size <= INLINE:
            data = memoryview(os.read(file, size))
        else:
            data = memoryview(mmap.mmap(file, size, access=mmap.ACCESS_COPY))
    finally:
        os.close(file)
    length, count = COUNTS.unpack_from(data)
    start = COUNTS.size + SPAN.size * count
    spans = SPAN.iter_unpack(data[COUNTS.size : start])
    buffers = [data[offset : offset + span] for offset, span in spans]
    return pickle.loads(data[start : start + length], buffers=buffers)
