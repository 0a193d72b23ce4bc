"""Moving the bodies of a finished Arrow file to multiples of 64 bytes, without copying them.

pyarrow's writer hands large buffers to a Python sink as they are, but aligns to 8 bytes only. Its metadata has
room for other places: buffers, lengths and blocks are fixed-size structs, so they are patched where they stand.
"""

from __future__ import annotations

import struct
from typing import Any

from vineyard.arrowfile.flatbuffer import Table
from vineyard.arrowfile.layout import ALIGN
from vineyard.arrowfile.read import footer

_BLOCK = struct.Struct("<qi4xq")
_ZEROS = bytes(ALIGN)


def realign(chunks: list[Any]) -> list[Any]:
    """The same file with every buffer of every body at a multiple of 64 bytes."""
    pieces: dict[int, Any] = {}
    at = 0
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        if view.nbytes:
            pieces[at] = view
            at += view.nbytes
    starts = sorted(pieces)
    tail = bytearray(_bytes(pieces, starts, _footer_start(pieces, starts, at), at))
    table, position = footer(_with_magic(tail))
    position -= 8
    places = [
        (start + i * _BLOCK.size, slot)
        for slot in (2, 3)
        for start, count in [table.vector(slot, _BLOCK.size)]
        for i in range(count)
    ]
    blocks = sorted((*_BLOCK.unpack_from(table.raw, place), position + place) for place, _ in places)
    head_end = blocks[0][0] if blocks else at - len(tail)
    out: list[Any] = [_bytes(pieces, starts, 0, head_end)]
    end = head_end
    for offset, meta_size, _, place in blocks:
        message = bytearray(_bytes(pieces, starts, offset, offset + meta_size))
        moved, body = _move(message, pieces, starts, offset + meta_size)
        message += bytes(-(end + len(message)) % ALIGN)
        struct.pack_into("<i", message, 4, len(message) - 8)
        _BLOCK.pack_into(tail, place, end, len(message), moved)
        out.append(bytes(message))
        out.extend(body)
        end += len(message) + moved
    out.append(bytes(tail))
    return out


def _with_magic(tail: bytearray) -> memoryview:
    # `footer` wants a whole file: its first six bytes, and something between.
    return memoryview(b"ARROW1\0\0" + bytes(tail))


def _footer_start(pieces: dict[int, Any], starts: list[int], size: int) -> int:
    length = struct.unpack("<i", _bytes(pieces, starts, size - 10, size - 6))[0]
    # The end-of-stream mark before the footer goes with it.
    return size - 10 - int(length) - 8


def _bytes(pieces: dict[int, Any], starts: list[int], begin: int, end: int) -> bytes:
    return b"".join(bytes(part) for part in _range(pieces, starts, begin, end))


def _range(pieces: dict[int, Any], starts: list[int], begin: int, end: int) -> list[Any]:
    from bisect import bisect_right

    out = []
    i = bisect_right(starts, begin) - 1
    while begin < end:
        view = pieces[starts[i]]
        skip = begin - starts[i]
        part = view[skip : skip + end - begin]
        out.append(part)
        begin += part.nbytes
        i += 1
    return out


def _move(message: bytearray, pieces: dict[int, Any], starts: list[int], body_at: int) -> tuple[int, list[Any]]:
    """Patches the buffers' places in a batch's message; the new size of the body and its chunks."""
    flat = memoryview(message)[8:]
    root = Table(flat)
    batch = root.child(2)
    if batch is not None and root.number(1, "B") == 2:
        batch = batch.child(1)
    if batch is None:
        raise ValueError("a message without a batch")
    first, count = batch.vector(2, 16)
    body: list[Any] = []
    size = 0
    for i in range(count):
        offset, length = struct.unpack_from("<qq", flat, first + 16 * i)
        struct.pack_into("<q", flat, first + 16 * i, size)
        if length:
            body.extend(_range(pieces, starts, body_at + offset, body_at + offset + length))
            gap = -length % ALIGN
            if gap:
                body.append(_ZEROS[:gap])
            size += length + gap
    place = root.place(3)
    if place:
        struct.pack_into("<q", flat, place, size)
    elif size:
        raise ValueError("a body of unknown size")
    flat.release()
    return size, body
