"""Just enough FlatBuffers for Arrow's metadata: tables are written front to back, so children follow their parents."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from vineyard.errors import DeserializationError

#: Writes something behind what is already in the buffer and returns its position.
Child: TypeAlias = Callable[[bytearray], int]


class Scalar(NamedTuple):
    """A number that lies in the table itself: its `struct` code and value."""

    code: str
    value: int


def table(*fields: Scalar | Child | None) -> Child:
    """A table whose slot i holds fields[i]; None leaves a slot at its default."""

    def write(out: bytearray) -> int:
        sizes = [0 if f is None else struct.calcsize(f.code) if isinstance(f, Scalar) else 4 for f in fields]
        # Largest first, so that natural alignment needs no gaps beyond the first.
        order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -sizes[i])
        _pad(out, 2)
        vtable = len(out)
        out += bytes(4 + 2 * len(fields))
        _pad(out, 8)
        start = len(out)
        at = 4
        places = [0] * len(fields)
        for i in order:
            at += -at % sizes[i]
            places[i] = at
            at += sizes[i]
        struct.pack_into(f"<HH{len(fields)}H", out, vtable, 4 + 2 * len(fields), at, *places)
        out += struct.pack("<i", start - vtable) + bytes(at - 4)
        for i, field in enumerate(fields):
            if isinstance(field, Scalar):
                struct.pack_into("<" + field.code, out, start + places[i], field.value)
            elif field is not None:
                child = field(out)
                struct.pack_into("<I", out, start + places[i], child - start - places[i])
        return start

    return write


def text(value: str | bytes) -> Child:
    """A string."""
    raw = value.encode() if isinstance(value, str) else value

    def write(out: bytearray) -> int:
        _pad(out, 4)
        start = len(out)
        out.extend(struct.pack("<I", len(raw)) + raw + b"\0")
        return start

    return write


def vector(children: list[Child]) -> Child:
    """A vector of tables or strings."""

    def write(out: bytearray) -> int:
        _pad(out, 4)
        start = len(out)
        out.extend(struct.pack("<I", len(children)) + bytes(4 * len(children)))
        for i, child in enumerate(children):
            slot = start + 4 + 4 * i
            struct.pack_into("<I", out, slot, child(out) - slot)
        return start

    return write


def structs(count: int, raw: bytes) -> Child:
    """A vector of structs that hold 8-byte numbers, already packed."""

    def write(out: bytearray) -> int:
        while len(out) % 8 != 4:
            out.append(0)
        start = len(out)
        out.extend(struct.pack("<I", count) + raw)
        return start

    return write


def frozen(child: Child) -> Child:
    """The same, written once and copied from then on: positions in a buffer are relative."""
    raw = bytearray()
    root = child(raw)
    _pad(raw, 8)
    whole = bytes(raw)

    def write(out: bytearray) -> int:
        _pad(out, 8)
        start = len(out)
        out.extend(whole)
        return start + root

    return write


def finish(root: Child) -> bytes:
    """The finished buffer, its length a multiple of 8."""
    out = bytearray(8)
    struct.pack_into("<I", out, 0, root(out))
    _pad(out, 8)
    return bytes(out)


def _pad(out: bytearray, to: int) -> None:
    out.extend(bytes(-len(out) % to))


class Table:
    """A table that is read. Every position is checked against the buffer, which may be hostile."""

    __slots__ = ("_fields", "_start", "raw")

    def __init__(self, raw: bytes | memoryview, start: int | None = None) -> None:
        self.raw = raw
        try:
            self._start = struct.unpack_from("<I", raw, 0)[0] if start is None else start
            vtable = self._start - struct.unpack_from("<i", raw, self._start)[0]
            if vtable < 0:
                raise ValueError
            size = struct.unpack_from("<H", raw, vtable)[0]
            self._fields = struct.unpack_from(f"<{max(size - 4, 0) // 2}H", raw, vtable + 4)
        except (struct.error, ValueError) as error:
            raise _damaged() from error

    def place(self, slot: int) -> int:
        """Position of a field, 0 when it is at its default."""
        at = self._fields[slot] if slot < len(self._fields) else 0
        return self._start + at if at else 0

    def number(self, slot: int, code: str, default: int = 0) -> int:
        """A scalar field."""
        at = self.place(slot)
        return int(_unpack("<" + code, self.raw, at)) if at else default

    def child(self, slot: int) -> Table | None:
        """A field that is a table."""
        at = self._follow(slot)
        return Table(self.raw, at) if at else None

    def tables(self, slot: int) -> list[Table]:
        """A field that is a vector of tables."""
        at, count = self.vector(slot)
        return [Table(self.raw, at + 4 * i + _unpack("<I", self.raw, at + 4 * i)) for i in range(count)]

    def text(self, slot: int) -> bytes:
        """A field that is a string."""
        at = self._follow(slot)
        if not at:
            return b""
        length = _unpack("<I", self.raw, at)
        if at + 4 + length > len(self.raw):
            raise _damaged()
        return bytes(self.raw[at + 4 : at + 4 + length])

    def vector(self, slot: int, size: int = 4) -> tuple[int, int]:
        """Position of the first item, and number of items, of a vector whose items have `size` bytes."""
        at = self._follow(slot)
        if not at:
            return 0, 0
        count = _unpack("<I", self.raw, at)
        if at + 4 + count * size > len(self.raw):
            raise _damaged()
        return at + 4, count

    def _follow(self, slot: int) -> int:
        at = self.place(slot)
        return at + _unpack("<I", self.raw, at) if at else 0


def _unpack(code: str, raw: bytes | memoryview, at: int) -> int:
    try:
        return int(struct.unpack_from(code, raw, at)[0])
    except struct.error as error:
        raise _damaged() from error


def _damaged() -> DeserializationError:
    return DeserializationError("damaged Arrow file: its metadata cannot be read. Put it again.")
