"""One-dimensional pandas and NumPy arrays as Arrow columns, and back."""

from __future__ import annotations

import datetime
import sys
import zoneinfo
from typing import Any

import numpy as np
import pandas as pd
from pandas.arrays import BooleanArray, DatetimeArray, FloatingArray, IntegerArray, TimedeltaArray

from vineyard.arrowfile.layout import Body, Column
from vineyard.arrowfile.schema import Type
from vineyard.types.frames import strings
from vineyard.types.frames.labels import Inexact

Spec = dict[str, Any]
_NAT = np.iinfo(np.int64).min


def arrow_type(dtype: np.dtype[Any]) -> Type:
    """The Arrow type of a plain NumPy number, whose memory is the column. Raises Inexact."""
    if not dtype.isnative or dtype.char in "qQ" or dtype.metadata is not None:
        raise Inexact(dtype)
    if dtype.kind in "iu":
        return Type.integer(8 * dtype.itemsize, dtype.kind == "i")
    if dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        return Type.floating(dtype.itemsize)
    raise Inexact(dtype)


def validity(body: Body, valid: np.ndarray[Any, Any]) -> tuple[int, tuple[int, int]]:
    """Number of nulls, and the place of the bitmap (empty when there are none)."""
    nulls = valid.size - int(np.count_nonzero(valid))
    if not nulls:
        return 0, (body.size, 0)
    bits = np.packbits(valid, bitorder="little")
    return nulls, body.place(bits, bits.nbytes)


def put(body: Body, name: str, values: Any) -> tuple[Column, Spec]:
    """Places an array in `body`. Raises Inexact."""
    if type(values) is np.ndarray:
        if values.dtype == bool:
            bits = np.packbits(values, bitorder="little")
            at = body.place(bits, bits.nbytes)
            column = Column(name, Type.boolean(), len(values), 0, [(body.size, 0), at])
            return column, {"kind": "bool", "at": at[0]}
        if values.dtype.kind in "mM":
            return _put_time(body, name, values, None)
        if values.dtype == object:
            return strings.put_objects(body, name, values)
        kind = arrow_type(values.dtype)
        at = body.place(np.ascontiguousarray(values), values.nbytes)
        return Column(name, kind, len(values), 0, [(body.size, 0), at]), {
            "kind": "numpy",
            "dtype": values.dtype.str,
            "at": at[0],
        }
    if type(values) in (DatetimeArray, TimedeltaArray):
        zone = None
        if isinstance(values.dtype, pd.DatetimeTZDtype):
            zone = _zone_to_json(values.dtype.tz)
        return _put_time(body, name, values._ndarray, zone)
    if type(values) in (IntegerArray, FloatingArray, BooleanArray):
        return _put_masked(body, name, values)
    if isinstance(values.dtype, pd.StringDtype):
        return strings.put_array(body, name, values)
    raise Inexact(type(values))


def _put_time(body: Body, name: str, values: np.ndarray[Any, Any], zone: Spec | None) -> tuple[Column, Spec]:
    unit, step = np.datetime_data(values.dtype)
    if unit not in ("s", "ms", "us", "ns") or step != 1 or not values.dtype.isnative:
        raise Inexact(values.dtype)
    whole = np.ascontiguousarray(values).view(np.int64)
    # The minimum tells whether there is any null, at a fraction of the cost of a comparison.
    nulls, bits = 0, (body.size, 0)
    if whole.size and whole.min() == _NAT:
        nulls, bits = validity(body, whole != _NAT)
    at = body.place(whole, whole.nbytes)
    span = values.dtype.kind == "m"
    kind = Type.duration(unit) if span else Type.timestamp(unit, None if zone is None else zone["name"])
    spec = {"kind": "timedelta" if span else "datetime", "unit": unit, "at": at[0], "zone": zone}
    return Column(name, kind, len(values), nulls, [bits, at]), spec


def _put_masked(body: Body, name: str, values: Any) -> tuple[Column, Spec]:
    plain, mask = values._data, values._mask
    nulls, bits = validity(body, ~mask)
    spec = {"kind": "masked", "class": type(values).__name__, "nulls": nulls, "bits": bits[0]}
    if plain.dtype == bool:
        packed = np.packbits(plain, bitorder="little")
        at = body.place(packed, packed.nbytes)
        kind = Type.boolean()
    else:
        kind = arrow_type(plain.dtype)
        at = body.place(np.ascontiguousarray(plain), plain.nbytes)
    spec |= {"dtype": plain.dtype.str, "at": at[0]}
    return Column(name, kind, len(plain), nulls, [bits, at]), spec


def get(spec: Spec, memory: Any, start: int, rows: int) -> Any:
    """The array that `put` placed, in a body that begins at `start` of `memory`."""
    kind = spec["kind"]
    at = start + spec["at"]
    if kind == "numpy":
        return np.ndarray(rows, spec["dtype"], memory, at)
    if kind == "bool":
        return unpack(memory, at, rows)
    if kind in ("datetime", "timedelta"):
        return _get_time(spec, np.ndarray(rows, f"{'M' if kind == 'datetime' else 'm'}8[{spec['unit']}]", memory, at))
    if kind == "masked":
        dtype = np.dtype(spec["dtype"])
        plain = unpack(memory, at, rows) if dtype.kind == "b" else np.ndarray(rows, dtype, memory, at)
        mask = ~unpack(memory, start + spec["bits"], rows) if spec["nulls"] else np.zeros(rows, bool)
        known = {"IntegerArray": IntegerArray, "FloatingArray": FloatingArray, "BooleanArray": BooleanArray}
        return known[spec["class"]](plain, mask, copy=False)
    return strings.get(spec, memory, start, rows)


def _get_time(spec: Spec, values: np.ndarray[Any, Any]) -> Any:
    if spec["zone"] is None:
        cls: Any = DatetimeArray if values.dtype.kind == "M" else TimedeltaArray
        return cls._simple_new(values, dtype=values.dtype)
    dtype = pd.DatetimeTZDtype(spec["unit"], _zone_from_json(spec["zone"]))
    return DatetimeArray._simple_new(values, dtype=dtype)


def unpack(memory: Any, at: int, rows: int) -> np.ndarray[Any, Any]:
    """Bits to bools."""
    bits = np.ndarray((rows + 7) // 8, np.uint8, memory, at)
    return np.unpackbits(bits, count=rows, bitorder="little").view(bool)


def _zone_to_json(zone: Any) -> Spec:
    if zone is datetime.UTC:
        return {"class": "utc", "name": "UTC"}
    if type(zone) is zoneinfo.ZoneInfo and zone.key:
        return {"class": "zoneinfo", "name": zone.key}
    pytz = sys.modules.get("pytz")
    if pytz is not None and getattr(zone, "zone", None):
        name = str(zone.zone)
        # A localized pytz zone differs from the one that its name gives.
        if pytz.timezone(name) is zone:
            return {"class": "pytz", "name": name}
    raise Inexact(zone)


def _zone_from_json(told: Spec) -> Any:
    if told["class"] == "utc":
        return datetime.UTC
    if told["class"] == "zoneinfo":
        return zoneinfo.ZoneInfo(told["name"])
    import pytz

    return pytz.timezone(told["name"])
