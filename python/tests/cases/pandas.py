"""pandas 2 and 3: blocks, extension types, indexes, labels, attrs, flags."""

import datetime
import zoneinfo

import pytest

from cases import cases

pd = pytest.importorskip("pandas")
np = pytest.importorskip("numpy")

N = 1000


def frame(index=None, **columns):
    return pd.DataFrame(columns, index=index)


def numbers(**options):
    return pd.DataFrame(np.arange(4.0 * N).reshape(N, 4), **options)


def mixed():
    return pd.DataFrame(
        {
            "i": np.arange(N),
            "f": np.arange(N) / 3,
            "f4": np.arange(N, dtype="f4"),
            "b": np.arange(N) % 3 == 0,
            "t": pd.date_range("2020", periods=N, freq="h"),
            "z": pd.date_range("2020", periods=N, freq="h", tz="Europe/Berlin"),
            "d": pd.to_timedelta(np.arange(N), "s"),
            "s": [f"text {i}" for i in range(N)],
            "u1": np.arange(N).astype("u1"),
        }
    )


def with_attrs(attrs):
    out = numbers()
    out.attrs = attrs
    return out


def no_duplicates():
    return numbers().set_flags(allows_duplicate_labels=False)


def nulls():
    s = ["a", None, "b", "ü"]
    t = pd.to_datetime(["2020-01-01", None, "2021-01-01", "2022-01-01"])
    return pd.DataFrame({"s": s, "t": t, "f": [1.0, np.nan, -0.0, np.inf], "d": t - t[0]})


def object_column(*values):
    return pd.DataFrame({"x": pd.Series(list(values), dtype=object), "n": range(len(values))})


class Special(pd.DataFrame):
    _metadata = ["unit"]

    @property
    def _constructor(self):
        return Special


def special():
    out = Special(np.arange(3000.0).reshape(1000, 3))
    out.unit = "kg"
    return out


def dateutil_zone():
    try:
        return frame(t=pd.date_range("2020", periods=5, tz="dateutil/Europe/Paris"))
    except AttributeError:
        pytest.skip("this pandas cannot make dateutil zones")


def needs_pyarrow(make):
    def checked():
        pytest.importorskip("pyarrow")
        return make()

    return checked


cases(
    numbers=numbers,
    numbers_f_order=lambda: pd.DataFrame(np.asfortranarray(np.arange(4.0 * N).reshape(N, 4))),
    numbers_of_records=lambda: pd.DataFrame(np.arange(3.0 * N).reshape(N, 3), copy=False),
    odd_rows=lambda: pd.DataFrame({f"c{i}": np.arange(1001.0) + i for i in range(7)}),
    mixed=mixed,
    mixed_slice=lambda: mixed().iloc[5:700:3],
    mixed_reversed=lambda: mixed()[["s", "b", "z", "f", "i"]].iloc[::-1],
    unconsolidated=lambda: pd.concat([numbers(), numbers().add_prefix("x")], axis=1).assign(y=1.5, z=2),
    nulls=nulls,
    one_cell=lambda: pd.DataFrame({"a": [1]}),
    no_rows=lambda: mixed().iloc[:0],
    no_columns=lambda: pd.DataFrame(index=range(5)),
    empty=lambda: pd.DataFrame(),
    wide=lambda: pd.DataFrame(np.arange(6000.0).reshape(2, 3000)),
    half=lambda: pd.DataFrame({"h": np.arange(N).astype("f2"), "i1": np.arange(N).astype("i1")}),
    complex=lambda: pd.DataFrame({"c": np.arange(N) * 1j, "f": 1.0}),
    bool_only=lambda: pd.DataFrame({"a": [True, False, True], "b": [False] * 3}),
    categorical=lambda: pd.DataFrame({"c": pd.Categorical(["a", "b", None, "a"] * 300), "n": 1}),
    categorical_ordered=lambda: pd.DataFrame({"c": pd.Categorical([3, 1, 3], categories=[5, 3, 1], ordered=True)}),
    categorical_dates=lambda: pd.DataFrame({"c": pd.Categorical(pd.date_range("2020", periods=5))}),
    int64=lambda: pd.DataFrame({"x": pd.array([1, None, 3] * 500, "Int64"), "u": pd.array([1, 2, 3] * 500, "UInt8")}),
    float64=lambda: pd.DataFrame({"x": pd.array([1.5, None, 3], "Float64"), "y": pd.array([1.5, None, 3], "Float32")}),
    boolean=lambda: pd.DataFrame({"x": pd.array([True, None, False] * 700, "boolean")}),
    string_python=lambda: pd.DataFrame({"x": pd.array(["a", None, "c"] * 500, "string[python]")}),
    string_pyarrow=needs_pyarrow(lambda: pd.DataFrame({"x": pd.array(["a", None, "c"] * 500, "string[pyarrow]")})),
    string_pyarrow_slice=needs_pyarrow(
        lambda: pd.DataFrame({"x": pd.array(["a", None, "c", "ü"] * 500, "string[pyarrow]")}).iloc[3:900]
    ),
    string_concat=needs_pyarrow(lambda: pd.concat([pd.DataFrame({"x": pd.array(["a", None], "string[pyarrow]")})] * 3)),
    int64_pyarrow=needs_pyarrow(lambda: pd.DataFrame({"x": pd.array([1, None, 3] * 500, "int64[pyarrow]")})),
    list_pyarrow=needs_pyarrow(
        lambda: pd.DataFrame(
            {
                "x": pd.Series(
                    [[1], None, [2, 3]], dtype=pd.ArrowDtype(__import__("pyarrow").list_(__import__("pyarrow").int64()))
                )
            }
        )
    ),
    sparse=lambda: pd.DataFrame({"x": pd.arrays.SparseArray([0, 0, 1, 2] * 400)}),
    period=lambda: pd.DataFrame({"x": pd.period_range("2020-01", periods=500, freq="M")}),
    interval=lambda: pd.DataFrame({"x": pd.interval_range(0, 500)}),
    objects_str=lambda: object_column("a", "b", "ü", ""),
    objects_none=lambda: object_column("a", None, "b"),
    objects_nan=lambda: object_column("a", np.nan, "b"),
    objects_few=lambda: pd.DataFrame({"x": pd.Series(["a", "b", None] * 5000, dtype=object)}),
    objects_few_nan=lambda: pd.DataFrame({"x": pd.Series(["a", "b", np.nan] * 5000, dtype=object)}),
    objects_many=lambda: pd.DataFrame(
        {"x": pd.Series([None if i % 9 == 0 else str(i) for i in range(15_000)], dtype=object)}
    ),
    objects_both_nulls=lambda: object_column("a", np.nan, None),
    objects_na=lambda: object_column("a", pd.NA, None),
    objects_only_none=lambda: object_column(None, None),
    objects_only_nan=lambda: object_column(np.nan, np.nan),
    objects_mixed=lambda: object_column("a", 1, 2.5, [3], None),
    objects_bytes=lambda: object_column(b"a", b"b"),
    objects_np_str=lambda: object_column("a", np.str_("b")),
    objects_surrogate=lambda: object_column("a", "\udc80"),
    objects_float=lambda: object_column("a", 1.5),
    objects_bool=lambda: object_column(True, None, False),
    objects_dates=lambda: object_column(datetime.date(2020, 1, 1), None),
    times_ns=lambda: frame(t=np.array(["2020", "NaT", "1677-09-22"], "M8[ns]"), s=np.array([1, 2, 3], "M8[s]")),
    tz_zoneinfo=lambda: frame(t=pd.date_range("2020", periods=5, tz=zoneinfo.ZoneInfo("America/New_York"))),
    tz_utc=lambda: frame(
        t=pd.date_range("2020", periods=5, tz="UTC"), u=pd.date_range("2020", periods=5, tz=datetime.UTC)
    ),
    tz_fixed=lambda: frame(t=pd.date_range("2020", periods=5, tz=datetime.timezone(datetime.timedelta(hours=5)))),
    tz_pytz=lambda: frame(t=pd.date_range("2020", periods=5, tz=pytest.importorskip("pytz").timezone("Asia/Tokyo"))),
    tz_dateutil=dateutil_zone,
    index_range=lambda: numbers(index=pd.RangeIndex(5, 5 + 3 * N, 3, name="r")),
    index_int=lambda: numbers(index=pd.Index(np.arange(N)[::-1], name="k")),
    index_float=lambda: numbers(index=np.arange(N) / 7),
    index_u1=lambda: numbers(index=pd.Index(np.arange(N).astype("u1"))),
    index_bool=lambda: frame(a=[1, 2], index=pd.Index([True, False])),
    index_str=lambda: numbers(index=[f"row {i}" for i in range(N)]),
    index_object=lambda: numbers(index=pd.Index([f"row {i}" for i in range(N)], dtype=object, name=("a", 1))),
    index_mixed=lambda: frame(a=[1, 2, 3], index=pd.Index([1, "a", None], dtype=object)),
    index_datetime=lambda: numbers(index=pd.date_range("2020", periods=N, freq="h", name="when")),
    index_datetime_business=lambda: numbers(index=pd.bdate_range("2020", periods=N)),
    index_datetime_custom=lambda: numbers(
        index=pd.date_range("2020", periods=N, freq=pd.offsets.CustomBusinessDay(holidays=["2020-01-03"]))
    ),
    index_datetime_tz=lambda: numbers(index=pd.date_range("2020", periods=N, freq="D", tz="Europe/Berlin")),
    index_datetime_nat=lambda: frame(a=[1, 2], index=pd.DatetimeIndex(["2020", None])),
    index_timedelta=lambda: numbers(index=pd.timedelta_range("1s", periods=N)),
    index_period=lambda: numbers(index=pd.period_range("2020", periods=N, freq="D")),
    index_interval=lambda: numbers(index=pd.interval_range(0, N)),
    index_categorical=lambda: numbers(index=pd.CategoricalIndex(["a", "b"] * (N // 2), name="c")),
    index_nullable=lambda: frame(a=[1, 2], index=pd.Index([1, None], dtype="Int64")),
    index_multi=lambda: numbers(index=pd.MultiIndex.from_product([range(N // 2), ["x", "y"]], names=["n", None])),
    index_multi_dates=lambda: numbers(
        index=pd.MultiIndex.from_product([pd.date_range("2020", periods=N // 2), ["x", "y"]])
    ),
    index_multi_nulls=lambda: frame(a=[1, 2, 3], index=pd.MultiIndex.from_tuples([("a", 1), (None, 2), ("b", np.nan)])),
    index_multi_sparse_levels=lambda: numbers(index=pd.MultiIndex.from_product([range(N), ["x", "y"]])[::2]),
    index_duplicates=lambda: numbers(index=[1, 1] * (N // 2)),
    labels_int=lambda: pd.DataFrame(np.zeros((3, 4)), columns=[10, 20, 30, 40]),
    labels_mixed=lambda: pd.DataFrame(np.zeros((3, 4)), columns=["1", 1, 1.5, None]),
    labels_tuples=lambda: pd.DataFrame(
        np.zeros((3, 2)), columns=pd.Index([("a", 1), ("b", None)], tupleize_cols=False)
    ),
    labels_surrogate=lambda: pd.DataFrame(np.zeros((3, 2)), columns=pd.Index(["a\udc80", "b"], dtype=object)),
    index_name_surrogate=lambda: numbers(index=pd.Index(np.arange(N), name="n\udc80")),
    labels_named=lambda: pd.DataFrame(np.zeros((3, 2)), columns=pd.Index(["a", "b"], name="axis")),
    labels_duplicate=lambda: pd.DataFrame(np.arange(6.0).reshape(2, 3), columns=["a", "a", "b"]),
    labels_multi=lambda: pd.DataFrame(
        np.zeros((3, 4)), columns=pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["u", "v"])
    ),
    labels_dates=lambda: pd.DataFrame(np.zeros((3, 4)), columns=pd.date_range("2020", periods=4)),
    labels_categorical=lambda: pd.DataFrame(np.zeros((3, 2)), columns=pd.CategoricalIndex(["x", "y"])),
    labels_bool=lambda: pd.DataFrame(np.zeros((3, 2)), columns=[True, False]),
    labels_range=lambda: pd.DataFrame(np.zeros((3, 5)), columns=pd.RangeIndex(0, 10, 2, name="n")),
    attrs=lambda: with_attrs({"source": "x", "nested": {"a": [1, 2.5, None, True]}}),
    attrs_tuple=lambda: with_attrs({"t": (1, 2)}),
    attrs_keys=lambda: with_attrs({1: "a"}),
    attrs_array=lambda: with_attrs({"when": datetime.date(2020, 1, 1)}),
    no_duplicate_labels=no_duplicates,
    subclass=special,
    transposed=lambda: mixed().T,
    series=lambda: pd.Series(np.arange(3000.0), name="s"),
    series_dates=lambda: pd.Series(pd.date_range("2020", periods=3000, freq="s"), name=("a", 1)),
    series_str=lambda: pd.Series(["a", None, "ü"] * 400),
    series_object=lambda: pd.Series(["a", None, np.nan, 1], dtype=object),
    series_category=lambda: pd.Series(["a", "b"] * 800, dtype="category"),
    series_int64=lambda: pd.Series([1, None] * 800, dtype="Int64"),
    series_index=lambda: pd.Series(range(100), index=pd.date_range("2020", periods=100, freq="W-MON")),
    index=lambda: pd.Index(np.arange(3000), name="i"),
    datetime_index=lambda: pd.date_range("2020", periods=3000, freq="2h", tz="UTC", name="t"),
    multi_index=lambda: pd.MultiIndex.from_product([["a", "b"], range(1000)], names=["x", "y"]),
    range_index=lambda: pd.RangeIndex(7),
    timestamp=lambda: pd.Timestamp("2020-01-01 12:00", tz="Europe/Berlin"),
    timedelta=lambda: pd.Timedelta("1 days 2h"),
    period_scalar=lambda: pd.Period("2020-01", "M"),
    interval_scalar=lambda: pd.Interval(1, 2, "both"),
    na=lambda: pd.NA,
    nat=lambda: pd.NaT,
    offset=lambda: pd.offsets.BusinessDay(3),
    categorical_array=lambda: pd.Categorical(["a", "b"] * 900),
    dict_of_frames=lambda: {"a": mixed(), "b": [numbers(), nulls()]},
)
