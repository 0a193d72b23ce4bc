"""Where the bytes of a value are, by their addresses in this process."""

import ctypes
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

# Smaller buffers are counted as part of the pickle stream.
SMALL_BYTES = 512


class Buffers(pickle.Pickler):
    """Collects address and length of every buffer of a value, each once.

    It pickles the value, but notes arrays, columns and buffers instead of copying them.
    """

    def __init__(self, value: Any) -> None:
        self._stream = io.BytesIO()
        super().__init__(self._stream, protocol=5)
        self.spans: dict[int, int] = {}
        self.dump(value)
        # Bytes that are no buffer: types, names, settings, small arrays.
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
            words = memoryview((ctypes.c_uint64 * (size // 8)).from_address(address)).cast("B")
            total ^= int(np.bitwise_xor.reduce(np.frombuffer(words, dtype=np.uint64), initial=0))
        return total

    def reducer_override(self, obj: Any) -> Any:
        """Notes what has buffers, and leaves its bytes out of the stream."""
        if isinstance(obj, pd.DataFrame):
            for number in range(obj.shape[1]):
                self._column(obj.iloc[:, number])
            return list, (list(obj.columns),)
        if isinstance(obj, pd.Series):
            self._column(obj)
            return int, ()
        if isinstance(obj, np.ndarray) and not obj.dtype.hasobject and obj.nbytes >= SMALL_BYTES:
            self._array(obj)
            return int, ()
        return NotImplemented

    def _column(self, column: pd.Series) -> None:
        if isinstance(column.dtype, pd.CategoricalDtype):
            self._array(column.array.codes)
        elif isinstance(column.dtype, np.dtype):
            self._array(column.to_numpy())
        else:
            array = pa.array(column.array)
            for chunk in array.chunks if isinstance(array, pa.ChunkedArray) else [array]:
                for buffer in filter(None, chunk.buffers()):
                    self.spans[buffer.address] = buffer.size

    def _array(self, array: np.ndarray) -> None:
        low, high = np.lib.array_utils.byte_bounds(array)
        self.spans[low] = high - low


def _mappings(directory: Path) -> Iterator[tuple[int, int]]:
    prefix = f"{directory}/"
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(prefix):
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16)
