"""Columns of strings: pandas' string arrays as they are, object arrays of nothing but str and one kind of null."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd

from vineyard.arrowfile.layout import Body, Column
from vineyard.arrowfile.schema import Type
from vineyard.types.frames.labels import Inexact

Spec = dict[str, Any]
#: Rows that are turned into Arrow memory at a time.
_STEP = 64 << 10
_NULLS = {frozenset(): None, frozenset({type(None)}): "none", frozenset({float}): "nan"}


def _pyarrow() -> Any:
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None:
        raise Inexact("without pyarrow strings are pickled")
    return pyarrow


def put_objects(body: Body, name: str, values: np.ndarray[Any, Any]) -> tuple[Column, Spec]:
    """An object array of str, with None or with NaN. Raises Inexact."""
    pa = _pyarrow()
    kinds = frozenset(map(type, values)) - {str}
    if kinds not in _NULLS:
        raise Inexact(kinds)
    rows = len(values)
    ends = np.zeros(rows + 1, np.int64)
    valid = np.ones(rows, bool)
    parts, size, nulls = [], 0, 0
    # In steps: one array of all would grow by doubling, to twice its size.
    for begin in range(0, rows, _STEP):
        try:
            array = pa.array(values[begin : begin + _STEP], pa.large_string(), from_pandas=True)
        except (pa.ArrowException, UnicodeError, TypeError) as error:  # a float that is not NaN; lone surrogates
            raise Inexact(error) from error
        _, own, chars = array.buffers()
        own_ends = np.frombuffer(own, np.int64, len(array) + 1)
        ends[begin + 1 : begin + 1 + len(array)] = own_ends[1:] + size
        if own_ends[-1]:
            parts.append(memoryview(chars)[: own_ends[-1]])
        size += int(own_ends[-1])
        if array.null_count:
            nulls += array.null_count
            valid[begin : begin + _STEP] = array.is_valid().to_numpy(zero_copy_only=False)
    bits = np.packbits(valid, bitorder="little")
    first = body.place(bits, bits.nbytes) if nulls else (body.size, 0)
    at = body.place(ends, ends.nbytes)
    data = body.place_parts(parts, size)
    told: Spec = {"kind": "objects", "null": _NULLS[kinds], "wide": True, "nulls": nulls}
    told |= {"bits": first[0], "at": at[0], "chars": [*data]}
    return Column(name, Type.large_string(), rows, nulls, [first, at, data]), told


def put_array(body: Body, name: str, values: Any) -> tuple[Column, Spec]:
    """A pandas array of dtype str or string. Raises Inexact."""
    pa = _pyarrow()
    dtype = values.dtype
    told: Spec = {"kind": "strings", "storage": dtype.storage}
    told["na"] = "NA" if dtype.na_value is pd.NA else "nan"
    if dtype.storage == "pyarrow":
        chunked = values._pa_array
        if chunked.type not in (pa.large_string(), pa.string()):
            raise Inexact(chunked.type)
        array = (
            chunked.chunk(0)
            if chunked.num_chunks == 1
            else pa.concat_arrays(chunked.chunks or [pa.array([], chunked.type)])
        )
        return _put(body, name, array, told)
    plain = values._ndarray
    if {type(value) for value in plain} - {str, type(dtype.na_value)}:
        raise Inexact("null of another kind")
    try:
        array = pa.array(plain, pa.large_string(), from_pandas=True)
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        raise Inexact(error) from error
    return _put(body, name, array, told)


def _put(body: Body, name: str, array: Any, told: Spec) -> tuple[Column, Spec]:
    pa = _pyarrow()
    rows, first = len(array), array.offset
    wide = array.type == pa.large_string()
    bits, ends, chars = array.buffers()
    places = [(body.size, 0)]
    if array.null_count:
        if first:
            packed = np.packbits(np.asarray(array.is_valid()), bitorder="little")
            places = [body.place(packed, packed.nbytes)]
        else:
            size = (rows + 7) // 8
            places = [body.place(memoryview(bits)[:size], size)]
    dtype = np.dtype(np.int64 if wide else np.int32)
    if rows == 0 or ends is None:
        offsets = np.zeros(1, dtype)
    else:
        offsets = np.frombuffer(ends, dtype, rows + 1, first * dtype.itemsize)
    begin, end = int(offsets[0]), int(offsets[-1])
    if begin:  # a slice: only its own characters are stored
        offsets = offsets - begin
    at = body.place(offsets, offsets.nbytes)
    data = body.place(memoryview(chars)[begin:end] if end > begin else b"", end - begin)
    told |= {"wide": wide, "nulls": array.null_count, "bits": places[0][0], "at": at[0], "chars": [*data]}
    kind = Type.large_string() if wide else Type.string()
    return Column(name, kind, rows, array.null_count, [*places, at, data]), told


def get(spec: Spec, memory: Any, start: int, rows: int) -> Any:
    """The array again. Needs pyarrow."""
    import pyarrow as pa

    whole = pa.py_buffer(memory)
    wide = spec["wide"]
    bits = whole.slice(start + spec["bits"], (rows + 7) // 8) if spec["nulls"] else None
    ends = whole.slice(start + spec["at"], (rows + 1) * (8 if wide else 4))
    chars = whole.slice(start + spec["chars"][0], spec["chars"][1])
    array = pa.Array.from_buffers(pa.large_string() if wide else pa.string(), rows, [bits, ends, chars], spec["nulls"])
    if spec["kind"] == "objects":
        array.validate(full=True)
        return _objects(array, np.nan if spec["null"] == "nan" else None)
    # The first and the last end; those between could still point anywhere. Characters are checked when they are read.
    array.validate()
    between = np.frombuffer(ends, np.int64 if wide else np.int32)
    if (between[1:] < between[:-1]).any():
        raise ValueError("the ends of the strings are not in order")
    na = pd.NA if spec["na"] == "NA" else np.nan
    return pd.StringDtype(spec["storage"], na).__from_arrow__(pa.chunked_array([array]))


#: Rows that are looked at before a column is taken for one of few different strings.
_SAMPLE = 10_000


def _objects(array: Any, null: Any) -> np.ndarray[Any, Any]:
    """An object array of str. Equal strings of a column with few different ones are one object, as they mostly were."""
    import pyarrow.compute as pc

    if len(array) > _SAMPLE and pc.count_distinct(array.slice(0, _SAMPLE)).as_py() < _SAMPLE // 4:
        encoded = array.dictionary_encode()
        texts = np.empty(len(encoded.dictionary) + 1, object)
        texts[:-1] = encoded.dictionary.to_numpy(zero_copy_only=False)
        texts[-1] = null
        return texts[np.asarray(encoded.indices.fill_null(len(texts) - 1))]
    values = array.to_numpy(zero_copy_only=False)
    if array.null_count and null is not None:
        values[np.asarray(array.is_null())] = null
    return values
