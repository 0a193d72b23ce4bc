"""torch: tensors, parameters, modules, state dicts, datasets."""

import collections

import pytest

from cases import cases

torch = pytest.importorskip("torch")


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(50, 40), torch.nn.BatchNorm1d(40), torch.nn.ReLU(), torch.nn.Linear(40, 2)
    )


def gradient():
    return torch.ones(1000, requires_grad=True)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(30, 30)
        self.b = torch.nn.Linear(30, 30)
        self.b.weight = self.a.weight


cases(
    **{
        f"tensor_{dtype}": lambda dtype=dtype: torch.arange(2000).to(getattr(torch, dtype))
        for dtype in (
            "float32",
            "float64",
            "float16",
            "bfloat16",
            "int8",
            "int16",
            "int64",
            "uint8",
            "bool",
            "complex64",
        )
    },
    tensor_shape=lambda: torch.arange(6000.0).reshape(10, 20, 30),
    tensor_strided=lambda: torch.arange(6000.0).reshape(60, 100)[::2, ::3],
    tensor_transposed=lambda: torch.arange(6000.0).reshape(60, 100).T,
    tensor_channels_last=lambda: torch.ones(2, 3, 20, 30).to(memory_format=torch.channels_last),
    tensor_scalar=lambda: torch.tensor(1.5),
    tensor_empty=lambda: torch.empty(0, 3),
    tensor_gradient=gradient,
    tensor_sparse=lambda: torch.eye(50).to_sparse(),
    tensor_small_slice=lambda: torch.arange(1_000_000.0)[5:10],
    parameter=lambda: torch.nn.Parameter(torch.ones(40, 50), requires_grad=False),
    module=module,
    module_tied=Tied,
    state_dict=lambda: module().state_dict(),
    plain_state_dict=lambda: dict(module().state_dict()),
    ordered_state=lambda: collections.OrderedDict(b=torch.ones(1000), a=torch.zeros(2000)),
    dataset=lambda: torch.utils.data.TensorDataset(torch.arange(3000.0).reshape(1000, 3), torch.arange(1000)),
    size=lambda: torch.Size([1, 2]),
    dtype=lambda: torch.bfloat16,
    nested=lambda: {"t": torch.ones(3000), "l": [torch.zeros(5)]},
)
