"""Indexes: of rows (their values lie in the body) and of columns (their labels lie in the description)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from vineyard.arrowfile.layout import Body, Column
from vineyard.types.frames import values
from vineyard.types.frames.labels import Inexact, from_json, to_json

Spec = dict[str, Any]


def put(body: Body, index: pd.Index[Any], rows: int) -> tuple[list[Column], Spec]:
    """Places an index of `rows` rows. Raises Inexact."""
    kind = type(index)
    if kind is pd.RangeIndex:
        return [], _put_range(index)
    if kind is pd.MultiIndex:
        return _put_levels(body, index, rows)
    if kind not in (pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex):
        raise Inexact(kind)
    freq = getattr(index, "freq", None)
    if freq is not None:
        same = pd.tseries.frequencies.to_offset(freq.freqstr)
        if type(same) is not type(freq) or same != freq:
            raise Inexact(freq)
        freq = freq.freqstr
    array = index._data
    if type(array) is not np.ndarray and hasattr(array, "to_numpy") and type(array).__name__ == "NumpyExtensionArray":
        array = array._ndarray
    name = index.name if type(index.name) is str else "__index_level_0__"
    column, spec = values.put(body, name, array)
    return [column], {"index": "values", "values": spec, "name": to_json(index.name), "freq": freq}


def _put_range(index: Any) -> Spec:
    return {"index": "range", "range": [index.start, index.stop, index.step], "name": to_json(index.name)}


def _put_levels(body: Body, index: Any, rows: int) -> tuple[list[Column], Spec]:
    """Levels lie in the description, codes in the body: other readers see the codes as columns of integers."""
    columns, codes = [], []
    for number, level in enumerate(index.codes):
        column, spec = values.put(body, f"__index_level_{number}__", np.asarray(level))
        columns.append(column)
        codes.append(spec)
    if any(column.rows != rows for column in columns):
        raise Inexact(rows)
    told = {"index": "multi", "levels": [labels(level) for level in index.levels], "codes": codes}
    return columns, told | {"names": [to_json(name) for name in index.names], "sortorder": index.sortorder}


def get(spec: Spec, memory: Any, start: int, rows: int) -> pd.Index[Any]:
    """The index again."""
    if spec["index"] == "range":
        return pd.RangeIndex(*spec["range"], name=from_json(spec["name"]))
    if spec["index"] == "multi":
        return _multi(spec, [values.get(code, memory, start, rows) for code in spec["codes"]])
    array = values.get(spec["values"], memory, start, rows)
    name = from_json(spec["name"])
    kind = spec["values"]["kind"]
    if kind in ("datetime", "timedelta"):
        cls: Any = pd.DatetimeIndex if kind == "datetime" else pd.TimedeltaIndex
        index = cls._simple_new(array, name=name)
        if spec["freq"] is not None:
            # Up to pandas 3.0 the frequency belongs to the array.
            holder = array if hasattr(array, "_freq") else index
            holder._freq = pd.tseries.frequencies.to_offset(spec["freq"])
        return index
    return pd.Index._simple_new(array, name=name)


def _multi(spec: Spec, codes: list[Any]) -> pd.MultiIndex:
    return pd.MultiIndex(
        [unlabel(level) for level in spec["levels"]],
        codes,
        sortorder=spec["sortorder"],
        names=[from_json(name) for name in spec["names"]],
        verify_integrity=False,
    )


def labels(index: pd.Index[Any]) -> Spec:
    """The description of a short index, values and all. Raises Inexact."""
    kind = type(index)
    if kind is pd.RangeIndex:
        return _put_range(index)
    if kind is pd.MultiIndex:
        return {
            "index": "multi",
            "levels": [labels(level) for level in index.levels],
            "codes": [np.asarray(code).tolist() for code in index.codes],
            "names": [to_json(name) for name in index.names],
            "sortorder": index.sortorder,
        }
    told: Spec = {"index": "labels", "name": to_json(index.name)}
    if kind is not pd.Index:
        raise Inexact(kind)
    if isinstance(index.dtype, pd.StringDtype):
        na = index.dtype.na_value
        told |= {"dtype": "string", "storage": index.dtype.storage, "na": "NA" if na is pd.NA else "nan"}
        return told | {"labels": [None if label is na else to_json(label) for label in index]}
    if not isinstance(index.dtype, np.dtype) or index.dtype.kind not in "iufbO" or index.dtype.char in "qQ":
        raise Inexact(index.dtype)
    return told | {"dtype": index.dtype.str, "labels": [to_json(label) for label in index.tolist()]}


def unlabel(spec: Spec) -> pd.Index[Any]:
    """The index that `labels` described."""
    if spec["index"] == "range":
        return pd.RangeIndex(*spec["range"], name=from_json(spec["name"]))
    if spec["index"] == "multi":
        return _multi(spec, [np.array(code, np.intp) for code in spec["codes"]])
    told = [from_json(label) for label in spec["labels"]]
    if spec["dtype"] == "string":
        na = pd.NA if spec["na"] == "NA" else np.nan
        dtype: Any = pd.StringDtype(spec["storage"], na)
        array = dtype.construct_array_type()._from_sequence([na if v is None else v for v in told], dtype=dtype)
        return pd.Index(array, name=from_json(spec["name"]), copy=False)
    plain = np.empty(len(told), spec["dtype"])
    for place, label in enumerate(told):  # a list of tuples would make a second dimension
        plain[place] = label
    return pd.Index._simple_new(plain, name=from_json(spec["name"]))
