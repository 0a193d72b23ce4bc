"""NumPy: plain arrays are `.npy` files; other arrays get pickle reducers that keep their memory out of band."""

from __future__ import annotations

import ast
import pickle
import struct
from typing import Any

import numpy as np

from vineyard import codec
from vineyard._native import Memory
from vineyard.errors import DeserializationError
from vineyard.pickling import INLINE, REDUCERS

_MAGIC = b"\x93NUMPY"
_ALIGN = 64
_LONGEST_HEADER = 1 << 20


# --- files of kind npy -------------------------------------------------------------------------------------------

_headers: dict[tuple[np.dtype[Any], tuple[int, ...], bool], bytes] = {}
_layouts: dict[bytes, tuple[np.dtype[Any], tuple[int, ...], str]] = {}
_CACHED = 4096


def header(dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> bytes | None:
    """The header of a `.npy` file, its length a multiple of 64; None if it could not give back exactly this dtype."""
    plain = dtype.metadata is None and dtype.names is None and dtype.char not in "qQ"
    key = (dtype, shape, fortran)
    if plain:
        known = _headers.get(key)
        if known is not None:
            return known
    if dtype.hasobject or not _survives(dtype):
        return None
    descr = np.lib.format.dtype_to_descr(dtype)
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}"
    try:
        raw, version = text.encode("latin1"), 1
    except UnicodeEncodeError:
        raw, version = text.encode("utf8"), 3
    if version == 1 and len(raw) > 65000:
        version = 2
    fixed = 10 if version == 1 else 12
    raw += b" " * (-(fixed + len(raw) + 1) % _ALIGN) + b"\n"
    out = _MAGIC + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(raw)) + raw
    if plain:
        if len(_headers) >= _CACHED:
            _headers.clear()
        _headers[key] = out
    return out


def _survives(dtype: np.dtype[Any]) -> bool:
    # The descr of a .npy knows neither metadata nor alignment, nor which of two C types of one size it was.
    if dtype.itemsize == 0 or dtype.char in "qQ" or _has_metadata(dtype):
        return False
    if dtype.names is None and dtype.subdtype is None:
        return dtype.type is not np.record
    try:
        back = np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype))
    except (TypeError, ValueError):
        return False
    return back == dtype and repr(back) == repr(dtype) and back.type is dtype.type and back.alignment == dtype.alignment


def _has_metadata(dtype: np.dtype[Any]) -> bool:
    if dtype.metadata is not None:
        return True
    if dtype.subdtype is not None:
        return _has_metadata(dtype.subdtype[0])
    return dtype.fields is not None and any(_has_metadata(field[0]) for field in dtype.fields.values())


def layout(memory: Any) -> tuple[np.dtype[Any], tuple[int, ...], str, int]:
    """dtype, shape, order and the offset of the first item of the `.npy` file in `memory`."""
    view = memoryview(memory)
    start = bytes(view[:12])
    if len(start) < 12 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):
        raise DeserializationError("not a .npy file of version 1 to 3. Read its bytes with open(name, 'rb').")
    fixed, length = (
        (10, struct.unpack_from("<H", start, 8)[0]) if start[6] == 1 else (12, struct.unpack_from("<I", start, 8)[0])
    )
    if length > _LONGEST_HEADER or fixed + length > view.nbytes:
        raise DeserializationError("damaged .npy file: its header does not fit. Put it again.")
    text = bytes(view[fixed : fixed + length])
    known = _layouts.get(text)
    if known is None:
        if len(_layouts) >= _CACHED:
            _layouts.clear()
        known = _layouts[text] = _parse(text, start[6])
    return (*known, fixed + length)


def _parse(text: bytes, version: int) -> tuple[np.dtype[Any], tuple[int, ...], str]:
    try:
        fields = ast.literal_eval(text.decode("utf8" if version == 3 else "latin1").strip())
        dtype = np.lib.format.descr_to_dtype(fields["descr"])
        shape = tuple(int(n) for n in fields["shape"])
        order = "F" if fields["fortran_order"] else "C"
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise DeserializationError("damaged .npy file: its header cannot be read. Put it again.") from error
    if dtype.hasobject or any(n < 0 for n in shape):
        raise DeserializationError("this .npy file holds Python objects: read it with numpy.load(allow_pickle=True).")
    return dtype, shape, order


def encode(array: np.ndarray[Any, Any]) -> codec.Encoded | None:
    """A plain ndarray as `npy`; None when only a pickle gives back exactly this array."""
    flags = array.flags
    fortran = flags.fnc
    head = header(array.dtype, array.shape, fortran)
    if head is None:
        return None
    return "npy", [head, flat(array)]


def flat(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The items of an array in C or Fortran order as something with the buffer protocol; a copy only if strided."""
    if array.flags.fnc:
        array = array.T
    elif not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if array.dtype.kind in "biufc":
        return array
    return array.reshape(-1).view(np.uint8)


#: Nearly every header has this many bytes.
_USUAL = 128
#: Length field of a header of version 1 that ends there.
_USUAL_START = _MAGIC + b"\1\0" + struct.pack("<H", _USUAL - 10)
_usual: dict[bytes, tuple[np.dtype[Any], tuple[int, ...], str, int]] = {}


def decode(memory: Any) -> np.ndarray[Any, Any]:
    """The array in a `.npy` file, as a view of `memory`."""
    start = memory.head(_USUAL) if type(memory) is Memory else bytes(memoryview(memory)[:_USUAL])
    known = _usual.get(start)
    if known is None:
        known = layout(memory)
        if start.startswith(_USUAL_START):
            if len(_usual) >= _CACHED:
                _usual.clear()
            _usual[start] = known
    dtype, shape, order, offset = known
    try:
        return np.ndarray(shape, dtype, memory, offset, None, order)
    except (TypeError, ValueError) as error:
        raise DeserializationError("damaged .npy file: it is shorter than its shape says. Put it again.") from error


# --- reducers ----------------------------------------------------------------------------------------------------


def _rebuild(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> np.ndarray[Any, Any]:
    return np.ndarray(shape, np.dtype(dtype), buffer, order=order)


def _out_of_band(array: np.ndarray[Any, Any]) -> Any:
    """Reduces a plain ndarray without objects to one buffer, whatever its dtype and strides."""
    dtype = array.dtype
    if dtype.hasobject or dtype.itemsize == 0:
        return NotImplemented
    order = "F" if array.flags.fnc else "C"
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    items = array.reshape(-1, order="F" if order == "F" else "C").view(np.uint8)
    known = dtype.char if dtype.char in "qQ" else dtype
    return _rebuild, (pickle.PickleBuffer(items), known, array.shape, order)


def _reduce_ndarray(array: np.ndarray[Any, Any]) -> Any:
    dtype = array.dtype
    # NumPy's own reduction swaps bytes, and forgets which of two C types of one size it was.
    if not dtype.isnative or dtype.char in "qQ":
        return _out_of_band(array)
    # NumPy's own reduction does the rest, and needs no import of ours to be read.
    if array.nbytes < INLINE or (dtype.kind not in "mM" and (array.flags.c_contiguous or array.flags.f_contiguous)):
        return NotImplemented
    return _out_of_band(array)


def _as_class(kind: type, base: np.ndarray[Any, Any]) -> Any:
    return base.view(kind)


def _reduce_subclass(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.hasobject or array.__dict__.keys() - {"_mmap", "offset", "mode", "filename"}:
        return NotImplemented
    return _as_class, (type(array), array.view(np.ndarray))


def _masked(kind: type, values: Any, mask: Any, fill: Any, hard: bool, state: dict[str, Any]) -> Any:
    array = values.view(kind)
    if mask is not None:
        array._mask = mask
    array._fill_value = fill
    array._hardmask = hard
    array._optinfo.update(state)
    return array


def reduce_masked(array: Any) -> Any:
    """Reduces a masked array to its values, its mask and its settings."""
    if array.dtype.hasobject or array._baseclass is not np.ndarray:
        return NotImplemented
    mask = None if array._mask is np.ma.nomask else array._mask
    values = array._data.view(np.ndarray)
    return _masked, (type(array), values, mask, array._fill_value, bool(array._hardmask), dict(array._optinfo))


def _reduce_time_dtype(dtype: np.dtype[Any]) -> Any:
    # The pickle of a datetime dtype forgets its byte order.
    return NotImplemented if dtype.isnative or dtype.metadata is not None else (np.dtype, (dtype.str,))


def _reduce_scalar(value: Any) -> Any:
    return type(value), (int(value),)


REDUCERS[type(np.dtype("M8[s]"))] = _reduce_time_dtype
REDUCERS[type(np.dtype("m8[s]"))] = _reduce_time_dtype
REDUCERS[np.ndarray] = _reduce_ndarray
REDUCERS[np.recarray] = _reduce_subclass
REDUCERS[np.matrix] = _reduce_subclass
REDUCERS[np.memmap] = _reduce_subclass
# On a platform where `long` has the same size, NumPy's own pickle turns these two into int64 and uint64.
REDUCERS[np.longlong] = _reduce_scalar
REDUCERS[np.ulonglong] = _reduce_scalar
codec.ENCODERS[np.ndarray] = encode
codec.DECODERS["npy"] = decode
