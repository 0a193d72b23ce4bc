"""`register`: teaching the store a type that pickle cannot store, or stores badly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from vineyard import codec
from vineyard.errors import DeserializationError
from vineyard.pickling import REDUCERS

__all__ = ["register", "unregister"]

T = TypeVar("T")
_decoders: dict[str, Callable[[Any], Any]] = {}


def register(kind: type[T], encode: Callable[[T], Any], decode: Callable[[Any], T], *, name: str | None = None) -> None:
    """From now on values of exactly `kind`, nested ones too, are stored as what `encode` makes of them.

    `encode(value)` returns anything that can be stored, arrays and tables without a copy; `decode` turns it back.
    A process that reads such values has to call `register` with the same `name` too (module and class if not given).

    >>> vineyard.register(Image, lambda i: (i.pixels, i.meta), lambda told: Image(*told))
    """
    if not isinstance(kind, type):
        raise TypeError(f"register() takes a class, not {kind!r}")
    key = f"{kind.__module__}.{kind.__qualname__}" if name is None else name
    _decoders[key] = decode
    REDUCERS[kind] = lambda value: (_decoded, (key, encode(value)))
    codec.ENCODERS.pop(kind, None)


def unregister(kind: type, *, name: str | None = None) -> None:
    """Takes a `register` back."""
    _decoders.pop(f"{kind.__module__}.{kind.__qualname__}" if name is None else name, None)
    REDUCERS.pop(kind, None)


def _decoded(name: str, encoded: Any) -> Any:
    decode = _decoders.get(name)
    if decode is None:
        raise DeserializationError(
            f"a value of the registered type {name!r} is stored here: call vineyard.register() for it before get()."
        )
    return decode(encoded)
