"""`assert_same`: exactly the same type and value, stricter than any library's own equality."""

import dataclasses
import math
import sys
from collections.abc import Mapping

_COMPARERS = {}


def comparer(module, *names):
    def add(function):
        for name in names:
            _COMPARERS[module, name] = function
        return function

    return add


def assert_same(a, b, where="value"):
    assert type(a) is type(b), f"{where}: {type(a)} became {type(b)}"
    for kind in type(a).__mro__:
        compare = _COMPARERS.get((kind.__module__.partition(".")[0], kind.__name__))
        if compare is not None:
            compare(a, b, where)
            return
    if isinstance(a, float):
        assert a.hex() == b.hex() if not math.isnan(a) else math.isnan(b), where
    elif isinstance(a, Mapping):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)) or type(a).__name__ == "deque":
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, memoryview):
        assert (a.format, a.shape, a.tobytes()) == (b.format, b.shape, b.tobytes()), where
    elif dataclasses.is_dataclass(a) and not isinstance(a, type):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif isinstance(a, BaseException):
        assert_same(a.args, b.args, where)
    else:
        assert a is b or a == b, where


@comparer("numpy", "ndarray")
def _ndarray(a, b, where):
    import numpy as np

    assert a.dtype == b.dtype, where
    assert (repr(a.dtype), a.dtype.char) == (repr(b.dtype), b.dtype.char), where
    assert a.dtype.metadata == b.dtype.metadata, where
    assert a.shape == b.shape, where
    if a.flags.fnc:
        assert b.flags.fnc, f"{where}: order"
    if isinstance(a, np.ma.MaskedArray):
        assert (a._mask is np.ma.nomask) == (b._mask is np.ma.nomask), f"{where}: mask"
        _ndarray(np.asarray(a._data), np.asarray(b._data), where)
        assert np.array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b)), where
        assert a._hardmask == b._hardmask, where
        assert_same(a._fill_value, b._fill_value, where)
    elif a.dtype.hasobject:
        for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            assert_same(x, y, where)
    else:
        assert a.tobytes() == b.tobytes(), where


@comparer("numpy", "generic")
def _generic(a, b, where):
    _ndarray(
        a.reshape(1) if a.shape else __import__("numpy").array(a),
        b.reshape(1) if b.shape else __import__("numpy").array(b),
        where,
    )


@comparer("numpy", "dtype")
def _dtype(a, b, where):
    assert a == b and repr(a) == repr(b) and a.metadata == b.metadata, where


@comparer("pandas", "DataFrame")
def _frame(a, b, where):
    import pandas as pd

    pd.testing.assert_frame_equal(a, b, check_exact=True, check_freq=True, check_flags=True)
    assert_same(a.index, b.index, f"{where}.index")
    assert_same(a.columns, b.columns, f"{where}.columns")
    assert a.attrs == b.attrs and type(a.attrs) is type(b.attrs), where
    for i in range(a.shape[1]):
        assert_same(a.iloc[:, i], b.iloc[:, i], f"{where}.iloc[:, {i}]")


@comparer("pandas", "Series")
def _series(a, b, where):
    import pandas as pd

    pd.testing.assert_series_equal(a, b, check_exact=True, check_freq=True, check_flags=True)
    assert_same(a.name, b.name, where)
    assert a.attrs == b.attrs, where
    assert_same(a.index, b.index, f"{where}.index")
    assert_same(a.array, b.array, f"{where}.array")


@comparer("pandas", "ExtensionArray")
def _array(a, b, where):
    assert a.dtype == b.dtype and repr(a.dtype) == repr(b.dtype), where
    inner = getattr(a, "_ndarray", None)
    if inner is not None and inner.dtype == object:
        _ndarray(inner, b._ndarray, where)
        return
    assert a.equals(b), where
    if hasattr(a.dtype, "tz"):
        assert a.dtype.tz is b.dtype.tz or (type(a.dtype.tz) is type(b.dtype.tz) and a.dtype.tz == b.dtype.tz), where


@comparer("pandas", "Index")
def _index(a, b, where):
    assert a.dtype == b.dtype and repr(a.dtype) == repr(b.dtype), where
    assert a.identical(b), where
    assert_same(list(a.names), list(b.names), f"{where}.names")
    assert getattr(a, "freq", None) == getattr(b, "freq", None), where
    assert type(getattr(a, "freq", None)) is type(getattr(b, "freq", None)), where
    if a.dtype == object:
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            assert_same(x, y, where)


@comparer("pyarrow", "Table", "RecordBatch")
def _table(a, b, where):
    assert a.schema.equals(b.schema, check_metadata=True), where
    assert a.equals(b, check_metadata=True), where
    b.validate(full=True)


@comparer("pyarrow", "Schema")
def _schema(a, b, where):
    assert a.equals(b, check_metadata=True), where


@comparer("pyarrow", "Array", "ChunkedArray")
def _arrow_array(a, b, where):
    assert a.type == b.type and a.equals(b), where
    b.validate(full=True)


@comparer("polars", "DataFrame")
def _polars_frame(a, b, where):
    assert a.schema == b.schema and a.equals(b, null_equal=True), where


@comparer("polars", "Series")
def _polars_series(a, b, where):
    assert a.dtype == b.dtype and a.name == b.name and a.equals(b, null_equal=True), where


@comparer("polars", "LazyFrame")
def _polars_lazy(a, b, where):
    _polars_frame(a.collect(), b.collect(), where)


@comparer("scipy", "_spbase")
def _sparse(a, b, where):
    assert a.format == b.format and a.shape == b.shape and a.dtype == b.dtype, where
    _ndarray(a.toarray(), b.toarray(), where)
    for name in ("data", "indices", "indptr", "row", "col", "offsets"):
        if hasattr(a, name) and not callable(getattr(a, name)) and getattr(a, name).dtype != object:
            _ndarray(getattr(a, name), getattr(b, name), f"{where}.{name}")


@comparer("xarray", "Dataset", "DataArray")
def _xarray(a, b, where):
    assert a.identical(b), where


@comparer("torch", "Tensor")
def _tensor(a, b, where):
    torch = sys.modules["torch"]
    assert a.dtype is b.dtype and a.shape == b.shape and a.layout is b.layout, where
    assert a.requires_grad == b.requires_grad and a.device == b.device, where
    if a.layout is torch.strided and a.is_contiguous(
        memory_format=torch.channels_last if a.ndim == 4 else torch.contiguous_format
    ):
        assert a.stride() == b.stride(), where
    assert torch.equal(
        a.to_dense() if a.layout is not torch.strided else a, b.to_dense() if b.layout is not torch.strided else b
    ), where


@comparer("torch", "TensorDataset")
def _dataset(a, b, where):
    assert_same(a.tensors, b.tensors, where)


@comparer("torch", "Module")
def _module(a, b, where):
    assert_same(dict(a.state_dict()), dict(b.state_dict()), where)
    assert [n for n, _ in a.named_modules()] == [n for n, _ in b.named_modules()], where
