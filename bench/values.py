"""The values that every peer stores, the same for all, and the proof that they came back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MIB = 1 << 20


def array(nbytes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An array of `nbytes`, every page written."""
    return np.arange(nbytes // 8, dtype=np.float64)


def small(index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A 1 KiB array that knows its number."""
    return np.full(256, index, dtype=np.float32)


def frame(rows: int) -> Any:
    """A frame of ten float64 columns."""
    import pandas as pd

    columns = np.random.default_rng(7).random((rows, 10))
    return pd.DataFrame(columns, columns=[f"c{i}" for i in range(10)])


def strings(rows: int, dtype: str) -> Any:
    """A frame of one column of distinct strings, 24 characters each."""
    import pandas as pd

    return pd.DataFrame({"key": pd.Series([f"customer-{i:015d}" for i in range(rows)], dtype=dtype)})


def last(value: Any) -> float | str:
    """The last number or string inside `value`: what the consumer checks."""
    if isinstance(value, dict):
        return last(next(reversed(value.values())))
    if isinstance(value, list | tuple):
        return last(value[-1])
    if hasattr(value, "iloc"):
        cell = value.iloc[-1, -1]
        return cell if isinstance(cell, str) else float(cell)
    return float(value[-1])


MAKERS: dict[str, Callable[..., Any]] = {
    "array": array,
    "small": small,
    "frame": frame,
    "strings": strings,
    "nested": lambda nbytes: {"a": array(nbytes)},
    "list": lambda count: [small(i) for i in range(count)],
}


def make(kind: str, *args: Any) -> Any:
    """The value of that kind."""
    return MAKERS[kind](*args)
