"""open(name, "wb") and "rb", as the writers and readers of other libraries use them."""

import pickle
import tarfile
import zipfile

import pytest

import vineyard


def test_what_is_written_becomes_an_object_when_it_is_closed(vol):
    with vol.open("x", "wb") as file:
        file.write(b"hello ")
        assert "x" not in vol
        file.write(memoryview(b"world"))
        assert file.tell() == 11
    assert vol["x"] == b"hello world"
    assert file.ref.nbytes == 11
    with pytest.raises(ValueError, match="closed"):
        file.write(b"more")


def test_an_exception_or_a_forgotten_close_leaves_nothing(vol):
    with pytest.raises(ZeroDivisionError), vol.open("x", "wb") as file:
        file.write(b"half")
        raise ZeroDivisionError
    vol.open("y", "wb").write(b"forgotten")
    assert vol.ls() == []


def test_seeking_back_and_gaps(vol):
    with vol.open("x", "wb") as file:
        file.write(b"....tail")
        file.seek(0)
        file.write(b"head")
        assert file.seek(0, 2) == 8
        file.seek(3, 1)
        file.write(b"!")
        file.seek(0)
        assert file.read(8) == b"headtail"
    assert vol["x"] == b"headtail\0\0\0!"


def test_reading_is_without_a_copy_and_seekable(vol):
    vol["x"] = b"0123456789"
    with vol.open("x") as file:
        assert file.read(3) == b"012"
        assert file.seek(-2, 2) == 8
        assert file.read() == b"89"
        file.seek(1)
        buffer = bytearray(2)
        assert file.readinto(buffer) == 2
        assert buffer == b"12"
        assert bytes(memoryview(file.memory)) == b"0123456789"


def test_a_kind_decodes_what_was_written(vol):
    with vol.open("x", "wb", kind="pickle") as file:
        pickle.dump({"a": 1}, file)
    assert vol["x"] == {"a": 1}
    with vol.open("t", "wb", kind="text") as file:
        file.write("grüße".encode())
    assert vol["t"] == "grüße"


def test_other_modes_are_refused(vol):
    for mode in ("r", "ab", "w", "r+b"):
        with pytest.raises(ValueError, match="never change"):
            vol.open("x", mode)
    with pytest.raises(TypeError, match="never changes"):
        vol.open(vol.put(1), "wb")


def test_zip_and_tar_files(vol):
    with vol.open("z.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "one")
    with vol.open("z.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("a.txt") == b"one"
    with vol.open("t.tar", "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    with vol.open("t.tar") as file, tarfile.open(fileobj=file) as archive:
        assert archive.getnames() == ["empty"]


def test_parquet_of_pandas_and_polars(vol):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": range(10_000), "s": ["x"] * 10_000})
    with vol.open("t.parquet", "wb") as file:
        frame.to_parquet(file)
    with vol.open("t.parquet") as file:
        pd.testing.assert_frame_equal(pd.read_parquet(file), frame)
    pl = pytest.importorskip("polars")
    with vol.open("p.parquet", "wb") as file:
        pl.DataFrame({"a": [1, 2]}).write_parquet(file)
    assert pl.read_parquet(vol["p.parquet"])["a"].to_list() == [1, 2]


def test_numpy_and_torch_save(vol):
    np = pytest.importorskip("numpy")
    with vol.open("a.npz", "wb") as file:
        np.savez(file, x=np.arange(5))
    with vol.open("a.npz") as file:
        assert np.load(file)["x"].tolist() == [0, 1, 2, 3, 4]
    torch = pytest.importorskip("torch")
    with vol.open("m.pt", "wb") as file:
        torch.save({"t": torch.ones(3)}, file)
    with vol.open("m.pt") as file:
        assert torch.load(file)["t"].tolist() == [1, 1, 1]


def test_a_large_file_grows(vol):
    chunk = bytes(range(256)) * 4096
    with vol.open("big", "wb") as file:
        for _ in range(20):
            file.write(chunk)
    assert vol["big"] == chunk * 20
    assert isinstance(file.ref, vineyard.Ref)
