"""Dicts of plain tensors, and state dicts, as safetensors files that every safetensors reader opens."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from typing import Any

import torch

from vineyard import codec
from vineyard.errors import DeserializationError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100 << 20
_ALIGN = 64


def encode(tensors: Any) -> codec.Encoded | None:
    """A dict of plain tensors as safetensors; None when that would not give back exactly this dict."""
    mark = _mark(tensors)
    if mark is None or not tensors:
        return None
    header: dict[str, Any] = {} if not mark else {"__metadata__": {"vineyard": json.dumps(mark)}}
    # Largest items first, so that all are aligned although the format has no gaps.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    offsets, end = {}, 0
    for name in order:
        size = tensors[name].numel() * tensors[name].element_size()
        offsets[name] = [end, end + size]
        end += size
    for name, tensor in tensors.items():
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets[name]}
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % _ALIGN)
    parts = [struct.pack("<Q", len(raw)) + raw]
    parts += [tensors[name].reshape(-1).view(torch.uint8).numpy() for name in order if tensors[name].numel()]
    return "safetensors", parts


def _mark(tensors: Any) -> dict[str, Any] | None:
    """What the format itself does not say: empty for a dict; None when it cannot be said."""
    for name, tensor in tensors.items():
        if type(name) is not str or name == "__metadata__" or type(tensor) is not torch.Tensor:
            return None
        if tensor.dtype not in _NAMES or tensor.requires_grad or tensor.device.type != "cpu":
            return None
        if tensor.layout is not torch.strided or not tensor.is_contiguous() or tensor.__dict__ or tensor.is_neg():
            return None
    if type(tensors) is dict:
        return {}
    # A module's state dict carries the versions of its parts.
    if tensors.__dict__.keys() - {"_metadata"}:
        return None
    versions = tensors.__dict__.get("_metadata")
    if versions is None:
        return {"type": "collections.OrderedDict"}
    if type(versions) is not OrderedDict or not all(
        type(part) is str and type(told) is dict and all(type(k) is str and type(v) is int for k, v in told.items())
        for part, told in versions.items()
    ):
        return None
    return {"type": "collections.OrderedDict", "versions": list(versions.items())}


def decode(memory: Any) -> Any:
    """The tensors in a safetensors file, as views of `memory`."""
    view = memoryview(memory).cast("B")
    if view.readonly:
        view = memoryview(bytearray(view))  # torch knows no read-only memory: writing to it would crash
    try:
        (length,) = struct.unpack_from("<Q", view)
        if length > min(_LONGEST_HEADER, view.nbytes - 8):
            raise ValueError("the header does not fit")
        header = json.loads(bytes(view[8 : 8 + length]))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(view[8 + length :], told) for name, told in header.items()}
        mark = json.loads(metadata.get("vineyard", "{}"))
        if mark.get("type") == "collections.OrderedDict":
            ordered = OrderedDict(tensors)
            if "versions" in mark:
                ordered._metadata = OrderedDict((part, told) for part, told in mark["versions"])  # type: ignore[attr-defined]
            return ordered
        return tensors
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, struct.error) as error:
        raise DeserializationError(f"damaged safetensors file: {error}. Put it again.") from error


def _tensor(data: memoryview, told: dict[str, Any]) -> torch.Tensor:
    dtype = _DTYPES.get(told["dtype"])
    if dtype is None:
        raise ValueError(f"dtype {told['dtype']} is not known here")
    begin, end = told["data_offsets"]
    part = data[begin:end]
    if begin < 0 or part.nbytes != end - begin:
        raise ValueError("a tensor lies outside of the file")
    if not part.nbytes:
        return torch.empty(told["shape"], dtype=dtype)
    return torch.frombuffer(part, dtype=torch.uint8).view(dtype).reshape(told["shape"])


codec.ENCODERS[dict] = encode
codec.ENCODERS[OrderedDict] = encode
codec.DECODERS["safetensors"] = decode
