"""Reading what the footer of an Arrow file says, without pyarrow."""

from __future__ import annotations

import struct
from typing import Any

from vineyard.arrowfile.flatbuffer import Table
from vineyard.errors import DeserializationError

_MAGIC = b"ARROW1"


def footer(view: memoryview) -> tuple[Table, int]:
    """The footer table and its position in the file."""
    size = view.nbytes
    if size < 20 or view[:6] != _MAGIC or view[-6:] != _MAGIC:
        raise DeserializationError("not an Arrow IPC file. Read its bytes with open(name, 'rb').")
    length = struct.unpack_from("<i", view, size - 10)[0]
    if length < 8 or length > size - 18:
        raise DeserializationError("damaged Arrow file: its footer does not fit. Put it again.")
    start = size - 10 - length
    return Table(bytes(view[start : size - 10])), start


def footer_metadata(memory: Any, key: bytes) -> bytes | None:
    """The value of a key in the footer's metadata."""
    for pair in footer(memoryview(memory).cast("B"))[0].tables(4):
        if pair.text(0) == key:
            return pair.text(1)
    return None
