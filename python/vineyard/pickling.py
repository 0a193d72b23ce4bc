"""The generic codec: pickle 5 with its buffers out of band, aligned, in one file (docs/design/volume.md §3.1)."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import types
import typing
import zlib
from collections.abc import Callable
from typing import Any

from vineyard.errors import DeserializationError, SerializationError

__all__ = ["FOOTER", "INLINE", "REDUCERS", "dump", "load", "read_meta"]

#: Buffers below this many bytes stay in the pickle stream: thousands of tiny ones would cost more as table entries.
INLINE = 2048

#: Exact type -> function that gives a reduce value, or NotImplemented. Filled by `vineyard.types.*` and `register`.
REDUCERS: dict[type, Callable[[Any], Any]] = {}

FOOTER = struct.Struct("<QIIQII8s")
_MAGIC = b"VYPICKL1"
_ENTRY = struct.Struct("<QQ")
_ALIGN = 64
_ZEROS = bytes(_ALIGN)
_LIBRARIES = ("numpy", "pandas", "pyarrow", "polars", "torch", "scipy", "sklearn", "xgboost", "cloudpickle")


_SCALARS = frozenset((int, float, bool, complex, type(None)))


_MADE_BY_SCRIPTS = (type, types.FunctionType, typing.TypeVar)


class _ByValue(Exception):
    """A class or function of `__main__`: a reader in another process cannot import it."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        reduce = REDUCERS.get(kind)
        if reduce is not None:
            return reduce(obj)
        # Enums, abstract classes and others have a metaclass of their own.
        if isinstance(obj, _MADE_BY_SCRIPTS) and obj.__module__ == "__main__":
            raise _ByValue
        return NotImplemented


class _ReferencePickler(pickle.Pickler):
    """As `_Pickler`, for a machine without cloudpickle: what `__main__` defines is pickled by reference."""

    def reducer_override(self, obj: Any) -> Any:
        reduce = REDUCERS.get(type(obj))
        return NotImplemented if reduce is None else reduce(obj)


_value_pickler: type[pickle.Pickler] | None = None


def _cloudpickle() -> type[pickle.Pickler] | None:
    """A pickler that also takes lambdas and what `__main__` defines; None when cloudpickle is not installed."""
    global _value_pickler
    if _value_pickler is None:
        try:
            import cloudpickle
        except ImportError:
            return None

        class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
            def reducer_override(self, obj: Any) -> Any:
                reduce = REDUCERS.get(type(obj))
                reduced = NotImplemented if reduce is None else reduce(obj)
                return super().reducer_override(obj) if reduced is NotImplemented else reduced

        _value_pickler = ValuePickler
    return _value_pickler


class _Sink:
    """Collects what the pickler writes; large bytes objects arrive as themselves, without a copy."""

    __slots__ = ("write",)

    def __init__(self, chunks: list[Any]) -> None:
        self.write = chunks.append


def _run(pickler: type[pickle.Pickler], value: Any) -> tuple[list[Any], list[memoryview]]:
    chunks: list[Any] = []
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < INLINE:
            return True
        buffers.append(raw)
        return False

    pickler(_Sink(chunks), 5, buffer_callback=keep).dump(value)
    return chunks, buffers


def _pickle(value: Any) -> tuple[list[Any], list[memoryview]]:
    try:
        return _run(_Pickler, value)
    except _ByValue:
        by_value = _cloudpickle()
        return _run(_ReferencePickler if by_value is None else by_value, value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        by_value = _cloudpickle()
        if by_value is None:
            raise SerializationError(
                f"{_type_name(value)} cannot be pickled: {error}. "
                "For lambdas and local classes: pip install cloudpickle; "
                "for your own types: vineyard.register(type, encode, decode)."
            ) from error
        return _run(by_value, value)


def dump(value: Any, brief: bool = False) -> list[Any]:
    """The file of kind `pickle` for `value`, as buffers to be written one after the other.

    `brief`: without table and meta when there are no buffers, for masses of small values.
    Raises SerializationError when the value cannot be pickled.
    """
    if brief and type(value) in _SCALARS:
        return [pickle.dumps(value, 5)]
    try:
        chunks, buffers = _pickle(value)
    except (SerializationError, MemoryError):
        raise
    except RecursionError as error:
        raise SerializationError(
            f"{_type_name(value)} is nested too deeply to be pickled: flatten it, or raise sys.setrecursionlimit()."
        ) from error
    except Exception as error:
        raise SerializationError(
            f"{_type_name(value)} cannot be stored: {type(error).__name__}: {error}. "
            "Store what it is made of, or teach the store its type: vineyard.register(type, encode, decode)."
        ) from error
    if brief and not buffers:
        return chunks
    stream = sum(_size(chunk) for chunk in chunks)
    out = chunks
    end = stream
    table = bytearray()
    for buffer in buffers:
        gap = -end % _ALIGN
        if gap:
            out.append(_ZEROS[:gap])
        end += gap
        table += _ENTRY.pack(end, buffer.nbytes)
        out.append(buffer)
        end += buffer.nbytes
    meta = _meta(value)
    crc = zlib.crc32(meta, zlib.crc32(table))
    out.append(bytes(table) + meta + FOOTER.pack(end, len(buffers), len(meta), stream, 0, crc, _MAGIC))
    return out


def _size(chunk: Any) -> int:
    return len(chunk) if type(chunk) is bytes else memoryview(chunk).nbytes


def _type_name(value: Any) -> str:
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


_by_cache: tuple[int, str] = (-1, "")


def by() -> str:
    """Who writes, as JSON: the versions that decide whether a reader can load a pickle."""
    global _by_cache
    modules = sys.modules
    loaded = [name for name in _LIBRARIES if name in modules]
    if _by_cache[0] != len(loaded):
        told = {"python": ".".join(map(str, sys.version_info[:3]))}
        told.update((n, str(v)) for n in loaded if (v := getattr(modules[n], "__version__", None)) is not None)
        _by_cache = (len(loaded), json.dumps(told))
    return _by_cache[1]


_meta_cache: dict[tuple[type, str], bytes] = {}


def _meta(value: Any) -> bytes:
    writer = by()
    shape = getattr(value, "shape", None)
    if shape is None:
        key = (type(value), writer)
        meta = _meta_cache.get(key)
        if meta is None:
            if len(_meta_cache) > 512:
                _meta_cache.clear()
            meta = _meta_cache[key] = f'{{"type": {json.dumps(_type_name(value))}, "by": {writer}}}'.encode()
        return meta
    try:
        dims = json.dumps([int(n) for n in shape])
    except (TypeError, ValueError, OverflowError):
        dims = "null"
    return f'{{"type": {json.dumps(_type_name(value))}, "shape": {dims}, "by": {writer}}}'.encode()


def _footer(view: memoryview) -> tuple[int, list[tuple[int, int]], bytes] | None:
    """Length of the pickle stream, the buffers' places and the meta; None for a plain pickle without our footer."""
    size = view.nbytes
    if size < FOOTER.size or view[-8:] != _MAGIC:
        return None
    table, count, meta_size, stream, _flags, crc, _ = FOOTER.unpack(view[-FOOTER.size :])
    tail = size - FOOTER.size
    if stream > tail or table + count * _ENTRY.size + meta_size != tail:
        raise DeserializationError("damaged object: its table does not fit its size. Put it again.")
    if zlib.crc32(view[table:tail]) != crc:
        raise DeserializationError("damaged object: the checksum of its table is wrong. Put it again.")
    places = list(_ENTRY.iter_unpack(view[table : table + count * _ENTRY.size]))
    for start, length in places:
        if start + length > table:
            raise DeserializationError("damaged object: a buffer lies outside of the file. Put it again.")
    return stream, places, bytes(view[tail - meta_size : tail])


def read_meta(memory: Any) -> dict[str, Any]:
    """The meta of an object of kind `pickle`; empty for a plain pickle."""
    footer = _footer(memoryview(memory).cast("B"))
    return {} if footer is None else dict(json.loads(footer[2]))


def load(memory: Any) -> Any:
    """The value in the file of kind `pickle` that `memory` (any buffer) holds; arrays are views of `memory`.

    Raises DeserializationError, which names the writer's and the reader's versions.
    """
    view = memoryview(memory).cast("B")
    footer = _footer(view)
    try:
        if footer is None:
            return pickle.loads(view)
        stream, places, _ = footer
        return pickle.loads(view[:stream], buffers=[view[s : s + n] for s, n in places])
    except MemoryError:
        raise
    except Exception as error:
        raise DeserializationError(explain(error, json.loads(footer[2]) if footer else {})) from error


def explain(error: Exception, told: dict[str, Any]) -> str:
    """Text for a value that cannot be built again: who wrote it, who reads it, what to do."""
    writer = told.get("by", {})
    reader = json.loads(by())
    what = told.get("type", "the value")
    if isinstance(error, ModuleNotFoundError):
        return f"{what} needs the module {error.name!r}, which is not installed here: pip install it."
    differ = [
        f"{n} {writer[n]} wrote it, {n} {reader.get(n, 'is not loaded')} reads it"
        for n in writer
        if writer[n] != reader.get(n)
    ]
    hint = "; ".join(differ) + ": use the same versions" if differ else "Put the value again"
    if isinstance(error, AttributeError) and "__main__" in str(error):
        hint = "Define it in a module that both processes can import, or install cloudpickle where it is put"
    return f"{what} cannot be loaded: {type(error).__name__}: {error}. {hint}."
