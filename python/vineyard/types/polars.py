"""polars: frames go through Arrow memory, which they share; what Arrow cannot say is pickled by polars itself."""

from __future__ import annotations

import sys
from typing import Any

import polars as pl

from vineyard import codec
from vineyard.pickling import INLINE, REDUCERS

_TYPE = "polars.DataFrame"


def _arrow(value: Any) -> Any:
    """The frame as pyarrow Table, or the series as array; None when that would not come back the same."""
    if sys.modules.get("pyarrow") is None:
        return None
    try:
        arrow = value.to_arrow(compat_level=pl.CompatLevel.newest())
        back = pl.from_arrow(arrow.slice(0, 0))
    except Exception:
        return None
    if isinstance(value, pl.DataFrame):
        return arrow if isinstance(back, pl.DataFrame) and back.schema == value.schema else None
    return arrow if isinstance(back, pl.Series) and back.dtype == value.dtype else None


def encode(frame: pl.DataFrame) -> codec.Encoded | None:
    """A polars DataFrame as Arrow file; None when only its own pickle gives back exactly this frame."""
    table = _arrow(frame)
    if table is None:
        return None
    from vineyard.types import arrow

    content = arrow.file(table, {"type": _TYPE, "shape": list(frame.shape)})
    return None if content is None else ("arrow", content)


def decode(memory: Any, _mark: dict[str, Any]) -> pl.DataFrame:
    """The frame again, over the same memory."""
    from vineyard.types import arrow

    frame = pl.from_arrow(arrow.table(memory), rechunk=False)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101
    return frame


def _frame(table: Any) -> Any:
    return pl.from_arrow(table, rechunk=False)


def _series(name: str, array: Any) -> pl.Series:
    series = pl.from_arrow(array, rechunk=False)
    return series.rename(name)


def _reduce_frame(frame: pl.DataFrame) -> Any:
    table = _arrow(frame) if frame.estimated_size() >= INLINE else None
    return NotImplemented if table is None else (_frame, (table,))


def _reduce_series(series: pl.Series) -> Any:
    array = _arrow(series) if series.estimated_size() >= INLINE else None
    return NotImplemented if array is None else (_series, (series.name, array))


REDUCERS[pl.DataFrame] = _reduce_frame
REDUCERS[pl.Series] = _reduce_series
codec.ENCODERS[pl.DataFrame] = encode
