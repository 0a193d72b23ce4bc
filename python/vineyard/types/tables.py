"""Kind `arrow`: who wrote it decides what it becomes again; a file without our mark is a `pyarrow.Table`."""

from __future__ import annotations

import importlib
import json
from typing import Any

from vineyard import codec
from vineyard.arrowfile import footer_metadata
from vineyard.errors import DeserializationError

_MODULES = {"pandas.DataFrame": "pandas", "polars.DataFrame": "polars"}


def mark(memory: Any) -> dict[str, Any]:
    """What the writer of the file said about it; empty for files of others."""
    raw = footer_metadata(memory, b"vineyard")
    try:
        told = json.loads(raw or b"{}")
    except ValueError as error:
        raise DeserializationError("damaged Arrow file: its mark cannot be read. Put it again.") from error
    return told if isinstance(told, dict) else {}


def decode(memory: Any) -> Any:
    """The table in an Arrow file, as exactly the type that was put."""
    told = mark(memory)
    name = _MODULES.get(told.get("type", ""), "arrow")
    try:
        module = importlib.import_module(f"vineyard.types.{name}")
    except ModuleNotFoundError as error:
        raise DeserializationError(
            f"{told.get('type', 'an Arrow table')} needs the module {error.name!r}, which is not installed here: "
            "pip install it."
        ) from error
    return module.decode(memory, told)


codec.DECODERS["arrow"] = decode
