"""From values to objects and back: which kind a value becomes, and who decodes which kind."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from vineyard import packs, pickling
from vineyard.errors import DeserializationError, SerializationError

__all__ = ["DECODERS", "ENCODERS", "Encoded", "decode", "encode"]

#: The kind of an object, and the buffers that make up its file, one after the other.
Encoded: TypeAlias = tuple[str, Sequence[Any]]

#: Exact type -> encoder. None as result: only a pickle would give back exactly this value.
ENCODERS: dict[type, Callable[[Any], Encoded | None]] = {}

#: Kind -> decoder of a buffer.
DECODERS: dict[str, Callable[[Any], Any]] = {}

# Imported when the user has imported the library, never before.
_waiting = {name: f"vineyard.types.{name}" for name in ("numpy", "pandas", "polars", "torch")}
_waiting["pyarrow"] = "vineyard.types.arrow"
_waiting["numpy.ma"] = "vineyard.types.masked"  # its import would take most of the first put
_waiting["builtins"] = "vineyard.types.builtin"
_NEEDS = {"npy": "numpy", "arrow": "tables", "safetensors": "safetensors"}

# A fork in the middle of an import leaves its lock to a thread that the child does not have: it would wait for ever.
_attaching = threading.RLock()
os.register_at_fork(before=_attaching.acquire, after_in_parent=_attaching.release, after_in_child=_attaching.release)


def attach_libraries() -> None:
    """Makes the encoders and reducers of every library that is loaded known."""
    modules = sys.modules
    with _attaching:
        for name, adapter in tuple(_waiting.items()):
            module = modules.get(name)
            # A library that is being imported right now is taken at the next call.
            if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
                importlib.import_module(adapter)
                _waiting.pop(name, None)


def _encode_text(text: str) -> Encoded | None:
    try:
        return "text", [text.encode()]
    except UnicodeEncodeError:  # lone surrogates
        return None


ENCODERS[bytes] = lambda value: ("raw", [value])
ENCODERS[str] = _encode_text


def encode(value: Any, allow_pickle: bool = True, brief: bool = False) -> Encoded:
    """The kind and content of an object that gives back exactly `value`; `brief` as in `pickling.dump`.

    Raises SerializationError when there is none.
    """
    encoder = ENCODERS.get(type(value))
    if encoder is None and _waiting:
        attach_libraries()
        encoder = ENCODERS.get(type(value))
    if encoder is not None:
        encoded = encoder(value)
        if encoded is not None:
            return encoded
    if not allow_pickle:
        raise SerializationError(
            f"only pickle gives back exactly this {type(value).__qualname__}, and allow_pickle is False: "
            "store bytes, text, a numeric array or a plain table instead."
        )
    if _waiting:  # what is nested needs the reducers of its library
        attach_libraries()
    return "pickle", pickling.dump(value, brief)


def _decode_text(memory: Any) -> str:
    try:
        return str(memory, "utf-8")
    except UnicodeDecodeError as error:
        raise DeserializationError("damaged text: it is not UTF-8. Read its bytes with open(name, 'rb').") from error


DECODERS["text"] = _decode_text
DECODERS["raw"] = bytes
DECODERS["pickle"] = pickling.load


def decode(kind: str, memory: Any, allow_pickle: bool = True) -> Any:
    """The value in an object's bytes; arrays and tables are views of `memory`.

    A pack gives a dict of its values, an unknown kind bytes.
    """
    if kind == "pickle" and not allow_pickle:
        raise DeserializationError("this object is a pickle, and allow_pickle is False: allow it, or read its bytes.")
    if kind == "pack":
        return {key: decode(inner, part, allow_pickle) for key, inner, part in packs.members(memory)}
    decoder = DECODERS.get(kind)
    if decoder is None:
        library = _NEEDS.get(kind)
        if library is None:
            return bytes(memory)
        try:
            with _attaching:
                importlib.import_module(f"vineyard.types.{library}")
        except ModuleNotFoundError as error:
            raise DeserializationError(
                f"an object of kind {kind} needs the module {error.name!r}, which is not here: pip install it."
            ) from error
        decoder = DECODERS[kind]
    return decoder(memory)
