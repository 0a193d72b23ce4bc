"""Objects as binary files: written from front to back while the volume reserves, read without a copy."""

from __future__ import annotations

import io
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vineyard.ref import Ref

if TYPE_CHECKING:
    from vineyard.volume import Volume

__all__ = ["Reader", "Writer"]


class Writer(io.RawIOBase):
    """A file that becomes an object when it is closed. After an exception in its `with` block nothing is left.

    It can seek, and read what was written, as the writers of zip and parquet files want.
    """

    def __init__(self, volume: Volume, name: str | None, kind: str, ttl: float | None, overwrite: bool) -> None:
        self._volume = volume
        self._native = volume._native.writer(kind)
        self._options = name, ttl, overwrite
        self._kind = kind
        self._at = 0
        #: The sealed object, after close().
        self.ref: Ref | None = None

    def write(self, buffer: Any, /) -> int:
        """Writes all of `buffer`. Raises StoreFull (also a MemoryError)."""
        n = self._native.write(buffer)
        self._at += n
        return n

    def readinto(self, buffer: Any, /) -> int:
        """Reads what was written."""
        view = memoryview(buffer).cast("B")
        got = self._native.read_at(len(view), self._at)
        view[: len(got)] = got
        self._at += len(got)
        self._native.seek(self._at)
        return len(got)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves the position; a gap becomes zeros."""
        base = {0: 0, 1: self._at, 2: len(self._native)}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._at = base + offset
        self._native.seek(self._at)
        return self._at

    def truncate(self, size: int | None = None, /) -> int:
        """Cuts off, or adds zeros."""
        size = self._at if size is None else size
        self._native.truncate(size)
        return size

    def tell(self) -> int:
        """The position."""
        return self._at

    def readable(self) -> bool:
        """Always: what was written can be read again."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Seals the object. Raises ObjectExists when the name was taken meanwhile."""
        if not self.closed:
            super().close()
            object_id, nbytes = self._native.seal(*self._options)
            self.ref = Ref(self._volume, object_id, self._kind, nbytes, self._options[0])

    def discard(self) -> None:
        """Closes without making an object."""
        if not self.closed:
            super().close()
            self._native.discard()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        # A file that nobody closed was not finished.
        if hasattr(self, "_native"):
            self.discard()


class Reader(io.RawIOBase):
    """An object's bytes as file. `memory` is a buffer of all of them."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self._view = memoryview(memory).cast("B")
        self._at = 0

    def readinto(self, buffer: Any, /) -> int:
        """Reads into a buffer."""
        view = memoryview(buffer).cast("B")
        part = self._view[self._at : self._at + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, or all that are left."""
        end = len(self._view) if size is None or size < 0 else self._at + size
        part = bytes(self._view[self._at : end])
        self._at += len(part)
        return part

    def readall(self) -> bytes:
        """All that are left."""
        return self.read(-1)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves the position."""
        base = {0: 0, 1: self._at, 2: len(self._view)}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True
