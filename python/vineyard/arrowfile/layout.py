"""Writing: columns first, then their places are known, then the metadata around them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vineyard.arrowfile.flatbuffer import Child, Scalar, finish, structs, table
from vineyard.arrowfile.schema import Dictionary, Type, key_values, schema

ALIGN = 64
_ZEROS = bytes(ALIGN)
_VERSION_5 = Scalar("h", 4)
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_MAGIC = b"ARROW1"
_BLOCK = struct.Struct("<qi4xq")


@dataclass
class Column:
    """A column (or a dictionary's values): type, nulls, and its buffers as (offset in the body, length)."""

    name: str
    type: Type
    rows: int
    nulls: int = 0
    buffers: list[tuple[int, int]] = field(default_factory=list)
    dictionary: Dictionary | None = None


class Body:
    """The body of one record batch: buffers, each at a multiple of 64 bytes."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.size = 0

    def place(self, buffer: Any, length: int) -> tuple[int, int]:
        """Appends a buffer of `length` bytes and returns its place."""
        return self.place_parts([buffer], length)

    def place_parts(self, parts: Sequence[Any], length: int) -> tuple[int, int]:
        """Appends a buffer of `length` bytes that is given in parts."""
        start = self.size
        if length:
            self.chunks.extend(parts)
            gap = -length % ALIGN
            if gap:
                self.chunks.append(_ZEROS[:gap])
            self.size += length + gap
        return start, length


def _message(kind: int, header: Child, body: int, at: int) -> bytes:
    """An encapsulated message at position `at` of the file, padded so that its body begins at a multiple of 64."""
    flat = finish(table(_VERSION_5, Scalar("B", kind), header, Scalar("q", body)))
    flat += bytes(-(at + 8 + len(flat)) % ALIGN)
    return b"\xff\xff\xff\xff" + struct.pack("<i", len(flat)) + flat


def _batch(columns: Sequence[Column], rows: int) -> Child:
    nodes = b"".join(struct.pack("<qq", c.rows, c.nulls) for c in columns)
    buffers = [place for c in columns for place in c.buffers]
    packed = b"".join(struct.pack("<qq", *place) for place in buffers)
    return table(Scalar("q", rows), structs(len(columns), nodes), structs(len(buffers), packed))


class Layout:
    """An Arrow file of one record batch, in memory as buffers to be written one after the other."""

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self.body = Body()
        self.dictionaries: list[tuple[int, Column, Body]] = []

    def file(self, rows: int, schema_metadata: dict[str, str], describe: Any) -> list[Any]:
        """The buffers. `describe(start of the body, starts of the dictionaries)` gives the footer's metadata."""
        fields = tuple((c.name, c.type, c.dictionary) for c in self.columns)
        shape = schema(fields, tuple(schema_metadata.items()))
        out: list[Any] = [_MAGIC + b"\0\0"]
        head = _message(_SCHEMA, shape, 0, 8)
        out.append(head)
        end = 8 + len(head)
        starts = []
        blocks: list[bytes] = []
        for number, values, body in self.dictionaries:
            inner = table(Scalar("q", number), _batch([values], values.rows))
            start = self._add(out, _message(_DICTIONARY, inner, body.size, end), body, end, blocks)
            starts.append(start)
            end = start + body.size
        dictionary_blocks, blocks = blocks, []
        message = _message(_BATCH, _batch(self.columns, rows), self.body.size, end)
        start = self._add(out, message, self.body, end, blocks)
        metadata = key_values(describe(start, starts))
        footer = finish(
            table(
                _VERSION_5,
                shape,
                structs(len(dictionary_blocks), b"".join(dictionary_blocks)),
                structs(1, blocks[0]),
                metadata,
            )
        )
        out.append(b"\xff\xff\xff\xff\0\0\0\0" + footer + struct.pack("<i", len(footer)) + _MAGIC)
        return out

    @staticmethod
    def _add(out: list[Any], message: bytes, body: Body, at: int, blocks: list[bytes]) -> int:
        blocks.append(_BLOCK.pack(at, len(message), body.size))
        out.append(message)
        out.extend(body.chunks)
        return at + len(message)
