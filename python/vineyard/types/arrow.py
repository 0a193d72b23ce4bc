"""pyarrow: tables and batches are Arrow files; arrays and the rest are pickles that never store a slice's parent."""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa

from vineyard import codec, pickling
from vineyard.arrowfile import realign
from vineyard.errors import DeserializationError
from vineyard.pickling import REDUCERS

_TABLE, _BATCH = "pyarrow.Table", "pyarrow.RecordBatch"
#: A slice whose buffers are larger than its values by this factor is compacted.
_SLACK = 1.5


class _Sink:
    """Takes what pyarrow's writer writes: large buffers as they are."""

    closed = False

    def __init__(self) -> None:
        self.chunks: list[Any] = []

    def write(self, chunk: Any) -> int:
        self.chunks.append(chunk)
        return len(chunk)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def writable(self) -> bool:
        return True


def file(table: Any, mark: dict[str, Any]) -> list[Any] | None:
    """A table or batch as the buffers of an Arrow file; None when this pyarrow cannot write what it was."""
    sink = _Sink()
    told = {"vineyard": json.dumps(mark | {"by": json.loads(pickling.by())})}
    try:
        writer = pa.ipc.new_file(pa.PythonFile(sink, "w"), table.schema, metadata=told)
    except TypeError:  # before footers had metadata
        return None
    with writer:
        writer.write(table)
    return realign(sink.chunks)


def _encode_table(table: Any) -> codec.Encoded | None:
    return _encoded(table, {"type": _TABLE, "shape": list(table.shape)})


def _encode_batch(batch: Any) -> codec.Encoded | None:
    return _encoded(batch, {"type": _BATCH, "shape": list(batch.shape)})


def _encoded(table: Any, mark: dict[str, Any]) -> codec.Encoded | None:
    try:
        content = file(table, mark)
    except (pa.ArrowException, NotImplementedError):  # e.g. dictionaries that differ between nested chunks
        return None
    return None if content is None else ("arrow", content)


def table(memory: Any) -> Any:
    """The file as `pyarrow.Table`, without a copy."""
    try:
        found = pa.ipc.open_file(pa.py_buffer(memory)).read_all()
        found.validate()
        for column in found.columns:
            for chunk in column.chunks:
                _check_between(chunk)
        return found
    except (pa.ArrowException, OSError) as error:
        raise DeserializationError(f"damaged Arrow file: {error}. Put it again.") from error


def decode(memory: Any, mark: dict[str, Any]) -> Any:
    """The Table or RecordBatch that was put."""
    if mark.get("type") != _BATCH:
        return table(memory)
    try:
        reader = pa.ipc.open_file(pa.py_buffer(memory))
        if reader.num_record_batches != 1:
            raise DeserializationError("damaged Arrow file: not one record batch. Put it again.")
        batch = reader.get_batch(0)
        batch.validate()
        for column in batch.columns:
            _check_between(column)
        return batch
    except (pa.ArrowException, OSError) as error:
        raise DeserializationError(f"damaged Arrow file: {error}. Put it again.") from error


#: Types whose values end where the next one starts, and the numbers that say so.
_ENDS = {pa.string(): "i4", pa.binary(): "i4", pa.large_string(): "i8", pa.large_binary(): "i8"}


def _check_between(array: Any) -> None:
    """Raises ArrowInvalid for ends between the first and the last that point anywhere: `validate` skips these.

    A nanosecond a value for texts, whose characters are checked when they are read; nothing for numbers.
    """
    kind = array.type
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or len(array) == 0:
        return
    if kind not in _ENDS or "numpy" not in sys.modules:
        array.validate(full=True)
        return
    import numpy as np

    dtype = np.dtype(_ENDS[kind])
    ends = np.frombuffer(array.buffers()[1], dtype, len(array) + 1, array.offset * dtype.itemsize)
    if (ends[1:] < ends[:-1]).any():
        raise pa.ArrowInvalid("the ends of its texts are not in order")


# --- nested, and what is no table ----------------------------------------------------------------------------------


def _wasteful(value: Any) -> bool:
    return bool(value.get_total_buffer_size() > _SLACK * value.nbytes + pickling.INLINE)


def _reduce_array(array: Any) -> Any:
    if not _wasteful(array):
        return NotImplemented
    compact = pa.array([], array.type) if len(array) == 0 else pa.concat_arrays([array.slice(0, 0), array])
    return NotImplemented if _wasteful(compact) else compact.__reduce_ex__(5)


def _reduce_chunked(array: Any) -> Any:
    if not _wasteful(array):
        return NotImplemented
    return pa.chunked_array, ([_compacted(chunk) for chunk in array.chunks], array.type)


def _compacted(array: Any) -> Any:
    return pa.concat_arrays([array.slice(0, 0), array]) if _wasteful(array) else array


def _reduce_batch(batch: Any) -> Any:
    if not _wasteful(batch):
        return NotImplemented
    return _batch, ([_compacted(column) for column in batch.columns], batch.schema)


def _batch(columns: list[Any], schema: Any) -> Any:
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _reduce_table(value: Any) -> Any:
    if not _wasteful(value):
        return NotImplemented
    columns = [pa.chunked_array([_compacted(c) for c in column.chunks], column.type) for column in value.columns]
    return _table, (columns, value.schema)


def _table(columns: list[Any], schema: Any) -> Any:
    return pa.Table.from_arrays(columns, schema=schema)


def _register_arrays(base: type) -> None:
    kind: type
    for kind in base.__subclasses__():
        if kind.__module__.startswith("pyarrow") and not issubclass(kind, pa.ExtensionArray):
            REDUCERS[kind] = _reduce_array
        _register_arrays(kind)


_register_arrays(pa.Array)
REDUCERS[pa.ChunkedArray] = _reduce_chunked
REDUCERS[pa.RecordBatch] = _reduce_batch
REDUCERS[pa.Table] = _reduce_table
codec.ENCODERS[pa.Table] = _encode_table
codec.ENCODERS[pa.RecordBatch] = _encode_batch
