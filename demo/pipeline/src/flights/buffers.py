"""Where the bytes of a value are, by their addresses in this process."""

import ctypes
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

# Smaller buffers are counted as part of the pickle stream.
SMALL_BYTES = 512


class Buffers(pickle.Pickler):
    """Collects address and length of every buffer of a value, each once."""

    def __init__(self, value: Any) -> None:
        self._stream = io.BytesIO()
        super().__init__(self._stream, protocol=5, buffer_callback=self._out_of_band)
        self.spans: dict[int, int] = {}
        self.dump(value)
        self.inline = self._stream.tell()

    @property
    def nbytes(self) -> int:
        """Bytes of the value: all its buffers and what is not a buffer."""
        return sum(self.spans.values()) + self.inline

    def within(self, directory: Path) -> int:
        """Bytes of buffers that lie in mappings of files below `directory`."""
        mapped = list(_mappings(directory))
        return sum(
            size
            for address, size in self.spans.items()
            if any(start <= address and address + size <= end for start, end in mapped)
        )

    def read(self) -> int:
        """Reads every byte once, as a program that uses the value would."""
        total = 0
        for address, size in self.spans.items():
            words = (ctypes.c_uint64 * (size // 8)).from_address(address)
            total ^= int(np.bitwise_xor.reduce(np.frombuffer(words, dtype=np.uint64), initial=0))
        return total

    def reducer_override(self, obj: Any) -> Any:
        """Notes arrays that pickle would copy into its stream, and Arrow buffers."""
        if isinstance(obj, np.ndarray) and not obj.dtype.hasobject:
            return self._noted(*_span(obj))
        if isinstance(obj, pa.Buffer):
            return self._noted(obj.address, obj.size)
        return NotImplemented

    def _noted(self, address: int, size: int) -> Any:
        if size < SMALL_BYTES:
            return NotImplemented
        self.spans[address] = max(size, self.spans.get(address, 0))
        return int, ()

    def _out_of_band(self, buffer: pickle.PickleBuffer) -> bool:
        with buffer.raw() as raw:
            array = np.frombuffer(raw, dtype=np.uint8)
        return self._noted(*_span(array)) is NotImplemented


def _span(array: np.ndarray) -> tuple[int, int]:
    low, high = np.lib.array_utils.byte_bounds(array)
    return low, high - low


def _mappings(directory: Path) -> Iterator[tuple[int, int]]:
    prefix = f"{directory}/"
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(prefix):
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16)
