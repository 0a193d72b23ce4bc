"""What type and shape a stored value has, without building it and without importing its library."""

from __future__ import annotations

import ast
import struct
from typing import Any

from vineyard import packs, pickling
from vineyard.arrowfile import footer_metadata
from vineyard.errors import DeserializationError

__all__ = ["describe"]

_NPY_HEADER = {1: ("<H", 10), 2: ("<I", 12), 3: ("<I", 12)}


def describe(kind: str | None, memory: Any) -> tuple[str | None, tuple[int, ...] | None]:
    """Type and shape, as far as the object says."""
    try:
        if kind == "pickle":
            return _of(pickling.read_meta(memory))
        if kind == "arrow":
            import json

            return _of(json.loads(footer_metadata(memory, b"vineyard") or b'{"type": "pyarrow.Table"}'))
        if kind == "pack":
            return "dict", (packs.count(memory),)
        if kind == "npy":
            return "numpy.ndarray", _npy_shape(memoryview(memory))
    except (DeserializationError, ValueError, KeyError, TypeError, SyntaxError, struct.error):
        return None, None
    return {"raw": "bytes", "text": "str"}.get(kind or ""), None


def _of(told: dict[str, Any]) -> tuple[str | None, tuple[int, ...] | None]:
    shape = told.get("shape")
    return told.get("type"), None if shape is None else tuple(shape)


def _npy_shape(view: memoryview) -> tuple[int, ...]:
    code, start = _NPY_HEADER[view[6]]
    (length,) = struct.unpack_from(code, view, 8)
    return tuple(ast.literal_eval(bytes(view[start : start + length]).decode("utf8").strip())["shape"])
