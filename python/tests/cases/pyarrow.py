"""pyarrow: tables, batches, arrays, and slices of them."""

import decimal

import pytest

from cases import cases

pa = pytest.importorskip("pyarrow")


def table(n=1000):
    return pa.table(
        {
            "i": pa.array(range(n)),
            "n": pa.array([None if i % 7 == 0 else i for i in range(n)], pa.int32()),
            "s": pa.array([f"text {i}" for i in range(n)]),
            "ls": pa.array([f"text {i}" for i in range(n)], pa.large_string()),
            "l": pa.array([[i, None] for i in range(n)]),
            "d": pa.array([{"a": i, "b": "x"} for i in range(n)]),
            "c": pa.array(["x", "y"] * (n // 2)).dictionary_encode(),
            "b": pa.array([i % 2 == 0 for i in range(n)]),
        }
    )


cases(
    table=table,
    table_slice=lambda: table().slice(5, 100),
    table_chunks=lambda: pa.concat_tables([table(100), table(40), table(2).slice(0, 0)]),
    table_uneven=lambda: pa.table({"a": pa.chunked_array([[1, 2], [3]]), "b": pa.chunked_array([["x"], ["y", None]])}),
    table_metadata=lambda: table().replace_schema_metadata({"k": "v", b"raw": b"\xff"}),
    table_field_metadata=lambda: pa.table(
        [pa.array([1])], pa.schema([pa.field("a", pa.int64(), False, {"unit": "m"})])
    ),
    table_empty=lambda: table().slice(0, 0),
    table_no_columns=lambda: pa.table({}),
    table_duplicate_names=lambda: pa.table([pa.array([1]), pa.array(["x"])], ["a", "a"]),
    table_views=lambda: pa.table(
        {"v": pa.array(["short", "a string that is longer than twelve"] * 300, pa.string_view())}
    ),
    table_decimal=lambda: pa.table({"d": pa.array([decimal.Decimal("1.50"), None])}),
    table_null=lambda: pa.table({"n": pa.nulls(5)}),
    table_map=lambda: pa.table({"m": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))}),
    table_union=lambda: pa.table(
        {"u": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])}
    ),
    table_run_end=lambda: pa.table({"r": pa.RunEndEncodedArray.from_arrays([3, 5], ["a", "b"])}),
    table_nested_dictionary=lambda: pa.table(
        {"l": pa.array([["x", "y"], ["x"]], pa.list_(pa.dictionary(pa.int8(), pa.string())))}
    ),
    batch=lambda: table().to_batches()[0],
    batch_slice=lambda: table().to_batches()[0].slice(3, 50),
    batch_empty=lambda: table().to_batches()[0].slice(0, 0),
    array=lambda: pa.array(range(5000)),
    array_slice=lambda: pa.array(range(5000)).slice(7, 100),
    array_nulls=lambda: pa.array([1, None, 3] * 900),
    array_strings=lambda: pa.array(["a", None, "ü"] * 900),
    array_strings_slice=lambda: pa.array(["a", None, "ü"] * 9000).slice(11, 30),
    array_timestamps=lambda: pa.array([0, 1, None], pa.timestamp("us", "Europe/Berlin")),
    array_dictionary=lambda: pa.array(["x", "y", "x"] * 400).dictionary_encode(),
    array_list=lambda: pa.array([[1], None, [2, 3]]),
    array_struct_slice=lambda: pa.array([{"a": i} for i in range(5000)]).slice(1, 5),
    array_empty=lambda: pa.array([], pa.int8()),
    array_bool=lambda: pa.array([True, None, False] * 900),
    array_fixed_binary=lambda: pa.array([b"abcd"] * 900, pa.binary(4)),
    chunked=lambda: pa.chunked_array([[1, 2], [], [3]]),
    chunked_slice=lambda: pa.chunked_array([list(range(5000)), list(range(5000))]).slice(4990, 20),
    chunked_no_chunks=lambda: pa.chunked_array([], pa.string()),
    schema=lambda: table().schema.with_metadata({"k": "v"}),
    field=lambda: pa.field("a", pa.int8(), False, {"m": "n"}),
    type=lambda: pa.list_(pa.timestamp("ns", "UTC")),
    scalar=lambda: pa.scalar("x"),
    buffer=lambda: pa.py_buffer(b"abc" * 1000),
    nested=lambda: {"t": table(10), "a": [pa.array([1])]},
)
