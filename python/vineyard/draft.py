"""`create`: an object that is built in place, in memory that is already its own."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vineyard.ref import Ref

if TYPE_CHECKING:
    from vineyard.volume import Volume

__all__ = ["Draft"]


def _bytes(size: int, *dims: int) -> int:
    if not 0 <= size < 1 << 63 or any(n < 0 for n in dims):
        raise ValueError(f"no memory has {size} bytes of shape {dims}: dimensions are 0 or more and fit in memory.")
    return size


class Draft:
    """Memory to fill. As context manager it gives the array, seals at the end, and leaves nothing after an exception.

    The array stays valid after the seal; what is written to it from then on stays private.
    """

    def __init__(
        self,
        volume: Volume,
        name: str | None,
        shape: int | Sequence[int],
        dtype: Any,
        ttl: float | None,
        overwrite: bool,
    ) -> None:
        self._volume = volume
        self._options = name, ttl, overwrite
        self._shape: tuple[int, ...] | None = None
        self._type: type
        self.ref: Ref | None = None
        if dtype is None:
            if not isinstance(shape, int):
                raise TypeError(
                    "create(name, bytes) makes raw memory; for an array pass its dtype: create(name, shape, dtype)"
                )
            self._draft = volume._native.create("raw", _bytes(shape))
            #: The memory to fill: an array, or a memoryview when no dtype was given.
            self.array: Any = memoryview(self._draft.memory)
            self._type = bytes
            return
        import numpy as np

        from vineyard.types import numpy as arrays

        kind = np.dtype(dtype)
        dims = tuple(map(operator.index, shape)) if isinstance(shape, Sequence) else (operator.index(shape),)
        head = arrays.header(kind, dims, False)
        if head is None:
            raise TypeError(f"an array of dtype {kind} cannot be built in place: put() it when it is complete.")
        self._draft = volume._native.create("npy", _bytes(len(head) + math.prod(dims) * kind.itemsize, *dims))
        self._draft.write_head(head)
        self.array = np.ndarray(dims, kind, self._draft.memory, len(head))
        self._shape = dims
        self._type = np.ndarray

    def seal(self) -> Ref:
        """Makes the object visible and final. Raises ObjectExists when the name was taken meanwhile."""
        object_id, nbytes = self._draft.seal(*self._options)
        kind = "raw" if self._shape is None else "npy"
        self.ref = Ref(self._volume, object_id, kind, nbytes, self._options[0], self._type, self._shape)
        return self.ref

    def __enter__(self) -> Any:
        return self.array

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.ref is None:
            self.seal()

    def __repr__(self) -> str:
        return f"<Draft {self._options[0] or '(unnamed)'} {'open' if self.ref is None else 'sealed'}>"
