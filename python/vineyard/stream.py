"""Streams: a producer appends parts, consumers read them while it is still at work."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vineyard import codec
from vineyard.ref import Ref

if TYPE_CHECKING:
    from vineyard.volume import Volume

__all__ = ["Stream"]


class Stream:
    """A sequence of values under one name. Iterate it to read; `append` and `end`, or a `with` block, to write.

    Reading waits for parts that are still to come, each up to `timeout` seconds, and stops at the end mark. When the
    `with` block of the producer fails, readers get its error after the last part.
    """

    def __init__(
        self,
        volume: Volume,
        name: str,
        timeout: float | None,
        start: int,
        consume: bool,
        readonly: bool,
        copy: bool,
        allow_pickle: bool,
    ) -> None:
        self._volume = volume
        self.name = name
        self._timeout = timeout
        self._reading = start, consume, readonly
        self._copy = copy
        self._allow_pickle = allow_pickle
        self._writer: Any = None

    def append(self, value: Any) -> Ref:
        """Puts the next part."""
        kind, content = codec.encode(value, self._allow_pickle)
        if self._writer is None:
            self._writer = self._volume._native.stream_writer(self.name)
        object_id, nbytes = self._writer.append(kind, content)
        return Ref(self._volume, object_id, kind, nbytes, None, type(value), getattr(value, "shape", None))

    def end(self) -> int:
        """Says that no part follows. Returns how many there are."""
        if self._writer is None:
            self._writer = self._volume._native.stream_writer(self.name)
        return int(self._writer.end())

    def fail(self, message: str) -> int:
        """Says that no part follows because the producer failed: readers get StoreError with `message`."""
        if self._writer is None:
            self._writer = self._volume._native.stream_writer(self.name)
        return int(self._writer.fail(message))

    def __iter__(self) -> Iterator[Any]:
        reader = self._volume._native.stream_reader(self.name, *self._reading)
        while (part := reader.next(self._timeout)) is not None:
            kind, memory = part
            if kind == "raw":
                yield memory
            else:
                yield codec.decode(kind, bytearray(memory) if self._copy else memory, self._allow_pickle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()
        else:
            self.fail(f"{kind.__name__}: {error}")

    def __repr__(self) -> str:
        return f"Stream({self.name!r})"
