"""Frames put together at random from kinds of columns, indexes and labels come back exactly."""

import random

import pytest
from same import assert_same

pd = pytest.importorskip("pandas")
np = pytest.importorskip("numpy")

PLAIN = ("i1", "i2", "i4", "i8", "u1", "u8", "f2", "f4", "f8", "?", "F", "q")

COLUMNS = {
    **{code: lambda n, r, code=code: np.arange(n).astype(code) for code in PLAIN},
    "nan": lambda n, r: np.where(np.arange(n) % 3 == 0, np.nan, 1.5),
    "str": lambda n, r: pd.Series([f"ü{i}" for i in range(n)]),
    "str_null": lambda n, r: pd.Series([None if i % 4 == 0 else f"s{i}" for i in range(n)]),
    "object": lambda n, r: pd.Series([r.choice(["a", 1, None, 2.5, (1,)]) for _ in range(n)], dtype=object),
    "object_str": lambda n, r: pd.Series([r.choice(["a", "b", None]) for _ in range(n)], dtype=object),
    "object_nan": lambda n, r: pd.Series([r.choice(["a", "b", np.nan]) for _ in range(n)], dtype=object),
    "time": lambda n, r: pd.Series(pd.date_range("2020", periods=n, freq="min")).where(np.arange(n) % 5 > 0),
    "time_s": lambda n, r: np.arange(n).astype("M8[s]"),
    "zone": lambda n, r: pd.Series(pd.date_range("2020", periods=n, freq="D", tz=r.choice(["UTC", "Asia/Tokyo"]))),
    "span": lambda n, r: pd.Series(pd.to_timedelta(np.arange(n), "ms")),
    "Int32": lambda n, r: pd.array([None if i % 3 == 0 else i for i in range(n)], "Int32"),
    "Float64": lambda n, r: pd.array([None if i % 7 == 0 else i / 3 for i in range(n)], "Float64"),
    "boolean": lambda n, r: pd.array([r.choice([True, False, None]) for _ in range(n)], "boolean"),
    "string": lambda n, r: pd.array([r.choice(["x", "", None]) for _ in range(n)], "string"),
    "category": lambda n, r: pd.Categorical([r.choice(["x", "y", None]) for _ in range(n)], ordered=r.random() < 0.5),
    "category_int": lambda n, r: pd.Categorical([r.choice([3, 1, 2]) for _ in range(n)]),
    "period": lambda n, r: pd.period_range("2020", periods=n, freq="D"),
    "sparse": lambda n, r: pd.arrays.SparseArray(np.arange(n) % 2),
}

INDEXES = {
    "range": lambda n, r: pd.RangeIndex(r.randrange(5), r.randrange(5) + 10 * n + 5, 10)[:n],
    "int": lambda n, r: pd.Index(np.arange(n)[::-1].copy(), name=r.choice([None, "k", 3, ("a", 1)])),
    "float": lambda n, r: pd.Index(np.arange(n) / 7),
    "str": lambda n, r: pd.Index([f"r{i}" for i in range(n)], name="s"),
    "object": lambda n, r: pd.Index([r.choice(["a", None, 1]) for _ in range(n)], dtype=object),
    "time": lambda n, r: pd.date_range("2020", periods=n, freq=r.choice(["h", "D", "B", "2W-SUN", "MS"])),
    "zone": lambda n, r: pd.date_range("2020", periods=n, freq="h", tz="Europe/Berlin").rename("t"),
    "span": lambda n, r: pd.timedelta_range("1h", periods=n, freq="s"),
    "multi": lambda n, r: pd.MultiIndex.from_arrays(
        [np.arange(n) % 3, [f"x{i % 4}" for i in range(n)]], names=["a", None]
    ),
    "multi_time": lambda n, r: pd.MultiIndex.from_arrays([pd.date_range("2020", periods=n), np.arange(n)]),
    "category": lambda n, r: pd.CategoricalIndex([r.choice("ab") for _ in range(n)]),
    "duplicate": lambda n, r: pd.Index(np.zeros(n, "i4")),
}

LABELS = {
    "str": lambda k, r: [f"c{i}" for i in range(k)],
    "int": lambda k, r: list(range(k, 0, -1)),
    "range": lambda k, r: pd.RangeIndex(k),
    "mixed": lambda k, r: [r.choice([i, str(i), float(i), None, (i, "x"), True]) for i in range(k)],
    "duplicate": lambda k, r: ["same"] * k,
    "multi": lambda k, r: pd.MultiIndex.from_arrays(
        [[i % 2 for i in range(k)], [f"c{i}" for i in range(k)]], names=["l", 2]
    ),
    "named": lambda k, r: pd.Index([f"c{i}" for i in range(k)], name="columns"),
    "time": lambda k, r: pd.date_range("2020", periods=k),
}

CHANGES = {
    "none": lambda f, r: f,
    "rows": lambda f, r: f.iloc[r.randrange(len(f) + 1) :],
    "step": lambda f, r: f.iloc[::2],
    "reverse": lambda f, r: f.iloc[::-1],
    "columns": lambda f, r: f.iloc[:, ::-1],
    "copy": lambda f, r: f.copy(),
    "assign": lambda f, r: f.set_axis(range(f.shape[1]), axis=1).assign(zz=1.5),
    "attrs": lambda f, r: _attrs(f, r),
    "masked": lambda f, r: f[np.arange(len(f)) % 3 > 0],
}


def _attrs(frame, r):
    frame.attrs = {"n": r.random(), "l": [1, None, "x"], "d": {"k": True}}
    return frame


@pytest.mark.parametrize("seed", range(200))
def test_a_random_frame_comes_back_exactly(vol, seed):
    r = random.Random(seed)
    n = r.choice([0, 1, 2, 7, 64, 100, 1000])
    kinds = [r.choice(list(COLUMNS)) for _ in range(r.randrange(1, 8))]
    index, labels, change = r.choice(list(INDEXES)), r.choice(list(LABELS)), r.choice(list(CHANGES))
    frame = pd.DataFrame({i: COLUMNS[kind](n, r) for i, kind in enumerate(kinds)})
    frame.index = INDEXES[index](n, r)
    frame.columns = LABELS[labels](len(kinds), r)
    frame = CHANGES[change](frame, r)
    where = f"{kinds} {index} {labels} {change} {n} rows"
    ref = vol.put(frame)
    assert_same(frame, ref.get(), f"{where} ({ref.kind})")
    assert_same(frame, ref.get(mode="readonly"), where)
    if ref.kind == "arrow":
        pa = pytest.importorskip("pyarrow")
        table = vol.arrow(ref)
        table.validate(full=True)
        assert table.num_rows == len(frame), where
        assert isinstance(table, pa.Table)
