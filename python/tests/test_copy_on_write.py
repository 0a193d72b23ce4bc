"""What `get` returns may be written by ordinary code, and the stored object never changes."""

import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")
N = 50_000


def stored(vol, name):
    return bytes(memoryview(vol.open(name).memory))


def _array():
    return np.arange(N, dtype="f8")


WRITES = {
    "in_place": lambda a: a.__iadd__(1),
    "item": lambda a: a.__setitem__(3, 7.0),
    "slice": lambda a: a.__setitem__(slice(10, 20), 0),
    "mask": lambda a: a.__setitem__(a > 5, -1),
    "sort": lambda a: a[::-1].sort(),
    "fill": lambda a: a.fill(3),
    "shuffle": lambda a: np.random.default_rng(0).shuffle(a),
    "ufunc_out": lambda a: np.add(a, 1, out=a),
    "put": lambda a: np.put(a, [0, 1], 5),
    "copyto": lambda a: np.copyto(a, 2),
    "partition": lambda a: a[::-1].partition(5),
    "byteswap": lambda a: a.byteswap(inplace=True),
    "view": lambda a: a.view("u1").__setitem__(0, 9),
    "reshape": lambda a: a.reshape(2, -1).__setitem__((0, 0), 9),
    "nan_to_num": lambda a: np.nan_to_num(a - a, copy=False) is not None and a.__setitem__(0, 1),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("nested", [False, True])
def test_writing_an_array_stays_private(vol, write, nested):
    vol["x"] = {"a": [_array()]} if nested else _array()
    before = stored(vol, "x")
    mine, other = vol["x"], vol["x"]
    mine, other = (mine["a"][0], other["a"][0]) if nested else (mine, other)
    WRITES[write](mine)
    assert not np.array_equal(mine, _array())
    assert np.array_equal(other, _array())
    assert stored(vol, "x") == before


FRAME_WRITES = {
    "loc": lambda f: f.loc.__setitem__((3, "a"), 99.0),
    "loc_row": lambda f: f.loc.__setitem__(3, 99.0),
    "iloc": lambda f: f.iloc.__setitem__((0, 0), 99.0),
    "iat": lambda f: f.iat.__setitem__((0, 0), 99.0),
    "at": lambda f: f.at.__setitem__((0, "a"), 99.0),
    "mask": lambda f: f.__setitem__(f > 5, 0.0),
    "column": lambda f: f.__setitem__("a", f["a"] * 2 + 1),
    "column_in_place": lambda f: f.__setitem__("a", f["a"].__iadd__(1)),
    "new_column": lambda f: f.__setitem__("z", 1),
    "fillna": lambda f: (f.fillna(0.0, inplace=True), f.iloc.__setitem__((0, 0), 1.5)),
    "drop": lambda f: f.drop(columns="a", inplace=True),
    "sort": lambda f: f.sort_values("a", ascending=False, inplace=True),
    "rename": lambda f: f.rename(columns={"a": "q"}, inplace=True),
    "clip": lambda f: f.clip(upper=3.0, inplace=True),
    "replace": lambda f: f.replace(0.0, 5.0, inplace=True),
    "set_index": lambda f: f.set_index("a", inplace=True),
    "pop": lambda f: f.pop("a"),
    "insert": lambda f: f.insert(0, "q", 1),
    "update": lambda f: f.update(f + 1),
    "where": lambda f: f.where(f < 3, 0.0, inplace=True),
    "add": lambda f: f.__iadd__(1),
}


@pytest.mark.parametrize("write", FRAME_WRITES)
def test_writing_a_frame_stays_private(vol, write):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": _array(), "b": _array() + 1, "c": _array() - 1})
    vol["x"] = frame
    before = stored(vol, "x")
    mine = vol["x"]
    FRAME_WRITES[write](mine)
    assert not mine.equals(frame)
    assert vol["x"].equals(frame)
    assert stored(vol, "x") == before


def test_written_results_compute_like_any_other(vol):
    pd = pytest.importorskip("pandas")
    vol["x"] = pd.DataFrame({"k": np.arange(N) % 7, "v": _array()})
    mine = vol["x"]
    mine.loc[mine["k"] == 3, "v"] = 0.0
    sums = mine.groupby("k")["v"].sum()
    assert sums[3] == 0.0
    assert sums[2] == vol["x"].query("k == 2")["v"].sum()


def test_sparse_and_estimators_write_freely(vol):
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(500, 500, 0.1, format="csr", random_state=0)
    matrix.indices[:2] = matrix.indices[1::-1][:2]
    matrix.has_sorted_indices = False
    vol["m"] = matrix
    mine = vol["m"]
    mine.sort_indices()
    mine.data *= 2
    assert abs(vol["m"] * 2 - mine).max() < 1e-12


def test_torch_in_place_writes_stay_private(vol):
    torch = pytest.importorskip("torch")
    vol["t"] = torch.arange(100_000.0)
    mine = vol["t"]
    mine.add_(1)
    assert torch.equal(vol["t"], torch.arange(100_000.0))


def test_torch_may_write_what_was_got_read_only(vol):
    torch = pytest.importorskip("torch")
    vol["t"] = torch.arange(100_000.0)
    mine = vol.get("t", mode="readonly")
    mine.add_(1)
    assert torch.equal(vol["t"], torch.arange(100_000.0))


def test_read_only_refuses_writes(vol):
    vol["x"] = {"a": _array()}
    vol["y"] = _array()
    for array in (vol.get("x", mode="readonly")["a"], vol.get("y", mode="readonly")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_copies_share_nothing(vol):
    vol["y"] = _array()
    mine = vol.get("y", mode="copy")
    mine[0] = 5
    assert isinstance(mine.base, bytearray)
    assert vol["y"][0] == 0


def test_an_unknown_mode_is_refused(vol):
    vol["y"] = 1
    with pytest.raises(ValueError, match="'cow', 'readonly' or 'copy'"):
        vol.get("y", mode="rw")


def test_other_processes_never_see_writes(vol, root):
    vol["y"] = _array()
    vol["y"][:] = -1
    mine = vol["y"]
    mine[:] = -1
    code = f"import vineyard; print(vineyard.open({root!r})['y'].sum())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert float(out.stdout) == _array().sum()
