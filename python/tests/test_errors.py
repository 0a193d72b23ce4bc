"""Errors are the builtins that one expects, and say what to do next."""

import multiprocessing
import os
import pickle
import threading

import pytest

import vineyard
from vineyard import codec, errors, pickling


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (vineyard.ConnectionFailed, ConnectionError),
        (vineyard.ObjectNotFound, KeyError),
        (vineyard.ObjectExists, FileExistsError),
        (vineyard.StoreFull, MemoryError),
        (vineyard.QuotaExceeded, vineyard.StoreFull),
        (vineyard.GetTimeout, TimeoutError),
        (vineyard.ObjectLost, LookupError),
        (vineyard.SerializationError, TypeError),
        (vineyard.DeserializationError, ValueError),
        (vineyard.PermissionDenied, PermissionError),
        (vineyard.ProtocolMismatch, RuntimeError),
        (vineyard.InvalidName, ValueError),
    ],
)
def test_errors_are_builtins_and_travel(error, builtin):
    assert issubclass(error, builtin)
    assert issubclass(error, vineyard.StoreError)
    made = error("what happened. What to do.")
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is error
    assert str(again) == str(made) == "what happened. What to do."


def test_every_error_is_public():
    assert all(hasattr(vineyard, name) for name in errors.__all__)


def test_a_missing_name(vol):
    with pytest.raises(KeyError, match=r"nothing: no such object.*ls\(\)"):
        vol["nothing"]
    with pytest.raises(vineyard.ObjectNotFound):
        del vol["nothing"]
    assert vol.get("nothing", default=None) is None
    assert vol.rm("nothing") is False
    with pytest.raises(vineyard.ObjectNotFound):
        vol.get(vineyard.Ref(vol, "0" * 26, "raw", 1, None))


def test_a_name_that_does_not_appear_in_time(vol):
    with pytest.raises(TimeoutError, match=r"late.*timeout"):
        vol.get("late", timeout=0.05)
    assert vol.get("late", timeout=0.05, default=3) == 3
    with pytest.raises(vineyard.GetTimeout):
        vol.wait("a", "b", timeout=0)


def test_a_taken_name(vol):
    vol.put(1, "x")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        vol.put(2, "x", overwrite=False)
    assert vol["x"] == 1
    draft = vol.create("x", 100_000, "f8", overwrite=False)
    draft.array[:] = 3
    with pytest.raises(vineyard.ObjectExists):
        draft.seal()
    assert draft.array.sum() == 300_000, "the memory is still there"
    with pytest.raises(ValueError, match="sealed already"):
        draft.seal()


@pytest.mark.parametrize("shape", [-1, (-1, -1), (3, -1), (2**40, 2**40)])
def test_no_array_has_such_a_shape(vol, shape):
    with pytest.raises(ValueError, match="dimensions"):
        vol.create("x", shape, "f4")
    with pytest.raises(ValueError, match="dimensions"):
        vol.create("x", -1)


@pytest.mark.parametrize("ttl", [-1, float("inf"), float("nan")])
def test_a_ttl_that_is_no_time(vol, ttl):
    with pytest.raises(ValueError, match="None is without limit"):
        vol.put(1, ttl=ttl)


@pytest.mark.parametrize("name", ["", "/abs", "a//b", "../x", "a/./b", ".vineyard/x", "a\0b", "x" * 300])
def test_a_bad_name(vol, name):
    with pytest.raises(vineyard.InvalidName, match="relative path"):
        vol.put(1, name)


@pytest.mark.parametrize(
    "use",
    [
        lambda vol, name: vol.put(1, name),
        lambda vol, name: vol.put({"x": 1}, f"a/{name}"),
        lambda vol, name: vol.put_many({name: 1}, "pack"),
        lambda vol, name: vol.put_many([1], name),
        lambda vol, name: vol.get(name),
        lambda vol, name: vol.wait(name, timeout=0),
        lambda vol, name: vol.exists(name),
        lambda vol, name: vol.stat(name),
        lambda vol, name: vol.link(vol.put(1), name),
        lambda vol, name: vol.rm(name),
        lambda vol, name: vol.rm(prefix=name),
        lambda vol, name: vol.names(name),
        lambda vol, name: vol.ls(glob=name),
        lambda vol, name: vol.stream(name).append(1),
        lambda vol, name: list(vol.stream(name, timeout=0)),
        lambda vol, name: vol.open(name, "wb").close(),
        lambda vol, name: vol.create(name, 3).seal(),
    ],
)
def test_a_name_with_a_lone_surrogate(vol, use):
    with pytest.raises(vineyard.InvalidName, match=r"x.+y.*surrogate.*relative path"):
        use(vol, os.fsdecode(b"x\x80y"))
    assert [name for name in vol.names() if name != "fine"] == []


def test_a_stream_that_fails_for_a_file_with_an_odd_name_still_says_so(vol):
    vol.stream("s").fail("no such file: x\udc80y")
    with pytest.raises(vineyard.StoreError, match=r"no such file: x.+y"):
        list(vol.stream("s"))


@pytest.mark.parametrize("key", [1, None, b"bytes", ("a", "b"), 1.5])
def test_keys_of_put_many_are_texts(vol, key):
    with pytest.raises(TypeError, match=rf"a key is a str, not {type(key).__name__}"):
        vol.put_many({"fine": 0, key: 1}, "pack")
    assert vol.names() == []


def test_an_empty_path_is_no_volume(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for use in (vineyard.open, vineyard.connect, vineyard.Volume):
        with pytest.raises(ValueError, match="path of the volume is empty: pass"):
            use("")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("VINEYARD_VOLUME", "")
    assert vineyard.open().path.endswith(f"vineyard-{os.getuid()}"), "an empty variable is as good as none"


def test_a_key_of_a_wrong_type(vol):
    with pytest.raises(TypeError, match="Ref"):
        vol.get(5)
    with pytest.raises(TypeError, match="str"):
        vol[5] = 1
    assert 5 not in vol


@pytest.mark.parametrize(
    "make", [lambda: open(os.devnull), lambda: (i for i in "ab"), threading.Lock, lambda: [open(os.devnull)]]
)
def test_what_cannot_be_stored(vol, make):
    with pytest.raises(TypeError, match=r"register|cloudpickle"):
        vol.put(make())
    assert vol.ls() == []


def test_too_deep(vol):
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(vineyard.SerializationError, match="deep"):
        vol.put(value)


def test_a_full_volume():
    """On a tmpfs of its own; needs the right to mount."""
    import subprocess
    import tempfile

    place = tempfile.mkdtemp(prefix="vineyard-test-")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "vineyard-test", place], capture_output=True)
    if mounted.returncode:
        os.rmdir(place)
        pytest.skip("cannot mount a tmpfs here")
    try:
        vol = vineyard.open(place)
        vol["small"] = b"x" * 100
        used = vol.usage().used
        with pytest.raises(MemoryError, match=r"rm\(\)") as caught:
            vol["large"] = b"x" * (16 << 20)
        assert caught.value.asked >= 16 << 20
        assert 0 < caught.value.free < 8 << 20
        with pytest.raises(vineyard.StoreFull):
            vol.create("large", 16 << 20)
        with pytest.raises(vineyard.StoreFull), vol.open("large", "wb") as file:
            for _ in range(16):
                file.write(b"x" * (1 << 20))
        assert vol.names() == ["small"]
        assert vol.usage().used == used, "nothing stays behind"
        vol["fits"] = b"x" * (1 << 20)
        del vol, caught
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        os.rmdir(place)


def test_no_volume_there():
    with pytest.raises(ConnectionError, match="mount"):
        vineyard.open("/dev/null/x")
    with pytest.raises(vineyard.ConnectionFailed):
        vineyard.open("/proc", create=False)


def test_a_read_only_user(root):
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    vineyard.open(root)["x"] = 1
    os.chmod(root, 0o755)
    for entry in os.scandir(os.path.join(root, ".vineyard")):
        os.chmod(entry.path, 0o755 if entry.is_dir() else 0o444)

    def stranger(results):
        os.setgid(65534)
        os.setuid(65534)
        vol = vineyard.open(root, create=False)
        try:
            vol.put(b"x")
        except PermissionError as error:
            results.put((type(error).__name__, str(error), vol["x"]))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=stranger, args=(results,))
    process.start()
    name, text, value = results.get(timeout=60)
    process.join()
    assert (name, value) == ("PermissionDenied", 1)
    assert "mode" in text or "writable" in text


def test_pickles_can_be_refused(vol):
    vol["p"] = {1, 2}
    with pytest.raises(vineyard.DeserializationError, match="allow_pickle"):
        vol.get("p", allow_pickle=False)
    with pytest.raises(vineyard.SerializationError, match="allow_pickle"):
        vol.put({1, 2}, allow_pickle=False)
    vol.put("text", "t", allow_pickle=False)
    assert vol.get("t", allow_pickle=False) == "text"


def test_a_value_of_another_world_names_both_sides(vol):
    content = codec.encode({"x": 1})[1]
    told = bytes(content[-1]).replace(b'"python": "3.', b'"python": "2.')
    broken = [b"\x80\x05cno_such_module\nThing\n.", *content[1:-1]]
    meta = b'{"type": "other.Thing", "by": {"python": "2.7.0"}}'
    table = pickling.FOOTER.pack(
        len(broken[0]), 0, len(meta), len(broken[0]), 0, __import__("zlib").crc32(meta), b"VYPICKL1"
    )
    vol._native.put("pickle", [broken[0], meta, table], "x", None, True)
    with pytest.raises(ValueError, match=r"other.Thing needs the module 'no_such_module'.*pip install"):
        vol["x"]
    broken = b"\x80\x05cvineyard\nno_such_name\n."
    table = pickling.FOOTER.pack(len(broken), 0, len(meta), len(broken), 0, __import__("zlib").crc32(meta), b"VYPICKL1")
    vol._native.put("pickle", [broken, meta, table], "y", None, True)
    with pytest.raises(vineyard.DeserializationError, match=r"python 2.7.0 wrote it, python 3.* reads it"):
        vol["y"]
    assert told


@pytest.mark.parametrize("kind", ["npy", "arrow", "pickle", "text", "pack"])
def test_hostile_bytes_are_errors(vol, kind):
    import random

    np = pytest.importorskip("numpy")
    values = {"npy": np.arange(100), "text": "x" * 50, "pickle": {"a": np.arange(5000)}}
    if kind == "arrow":
        pd = pytest.importorskip("pandas")
        values["arrow"] = pd.DataFrame({"a": np.arange(100.0), "b": np.arange(100), "s": ["x"] * 100})
    if kind == "pack":
        vol.put_many({"a": "text", "b": b"bytes", "c/d": np.arange(20)}, "pack")
        good = bytes(memoryview(vol.open("pack").memory))
    else:
        good = b"".join(bytes(memoryview(part).cast("B")) for part in codec.encode(values[kind])[1])
    numbers = random.Random(0)
    for round_number in range(400):
        bad = bytearray(good)
        if round_number % 3 == 0:
            bad = bad[: numbers.randrange(len(bad))]
        for _ in range(numbers.randrange(1, 4)):
            if bad:
                at = numbers.randrange(len(bad)) if round_number % 2 else max(0, len(bad) - 1 - numbers.randrange(600))
                bad[at] = numbers.randrange(256)
        if kind == "pickle" and bad[-40:] == good[-40:]:
            continue  # a pickle stream that was changed may do anything
        try:
            codec.decode(kind, bad)
        except vineyard.DeserializationError:
            pass


def test_a_table_whose_texts_end_anywhere_is_an_error_and_no_crash(vol):
    np, pa = pytest.importorskip("numpy"), pytest.importorskip("pyarrow")
    texts = [f"{number:03}" for number in range(1000)]
    for kind, ends in ((pa.string(), "i4"), (pa.large_string(), "i8"), (pa.binary(), "i4")):
        plain = pa.array(texts).cast(kind)
        nested = pa.StructArray.from_arrays([plain], ["inner"])
        for value in (pa.table({"s": plain}), pa.record_batch({"s": plain}), pa.table({"s": nested})):
            good = b"".join(bytes(memoryview(part).cast("B")) for part in codec.encode(value)[1])
            at = good.index(np.arange(0, 3003, 3, dtype=ends).tobytes()) + 500 * np.dtype(ends).itemsize
            for wrong in (2**30, -5):
                bad = bytearray(good)
                bad[at : at + np.dtype(ends).itemsize] = np.array([wrong], ends).tobytes()
                with pytest.raises(vineyard.DeserializationError, match="damaged Arrow file"):
                    codec.decode("arrow", bad)
            assert codec.decode("arrow", good).equals(value)
