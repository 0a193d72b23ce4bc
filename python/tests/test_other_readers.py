"""Other programs read the same files: polars, pyarrow.dataset, DuckDB, NumPy, pickle."""

import os
import pickle

import pytest

np = pytest.importorskip("numpy")


@pytest.fixture
def frame(vol, root):
    """A stored frame, and the path of its file."""
    pd = pytest.importorskip("pandas")
    made = pd.DataFrame(
        {
            "i": np.arange(1001),
            "f": np.where(np.arange(1001) % 3 == 0, np.nan, np.arange(1001) / 2),
            "b": np.arange(1001) % 2 == 0,
            "s": [None if i % 5 == 0 else f"text {i}" for i in range(1001)],
            "t": pd.date_range("2020", periods=1001, freq="h"),
            "z": pd.date_range("2020", periods=1001, freq="h", tz="Europe/Berlin"),
            "n": pd.array([None if i % 7 == 0 else i for i in range(1001)], "Int64"),
            "d": pd.to_timedelta(np.arange(1001), "s"),
            "c": pd.Categorical([None if i % 9 == 0 else "xyz"[i % 3] for i in range(1001)]),
        },
        index=pd.Index(np.arange(1001) * 10, name="key"),
    )
    ref = vol.put(made, "frame")
    if ref.kind != "arrow":
        pytest.skip("without pyarrow strings are pickled")
    return made, os.path.realpath(os.path.join(root, "frame"))


def test_polars_reads_a_stored_frame(frame):
    pl = pytest.importorskip("polars")
    made, path = frame
    got = pl.read_ipc(path)
    assert got.columns == [*made.columns, "key"]
    assert got["i"].to_list() == made["i"].tolist()
    assert got["s"].null_count() == made["s"].isna().sum()
    assert got["n"].null_count() == made["n"].isna().sum()
    assert got["b"].to_list() == made["b"].tolist()
    assert got["z"].dtype.time_zone == "Europe/Berlin"
    assert got["key"].to_list() == made.index.tolist()
    assert got["c"].cast(pl.String).to_list() == [None if v is np.nan else v for v in made["c"].astype(object)]
    scanned = pl.scan_ipc(path).filter(pl.col("b")).select(pl.col("i").sum()).collect()
    assert scanned.item() == made.loc[made["b"], "i"].sum()


def test_pyarrow_reads_a_stored_frame(frame):
    pa = pytest.importorskip("pyarrow")
    ds = pytest.importorskip("pyarrow.dataset")
    made, path = frame
    with pa.memory_map(path) as source:
        table = pa.ipc.open_file(source).read_all()
    table.validate(full=True)
    assert table["c"].to_pylist() == [None if v is np.nan else v for v in made["c"].astype(object)]
    assert table["s"].to_pylist()[:6] == [None, "text 1", "text 2", "text 3", "text 4", None]
    assert table["t"].to_pylist()[1] == made["t"].iloc[1].to_pydatetime()
    plain = table.to_pandas()
    assert plain.index.name == "key"
    assert plain.index.tolist() == made.index.tolist()
    assert plain["i"].tolist() == made["i"].tolist()
    dataset = ds.dataset(path, format="ipc")
    assert dataset.to_table(columns=["i"], filter=ds.field("i") > 990).num_rows == 10


def test_pyarrow_finds_every_kind_of_index(vol):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for index in (
        pd.RangeIndex(3, 9, 2, name="r"),
        pd.RangeIndex(3),
        pd.date_range("2020", periods=3, tz="UTC"),
        pd.Index(["x", "y", "z"], name=5),
        pd.Index([1.5, 2.5, 3.5]),
        pd.MultiIndex.from_tuples([("a", 1), ("b", 2), ("c", 3)]),
    ):
        made = pd.DataFrame({"a": [1, 2, 3]}, index=index)
        got = vol.arrow(vol.put(made)).to_pandas()
        assert got["a"].tolist() == [1, 2, 3]
        if not isinstance(index, pd.MultiIndex):
            assert got.index.tolist() == index.tolist()
            assert list(got.columns) == ["a"]


def test_duckdb_reads_a_stored_frame(frame):
    duckdb = pytest.importorskip("duckdb")
    ds = pytest.importorskip("pyarrow.dataset")
    made, path = frame
    dataset = ds.dataset(path, format="ipc")  # noqa: F841
    total, texts = duckdb.sql("select sum(i), count(s) from dataset where b").fetchall()[0]
    assert total == made.loc[made["b"], "i"].sum()
    assert texts == made.loc[made["b"], "s"].count()


def test_a_ref_is_an_arrow_stream(vol, frame):
    pa = pytest.importorskip("pyarrow")
    made, _ = frame
    ref = vol.put(made)
    assert pa.table(ref)["i"].to_pylist() == made["i"].tolist()
    pl = pytest.importorskip("polars")
    assert pl.DataFrame(ref)["i"].sum() == made["i"].sum()
    assert vol.arrow("frame").num_rows == 1001
    assert pl.DataFrame(vol.put(pl.DataFrame({"a": [1]})))["a"].to_list() == [1]


def test_numpy_reads_a_stored_array(vol, root):
    for value in (
        np.arange(5000).reshape(50, 100),
        np.asfortranarray(np.ones((3, 5))),
        np.zeros(3, [("größe", "f4")]),
        np.array(5),
    ):
        vol["a"] = value
        path = os.path.realpath(os.path.join(root, "a"))
        assert path.endswith(".npy")
        with open(path, "rb") as file:
            assert np.array_equal(np.load(file), value)
        mapped = np.load(path, mmap_mode="r")
        assert np.array_equal(mapped, value)
        assert mapped.flags.f_contiguous == value.flags.f_contiguous


def test_numpy_files_of_others_are_read(vol, root):
    for version in ((1, 0), (2, 0), (3, 0)):
        with open(os.path.join(root, "x.npy"), "wb") as file:
            np.lib.format.write_array(file, np.arange(6.0).reshape(2, 3), version)
        assert vol["x.npy"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_arrow_files_of_others_are_tables(vol, root):
    pa = pytest.importorskip("pyarrow")
    feather = pytest.importorskip("pyarrow.feather")
    table = pa.table({"a": [1, 2], "s": ["x", None]})
    feather.write_feather(table, os.path.join(root, "x.arrow"), compression="uncompressed")
    assert vol["x.arrow"].equals(table)
    pl = pytest.importorskip("polars")
    pl.DataFrame({"a": [3]}).write_ipc(os.path.join(root, "y.arrow"))
    assert vol["y.arrow"]["a"].to_pylist() == [3]


def test_pickle_reads_what_has_no_buffers(vol, root):
    vol["p"] = {"a": [1, 2], "b": np.arange(3)}
    with open(os.path.join(root, "p"), "rb") as file:
        assert pickle.load(file)["b"].tolist() == [0, 1, 2]
    with open(os.path.join(root, "q.pickle"), "wb") as file:
        pickle.dump({"x": 1}, file)
    assert vol["q.pickle"] == {"x": 1}


def test_text_and_bytes_are_plain_files(vol, root):
    vol["t"] = "grüße"
    vol["b"] = b"\0\1"
    with open(os.path.join(root, "t"), encoding="utf8") as file:
        assert file.read() == "grüße"
    with open(os.path.join(root, "b"), "rb") as file:
        assert file.read() == b"\0\1"


def test_safetensors_reads_a_stored_state_dict(vol, root):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    module = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))
    state = module.state_dict()
    assert vol.put(state, "state").kind == "safetensors"
    path = os.path.realpath(os.path.join(root, "state"))
    assert path.endswith(".safetensors")
    got = safetensors.load_file(path)
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())
    back = vol["state"]
    assert type(back) is type(state)
    assert back._metadata == state._metadata
    module.load_state_dict(back)
    safetensors.save_file({"x": torch.ones(5)}, os.path.join(root, "y.safetensors"))
    assert vol["y.safetensors"]["x"].tolist() == [1] * 5
