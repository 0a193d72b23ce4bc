"""Types of the standard library that pickle refuses or keeps in band."""

from __future__ import annotations

import array
import io
import pickle
from typing import Any

from vineyard.pickling import INLINE, REDUCERS


def _view(buffer: Any, form: str, shape: tuple[int, ...] | None) -> memoryview:
    flat = memoryview(buffer).cast("B")
    return flat.cast(form) if shape is None else flat.cast(form, shape)  # type: ignore[call-overload,no-any-return]


def _reduce_memoryview(view: memoryview) -> Any:
    if not view.c_contiguous:
        raise TypeError("a strided memoryview has no storable form: store bytes(view)")
    if 0 in (view.shape or ()) and view.ndim > 1:
        raise TypeError("an empty memoryview of several dimensions has no storable form: store bytes(view)")
    shape = None if view.ndim == 1 else view.shape
    return _view, (pickle.PickleBuffer(view), view.format, shape)


def _array(form: str, buffer: Any) -> array.array[Any]:
    out = array.array(form)
    out.frombytes(buffer)
    return out


def _reduce_array(values: array.array[Any]) -> Any:
    if len(values) * values.itemsize < INLINE or values.typecode == "u":
        return NotImplemented
    return _array, (values.typecode, pickle.PickleBuffer(values))


def _refuse_file(file: Any) -> Any:
    # cloudpickle would turn it into another type.
    raise TypeError(f"an open file cannot be stored: store its content ({file!r})")


for _kind in (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO):
    REDUCERS[_kind] = _refuse_file
REDUCERS[memoryview] = _reduce_memoryview
REDUCERS[array.array] = _reduce_array
