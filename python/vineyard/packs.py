"""Kind `pack`: many small values in one object (docs/design/volume.md §3.2)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from vineyard.errors import DeserializationError

__all__ = ["count", "members"]

_FOOTER = struct.Struct("<QQQII8s")
_ENTRY = struct.Struct("<QQIHH")
_KIND = 16


def _footer(view: memoryview) -> tuple[int, int, int, int, int]:
    if view.nbytes < _FOOTER.size or bytes(view[-8:]) != b"VYPACK01":
        raise DeserializationError("damaged pack: it has no footer. Put it again.")
    table, number, key_bytes, kinds, crc, _ = _FOOTER.unpack(view[-_FOOTER.size :])
    if table + number * _ENTRY.size + key_bytes + kinds * _KIND + _FOOTER.size != view.nbytes:
        raise DeserializationError("damaged pack: its table does not fit its size. Put it again.")
    return table, number, key_bytes, kinds, crc


def count(memory: Any) -> int:
    """How many values a pack holds."""
    return _footer(memoryview(memory).cast("B"))[1]


def members(memory: Any) -> Iterator[tuple[str, str, memoryview]]:
    """Key, kind and bytes of each value, in the order of the keys. Raises DeserializationError."""
    view = memoryview(memory).cast("B")
    table, number, key_bytes, kinds, crc = _footer(view)
    if zlib.crc32(view[table : view.nbytes - _FOOTER.size]) != crc:
        raise DeserializationError("damaged pack: the checksum of its table is wrong. Put it again.")
    keys_at = table + number * _ENTRY.size
    keys = bytes(view[keys_at : keys_at + key_bytes])
    raw = bytes(view[keys_at + key_bytes : view.nbytes - _FOOTER.size])
    names = [raw[i * _KIND : (i + 1) * _KIND].rstrip(b"\0").decode("ascii", "replace") for i in range(kinds)]
    for start, length, key, key_length, kind in _ENTRY.iter_unpack(view[table:keys_at]):
        if start + length > table or key + key_length > key_bytes or kind >= kinds:
            raise DeserializationError("damaged pack: a value lies outside of it. Put it again.")
        name = keys[key : key + key_length].decode("utf8", "replace")
        yield name, names[kind], view[start : start + length]
