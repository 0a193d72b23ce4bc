"""torch: tensors keep their memory out of band; everything that holds tensors (modules, datasets) follows."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from vineyard.pickling import REDUCERS


def _buffer(tensor: torch.Tensor) -> pickle.PickleBuffer:
    flat = tensor.reshape(-1)
    return pickle.PickleBuffer(flat.view(torch.uint8).numpy() if flat.numel() else b"")


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], requires_grad: bool, device: str) -> torch.Tensor:
    if memoryview(buffer).nbytes == 0:
        tensor = torch.empty(shape, dtype=dtype)
    else:
        if memoryview(buffer).readonly:
            buffer = bytearray(buffer)  # torch knows no read-only memory: writing to it would crash
        tensor = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(shape)
    if device != "cpu":
        tensor = tensor.to(device)
    return tensor.requires_grad_() if requires_grad else tensor


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


def _reduce_tensor(tensor: torch.Tensor) -> Any:
    if not _plain(tensor):
        return NotImplemented
    # Tensors that share a storage (tied weights) must still share it afterwards: then torch's own reduction holds.
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.numel() * tensor.element_size():
        return NotImplemented if storage.nbytes() <= 2 * tensor.numel() * tensor.element_size() else _copied(tensor)
    return _copied(tensor)


def _copied(tensor: torch.Tensor) -> Any:
    whole = tensor.detach().cpu().contiguous()
    fields = (_buffer(whole), tensor.dtype, tuple(tensor.shape), tensor.requires_grad, str(tensor.device))
    return _tensor, fields


def _parameter(tensor: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad)


def _reduce_parameter(parameter: torch.nn.Parameter) -> Any:
    if parameter.__dict__ or parameter._backward_hooks:
        return NotImplemented
    return _parameter, (parameter.detach(), parameter.requires_grad)


REDUCERS[torch.Tensor] = _reduce_tensor
REDUCERS[torch.nn.Parameter] = _reduce_parameter
