"""The nine verbs and the dict protocol."""

import time

import pytest

import vineyard

np = pytest.importorskip("numpy")


def test_a_volume_is_a_dict_of_names(vol):
    vol["b"] = 2
    vol["a/x"] = "one"
    assert list(vol) == vol.names() == vol.keys() == ["a/x", "b"]
    assert len(vol) == 2
    assert "b" in vol
    assert "c" not in vol
    assert dict(vol.items()) == {"a/x": "one", "b": 2}
    assert list(vol.values()) == ["one", 2]
    del vol["b"]
    assert list(vol) == ["a/x"]
    assert vol._ipython_key_completions_() == ["a/x"]


def test_a_dict_of_a_volume_with_streams_and_names_that_vanish(vol):
    vol["a"] = 1
    vol["b"] = 2
    with vol.stream("s") as stream:
        stream.append(3)
    assert "s" in vol.names()
    assert {name: vol[name] for name in vol} == dict(vol) == {"a": 1, "b": 2, "s/00000000": 3}
    seen = []
    for name, value in vol.items():
        vol.rm("b")
        seen.append((name, value))
    assert seen == [("a", 1), ("s/00000000", 3)]
    with pytest.raises(vineyard.InvalidName, match=r"stream\('s'\)"):
        vol["s"]
    with pytest.raises(vineyard.InvalidName, match=r"prefix='s/'"):
        vol.rm("s")
    with pytest.raises(vineyard.ObjectExists, match="directory"):
        vol["s"] = 1


def test_put_returns_a_ref_that_tells_what_it_is(vol):
    ref = vol.put(np.zeros((3, 4)), "x")
    assert (ref.kind, ref.name, ref.type, ref.shape) == ("npy", "x", "numpy.ndarray", (3, 4))
    assert "shape=(3, 4)" in repr(ref)
    assert "numpy.ndarray" in ref._repr_html_()
    assert ref in {ref}
    assert ref != vol.put(1)
    assert ref in vol
    assert ref.get().shape == (3, 4)
    vol["x"] = 5
    with pytest.raises(vineyard.ObjectNotFound):
        ref.get()


def test_unnamed_objects_live_until_rm(vol):
    ref = vol.put([1, 2])
    assert vol.names() == []
    assert ref.get() == [1, 2]
    assert ref.rm() is True
    assert ref.rm() is False
    assert vol.get(ref, timeout=60, default="gone") == "gone"
    with pytest.raises(vineyard.ObjectNotFound):
        vol.get(ref, timeout=60)


def test_removing_a_ref_removes_its_name_unless_that_was_re_pointed(vol):
    first = vol.put(1, "x")
    assert first.rm()
    assert "x" not in vol
    old = vol.put(1, "x")
    vol.put(2, "x")
    assert old.rm() is False
    assert vol["x"] == 2


def test_rm_by_prefix(vol):
    for name in ("run1/a", "run1/b/c", "run2/a"):
        vol[name] = 1
    assert vol.rm(prefix="run1/")
    assert vol.names() == ["run2/a"]
    assert not vol.rm(prefix="run1/")
    with pytest.raises(TypeError):
        vol.rm()


def test_ls_lists_by_prefix_and_glob(vol):
    for name in ("a/one", "a/two", "b/one"):
        vol[name] = b"12345"
    assert [entry.name for entry in vol.ls()] == ["a/one", "a/two", "b/one"]
    assert vol.names("a/") == ["a/one", "a/two"]
    assert vol.names(glob="*/one") == ["a/one", "b/one"]
    entry = vol.ls("b/")[0]
    assert (entry.kind, entry.nbytes) == ("raw", 5)
    assert abs(entry.modified - time.time()) < 3600
    table = repr(vol.ls())
    assert table.splitlines()[0].split() == ["name", "kind", "size", "age"]
    assert "a/two" in vol.ls()._repr_html_()
    assert "a/two" in vol._repr_html_()


def test_stat_knows_type_and_shape_without_the_library(vol):
    assert vol.stat(vol.put(np.zeros((2, 5)), "n")).shape == (2, 5)
    vol["p"] = {1: 2}
    assert vol.stat("p").type == "dict"
    vol["t"] = "text"
    assert (vol.stat("t").type, vol.stat("t").kind, vol.stat("t").nbytes) == ("str", "text", 4)
    pd = pytest.importorskip("pandas")
    vol["f"] = pd.DataFrame({"a": [1, 2, 3]})
    assert (vol.stat("f").type, vol.stat("f").shape) == ("pandas.DataFrame", (3, 1))
    vol["s"] = pd.Series([1.0, 2])
    assert (vol.stat("s").type, vol.stat("s").shape) == ("pandas.Series", (2,))


def test_usage_counts_what_is_put(vol):
    before = vol.usage()
    ref = vol.put(b"x" * (10 << 20))
    assert vol.usage().used - before.used >= 10 << 20
    ref.rm()


def test_create_fills_in_place(vol):
    with vol.create("x", (1000, 30), "f4") as array:
        array[:] = 3
        assert "x" not in vol
    got = vol["x"]
    assert (got.dtype, got.shape, float(got.sum())) == (np.dtype("f4"), (1000, 30), 90_000.0)
    array[:] = 4
    assert float(vol["x"].sum()) == 90_000.0, "the array is private after the seal"
    with vol.create("raw", 5) as memory:
        memory[:] = b"hello"
    assert vol["raw"] == b"hello"
    draft = vol.create(None, 10, "M8[s]")
    assert draft.seal().get().dtype == "M8[s]"
    with pytest.raises(TypeError, match="put"):
        vol.create("x", 3, object)
    with pytest.raises(TypeError, match="dtype"):
        vol.create("x", (3, 4))


def test_create_leaves_nothing_after_an_exception(vol):
    with pytest.raises(ZeroDivisionError), vol.create("x", 1000, "f8") as array:
        array[0] = 1 / 0
    assert "x" not in vol
    assert vol.ls() == []


def test_put_many_is_one_object(vol):
    ref = vol.put_many({"a": 1, "b/c": np.arange(3), "t": "x"}, "pack")
    assert (ref.kind, ref.shape) == ("pack", (3,))
    assert vol.names() == ["pack"]
    assert (vol["pack/a"], vol["pack/b/c"].tolist(), vol["pack/t"]) == (1, [0, 1, 2], "x")
    assert list(ref.get()) == ["a", "b/c", "t"]
    assert ref.get()["b/c"].tolist() == [0, 1, 2]
    assert (vol.stat("pack").type, vol.stat("pack").shape) == ("dict", (3,))
    vol.put_many(range(1000), "numbers")
    assert [vol["numbers/00000000"], vol["numbers/00000999"]] == [0, 999]
    with pytest.raises(KeyError):
        vol["pack/none"]


def test_ttl_is_taken(vol):
    vol.put(1, "x", ttl=3600)
    assert vol["x"] == 1
    with pytest.raises(ValueError, match="ttl"):
        vol.put(1, "y", ttl=-1)


def test_links_share_one_object(vol):
    ref = vol.put([1], "x")
    vol.link("x", "y")
    assert vol["y"] == [1]
    assert vol.rm("x")
    assert vol["y"] == [1]
    assert ref.get() == [1]


def test_a_link_of_a_ref_leaves_the_first_name_its_object(vol):
    ref = vol.put([1], "a")
    vol.link(ref, "b")
    vol.rm("b")
    assert vol["a"] == [1]
    vol.link(ref, "b")
    assert ref.rm()
    assert vol.names() == ["b"]
    assert vol["b"] == [1]


def test_plain_files_are_decoded_by_extension(vol, root):
    np.save(f"{root}/a.npy", np.arange(4))
    with open(f"{root}/b.txt", "w") as file:
        file.write("grüße")
    with open(f"{root}/c.bin", "wb") as file:
        file.write(b"\0\1")
    assert vol["a.npy"].tolist() == [0, 1, 2, 3]
    assert vol["b.txt"] == "grüße"
    assert vol["c.bin"] == b"\0\1"
    assert [entry.id for entry in vol.ls()] == [None] * 3


def test_kinds_of_others_are_bytes(vol):
    vol._native.put("parquet", [b"PAR1"], "x", None, True)
    assert vol["x"] == b"PAR1"


def test_the_same_id_is_never_two_objects(vol):
    refs = [vol.put(i) for i in range(50)]
    assert len({ref.id for ref in refs}) == 50
    assert [ref.get() for ref in refs] == list(range(50))
