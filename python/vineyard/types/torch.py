"""torch: tensors keep their memory out of band; everything that holds tensors (modules, datasets) follows."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import torch

import vineyard.types.safetensors  # noqa: F401  (state dicts)
from vineyard.pickling import REDUCERS


def _tensor(
    buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool, device: str
) -> torch.Tensor:
    if memoryview(buffer).nbytes == 0:
        tensor = torch.empty(shape, dtype=dtype)
    else:
        if memoryview(buffer).readonly:
            buffer = bytearray(buffer)  # torch knows no read-only memory: writing to it would crash
        tensor = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).as_strided(shape, stride)
    if device != "cpu":
        tensor = _moved(tensor, device)
    return tensor.requires_grad_() if requires_grad else tensor


def _moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    try:
        return tensor.to(device)
    except (RuntimeError, AssertionError) as error:
        warnings.warn(f"a tensor of device {device} stays on the CPU: {error}", RuntimeWarning, stacklevel=2)
        return tensor


def _plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_meta
        and not (tensor.requires_grad and not tensor.is_leaf)
        and not tensor.__dict__
        and not tensor._backward_hooks
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the items fill their memory without gaps, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _reduce_tensor(tensor: torch.Tensor) -> Any:
    if not _plain(tensor):
        return NotImplemented
    whole = tensor.detach().cpu()
    if not _dense(whole):  # a slice: its parent is not stored
        whole = whole.contiguous()
    if whole.numel():
        flat = whole.as_strided((whole.numel(),), (1,))
        buffer = pickle.PickleBuffer(flat.view(torch.uint8).numpy())
    else:
        buffer = pickle.PickleBuffer(b"")
    fields = (tensor.dtype, tuple(tensor.shape), whole.stride(), tensor.requires_grad, str(tensor.device))
    return _tensor, (buffer, *fields)


def _parameter(tensor: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad)


def _reduce_parameter(parameter: torch.nn.Parameter) -> Any:
    if parameter.__dict__ or parameter._backward_hooks:
        return NotImplemented
    return _parameter, (parameter.detach(), parameter.requires_grad)


REDUCERS[torch.Tensor] = _reduce_tensor
REDUCERS[torch.nn.Parameter] = _reduce_parameter
