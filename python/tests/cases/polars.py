"""polars, which knows no out-of-band buffers by itself."""

import datetime
import decimal

import pytest

from cases import cases

pl = pytest.importorskip("polars")


def frame(n=1000):
    return pl.DataFrame(
        {
            "i": range(n),
            "f": [i / 3 for i in range(n)],
            "s": [None if i % 9 == 0 else f"a text that is rather long {i}" for i in range(n)],
            "b": [i % 2 == 0 for i in range(n)],
            "t": [datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=i) for i in range(n)],
            "l": [[i, None] for i in range(n)],
            "d": [{"a": i, "b": "x"} for i in range(n)],
        }
    )


cases(
    frame=frame,
    frame_slice=lambda: frame().slice(10, 50),
    frame_chunks=lambda: pl.concat([frame(5), frame(3)], rechunk=False),
    frame_empty=lambda: frame().clear(),
    frame_nothing=lambda: pl.DataFrame(),
    categorical=lambda: pl.DataFrame({"c": ["a", "b", None] * 400}, schema={"c": pl.Categorical}),
    enum=lambda: pl.DataFrame({"e": ["x", "y"] * 600}, schema={"e": pl.Enum(["y", "x", "z"])}),
    decimals=lambda: pl.DataFrame({"d": [decimal.Decimal("1.25"), None]}),
    dates=lambda: pl.DataFrame(
        {"d": [datetime.date(2020, 1, 1)], "t": [datetime.time(1, 2)], "u": [datetime.timedelta(1)]}
    ),
    zone=lambda: pl.DataFrame({"z": pl.Series([datetime.datetime(2020, 1, 1)]).dt.replace_time_zone("Europe/Berlin")}),
    array=lambda: pl.DataFrame({"a": [[1, 2], [3, 4]] * 300}, schema={"a": pl.Array(pl.Int16, 2)}),
    binary=lambda: pl.DataFrame({"b": [b"x", None, b"\xff" * 30]}),
    null=lambda: pl.DataFrame({"n": [None, None]}),
    int128=lambda: pl.DataFrame({"i": pl.Series([1, 2], dtype=pl.Int128)}),
    small_types=lambda: pl.DataFrame(
        {"a": pl.Series([1, 2], dtype=pl.UInt8), "b": pl.Series([1, 2], dtype=pl.Float32)}
    ),
    series=lambda: pl.Series("s", range(3000)),
    series_strings=lambda: pl.Series("s", ["a", None, "a text that is rather long"] * 900),
    series_categorical=lambda: pl.Series("c", ["a", "b"] * 900, dtype=pl.Categorical),
    series_unnamed=lambda: pl.Series([1, 2, 3]),
    lazy=lambda: frame().lazy().filter(pl.col("i") > 5),
    dtype=lambda: pl.List(pl.Int8),
    nested=lambda: {"f": frame(), "s": [pl.Series("x", range(2000))]},
)
