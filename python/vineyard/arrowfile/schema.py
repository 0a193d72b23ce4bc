"""Arrow types and fields as FlatBuffers."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from vineyard.arrowfile.flatbuffer import Child, Scalar, frozen, table, text, vector

_INT, _FLOAT, _UTF8, _BOOL, _TIMESTAMP, _DURATION, _LARGE_UTF8 = 2, 3, 5, 6, 10, 18, 20
_UNITS = {"s": 0, "ms": 1, "us": 2, "ns": 3}
_PRECISION = {2: 0, 4: 1, 8: 2}


class Type(NamedTuple):
    """An Arrow type: the number of its FlatBuffers union member, and the member."""

    number: int
    member: Child

    @classmethod
    @lru_cache
    def integer(cls, bits: int, signed: bool) -> Type:
        """int8 to int64, uint8 to uint64."""
        return cls(_INT, table(Scalar("i", bits), Scalar("?", signed)))

    @classmethod
    @lru_cache
    def floating(cls, size: int) -> Type:
        """float16, float32, float64, by their size in bytes."""
        return cls(_FLOAT, table(Scalar("h", _PRECISION[size])))

    @classmethod
    @lru_cache
    def boolean(cls) -> Type:
        """One bit a value."""
        return cls(_BOOL, table())

    @classmethod
    @lru_cache
    def timestamp(cls, unit: str, zone: str | None = None) -> Type:
        """Since 1970 in `unit` (s, ms, us, ns)."""
        return cls(_TIMESTAMP, table(Scalar("h", _UNITS[unit]), None if zone is None else text(zone)))

    @classmethod
    @lru_cache
    def duration(cls, unit: str) -> Type:
        """In `unit` (s, ms, us, ns)."""
        return cls(_DURATION, table(Scalar("h", _UNITS[unit])))

    @classmethod
    @lru_cache
    def large_string(cls) -> Type:
        """UTF-8 with 64-bit offsets."""
        return cls(_LARGE_UTF8, table())

    @classmethod
    @lru_cache
    def string(cls) -> Type:
        """UTF-8 with 32-bit offsets."""
        return cls(_UTF8, table())


class Dictionary(NamedTuple):
    """A dictionary-encoded field: the codes' type, and whether the categories are ordered."""

    id: int
    codes: Type
    ordered: bool


def field(name: str, kind: Type, dictionary: Dictionary | None = None) -> Child:
    """A nullable field."""
    encoding = None
    if dictionary is not None:
        encoding = table(Scalar("q", dictionary.id), dictionary.codes.member, Scalar("?", dictionary.ordered))
    return table(text(name), Scalar("?", True), Scalar("B", kind.number), kind.member, encoding, vector([]))


def key_values(pairs: dict[str, str]) -> Child | None:
    """Custom metadata."""
    return vector([table(text(key), text(value)) for key, value in pairs.items()]) if pairs else None


@lru_cache(maxsize=64)
def schema(fields: tuple[tuple[str, Type, Dictionary | None], ...], metadata: tuple[tuple[str, str], ...]) -> Child:
    """A little-endian schema. Types are made once each, so that frames of the same columns find theirs."""
    return frozen(table(Scalar("h", 0), vector([field(*one) for one in fields]), key_values(dict(metadata))))
